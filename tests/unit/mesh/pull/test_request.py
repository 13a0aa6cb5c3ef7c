import json

import pytest

from mesh.ports import NOW, OLDEST, Start
from mesh.pull.request import (
    InvalidRequest,
    parse_ack,
    parse_pull,
    parse_reject,
    parse_release,
    parse_renew,
)


def about(rest):
    """A body about one event."""
    return f'{{"lockTokens": ["a"], {rest}}}'


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("[]", "no such request"),
        ("{", "no such request"),
        ('{"max": 1}', "max"),
        ('{"maxMessages": 0}', "maxMessages must be from 1 to 100 .got 0."),
        ('{"maxMessages": 101}', "maxMessages must be"),
        ('{"maxMessages": "5"}', "maxMessages"),
        (f'{{"maxMessages": 1{400 * "0"}}}', "maxMessages must be from 1 to 100 .got 10000"),
        ('{"waitSeconds": -1}', "waitSeconds must be from 0 to 60"),
        ('{"waitSeconds": 61}', "waitSeconds must be"),
        ('{"waitSeconds": 1e400}', "waitSeconds|range"),
        ('{"lockSeconds": 0}', "lockSeconds must be from 1 to 3600"),
        ('{"lockSeconds": 3601}', "lockSeconds must be"),
        ('{"group": 7}', "group"),
        ('{"group": "a\\nb"}', "group must be"),
        (json.dumps({"group": 65 * "g"}), "group must be at most 64"),
        ('{"start": "yesterday"}', "start must be now, oldest, or a time"),
        ('{"start": "now", "position": "7"}', "not both"),
        ('{"position": ""}', "position must be"),
    ],
)
def test_bad_pulls_are_refused(body, problem):
    with pytest.raises(InvalidRequest, match=problem):
        parse_pull(body.encode())


@pytest.mark.parametrize(
    ("body", "beginning"),
    [
        ("", NOW),
        ('{"start": "now"}', NOW),
        ('{"start": "oldest"}', OLDEST),
        ('{"start": "1970-01-01T00:01:00Z"}', Start(time=60.0)),
        ('{"position": "42"}', Start(position="42")),
    ],
)
def test_beginnings(body, beginning):
    assert parse_pull(body.encode()).beginning == beginning


@pytest.mark.parametrize(
    ("parse", "body", "problem"),
    [
        (parse_ack, "{}", "lockTokens"),
        (parse_ack, '{"lockTokens": []}', "1 to 100 tokens .got 0."),
        (parse_ack, '{"lockTokens": "a"}', "lockTokens"),
        (parse_ack, json.dumps({"lockTokens": 101 * ["a"]}), "1 to 100 tokens"),
        (parse_ack, about('"seconds": 3'), "seconds"),
        (parse_release, about('"delaySeconds": -1'), "delaySeconds must be from 0"),
        (parse_release, about('"delaySeconds": 3601'), "delaySeconds must be"),
        (parse_reject, about(f'"reason": "{1025 * "r"}"'), "reason must be at most 1024"),
        (parse_renew, about('"seconds": 0'), "seconds must be from 1"),
        (parse_renew, about('"seconds": 1e9'), "seconds must be"),
    ],
)
def test_bad_words_about_events_are_refused(parse, body, problem):
    with pytest.raises(InvalidRequest, match=problem):
        parse(body.encode())
