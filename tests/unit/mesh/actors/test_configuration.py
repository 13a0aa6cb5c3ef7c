"""What apps say about their actors, and when timers and reminders fire."""

import json

import pytest

from mesh.actors.configuration import InvalidHosting, Settings, read
from mesh.actors.names import InvalidName, actor_name, method_path
from mesh.actors.schedules import Times, of_reminder, of_timer

NOW = 1_700_000_000.0


def test_types_have_the_settings_of_the_top_level_or_their_own() -> None:
    told = {
        "Entities": ["A", "B", "C"],
        "actoridletimeout": "10m",
        "drainOngoingCallTimeout": "60s",
        "drainRebalancedActors": False,
        "reentrancy": {"enabled": True, "maxStackDepth": 7},
        "actorScanInterval": "1s",
        "entitiesConfig": [{"entities": ["B", "X"], "drainOngoingCallTimeout": "3s"}, {"entities": ["C"]}],
    }
    common = Settings(idle_timeout=600, drain_timeout=24, drain=False, reentrant=True, max_stack_depth=7)
    assert read(json.dumps(told).encode()) == {
        "A": common,
        "B": Settings(drain_timeout=3, drain=False),
        "C": Settings(drain_timeout=24, drain=False),
    }


def test_no_entities_are_no_types() -> None:
    assert read(b"{}") == read(b'{"entities": null}') == {}


@pytest.mark.parametrize(
    "answer",
    [
        b"[]",
        b"{",
        b'{"entities": "A"}',
        b'{"entities": ["a/b"]}',
        b'{"entities": ["dapr.internal.x"]}',
        b'{"entities": ["A"], "actorIdleTimeout": "soon"}',
        b'{"entities": ["A"], "actorIdleTimeout": "-1s"}',
        b'{"entities": ["A"], "drainRebalancedActors": 1}',
        b'{"entities": ["A"], "reentrancy": {"maxStackDepth": 0}}',
    ],
)
def test_a_bad_answer_hosts_nothing(answer: bytes) -> None:
    with pytest.raises(InvalidHosting):
        read(answer)


def test_a_bad_value_for_one_type_is_its_default() -> None:
    told = {"entities": ["A"], "entitiesConfig": [{"entities": ["A"], "actorIdleTimeout": "soon"}, 7]}
    assert read(json.dumps(told).encode()) == {"A": Settings()}


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a#", "a?", "a\0", "a\n", "\ud800", "x" * 513])
def test_names_that_none_can_have(name: str) -> None:
    with pytest.raises(InvalidName):
        actor_name("T", name)


def test_paths_are_encoded_so_that_nothing_in_them_can_mean_something_else() -> None:
    assert actor_name("T", "a||b").path == "/actors/T/a||b"
    assert actor_name("T", "é %").path == "/actors/T/%C3%A9%20%25"
    assert method_path("a/../b//c%3F") == "b/c%253F"
    for bad in ("", "/", "a?b", "a#b", ".."):
        with pytest.raises(InvalidName):
            method_path(bad)


def due(times: Times, count: int = 10) -> list[float]:
    """When a reminder fires, in seconds from now."""
    schedule = of_reminder(times, NOW)
    if schedule is None:
        return []
    moments = [schedule.first] if schedule.first is not None else []
    rule = schedule.recurrence
    while rule and len(moments) < (schedule.repeats or count):
        moment = rule.next(moments[-1] if moments else NOW, NOW if schedule.first is None else schedule.first)
        if moment is None or (schedule.until is not None and moment > schedule.until):
            break
        moments.append(moment)
    return [moment - NOW for moment in moments]


@pytest.mark.parametrize(
    ("times", "moments"),
    [
        (Times("5s"), [5]),
        (Times("PT5S"), [5]),
        (Times("2023-11-14T22:13:25Z"), [5]),
        (Times("2001-01-01T00:00:00Z", "R2/PT1H"), None),
        (Times(period="1s", ttl="3s"), [1, 2, 3]),
        (Times(period="R5/PT1S"), [1, 2, 3, 4, 5]),
        (Times("2s", "R3/PT1S"), [2, 3, 4]),
        (Times("2s", "10s", "25s"), [2, 12, 22]),
        (Times(period="R0/PT1S"), [float(number) for number in range(1, 11)]),
        (Times(period="0h0m0s"), [0]),
        (Times("3s", "PT0S"), [3]),
        (Times(period="10s", ttl="3s"), []),
    ],
)
def test_when_a_reminder_fires(times: Times, moments: list[float] | None) -> None:
    assert moments is None or due(times) == moments


@pytest.mark.parametrize(
    "times",
    [
        Times(),
        Times("soon"),
        Times("R2/PT1S"),
        Times(period="R/PT1S"),
        Times(period="P1D"),
        Times(period="P1W"),
        Times(period="R2/P1M"),
        Times("5s", ttl="9s"),
        Times("5s", "1s", "-1s"),
        Times(period="-1s"),
    ],
)
def test_reminders_that_cannot_be(times: Times) -> None:
    with pytest.raises(ValueError, match=r"dueTime|period|ttl"):
        of_reminder(times, NOW)


def test_timers_take_calendars_and_begin_at_once() -> None:
    schedule = of_timer(Times(period="R3/P1M"), NOW)
    assert (schedule.first, schedule.repeats) == (NOW, 3)
    for bad in (Times(period="R0/PT1S"), Times(period="1ms"), Times("1s", "1s", "-2s")):
        with pytest.raises(ValueError, match=r"period|ttl"):
            of_timer(bad, NOW)
