import pytest

from mesh.control.setting import NOTHING, InvalidAction, Name, Setting, changed, decode, encode, name_of, parse


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "object"),
        (b"[]", "object"),
        (b'{"action": 1}', "str"),
        (b'{"action": "stop"}', "no action 'stop' .there are: pause, resume, drain, limit."),
        (b'{"acton": "pause"}', "acton"),
        (b'{"action": "pause", "rate": 1}', "belong to the action limit"),
        (b'{"action": "limit"}', "needs a rate"),
        (b'{"action": "limit", "rate": 0}', "rate must be from 0.001"),
        (b'{"action": "limit", "rate": -1}', "rate must be"),
        (b'{"action": "limit", "rate": 1e300}', "rate must be"),
        (b'{"action": "limit", "rate": "fast"}', "rate"),
        (b'{"action": "limit", "concurrency": 0}', "concurrency must be from 1"),
        (b'{"action": "limit", "concurrency": 99999999999999999999}', "concurrency"),
        (b'{"action": "limit", "concurrency": 1.5}', "concurrency"),
        (b'{"action": "pause", "waitSeconds": 3}', "belongs to the action drain"),
        (b'{"action": "drain", "waitSeconds": -1}', "waitSeconds must be from 0 to 60"),
        (b'{"action": "drain", "waitSeconds": 61}', "waitSeconds must be"),
        (b'{"action": "pause", "group": 7}', "group"),
    ],
)
def test_bad_actions_are_refused(body, problem):
    with pytest.raises(InvalidAction, match=problem):
        parse(body)


def test_actions_add_up():
    setting = NOTHING
    for body, expected in (
        (b'{"action": "limit", "rate": 5, "concurrency": 2}', Setting(rate=5, concurrency=2)),
        (b'{"action": "pause"}', Setting(paused=True, rate=5, concurrency=2)),
        (b'{"action": "limit", "rate": null}', Setting(paused=True, concurrency=2)),
        (b'{"action": "drain"}', Setting(draining=True, concurrency=2)),
        (b'{"action": "resume"}', Setting(concurrency=2)),
        (b'{"action": "limit", "concurrency": null}', NOTHING),
    ):
        setting = changed(setting, parse(body))
        assert setting == expected
        assert decode(encode(setting)) == setting


@pytest.mark.parametrize("name", [Name("pubsub", "a.b"), Name("pubsub", "a", "late")])
def test_records_name_their_subscription(name):
    assert name_of(name.key) == name
    assert name_of(("subscription", "x")) is None
