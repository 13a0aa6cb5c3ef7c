from mesh.journal import ring
from mesh.journal.ring import Ring
from mesh.journal.steps import Step, What
from mesh.ports import Topic

TOPIC = Topic("pubsub", "A")


def step(time, reason=""):
    return Step(what=What.ATTEMPT, time=time, topic=TOPIC, reason=reason)


def times(kept, name):
    return [step.time for step in kept.story(name)[0]]


def test_steps_come_back_in_order():
    kept = Ring(0.0)
    kept.note("a", step(1.0))
    kept.note("b", step(2.0))
    kept.note("a", step(3.0))
    assert times(kept, "a") == [1.0, 3.0]
    assert times(kept, "b") == [2.0]
    assert kept.story("c") == ([], 0)
    assert kept.since == 0.0


def test_who_was_longest_without_a_step_is_forgotten_first():
    kept = Ring(0.0, max_events=2)
    for name, time in (("a", 1.0), ("b", 2.0), ("a", 3.0), ("c", 4.0)):
        kept.note(name, step(time))
    assert times(kept, "a") == [1.0, 3.0]
    assert times(kept, "b") == []
    assert kept.since == 2.0


def test_bytes_are_bounded_and_given_back():
    kept = Ring(0.0, max_bytes=100_000)
    for number in range(1000):
        kept.note(f"event {number}", step(float(number), "r" * 200))
        assert kept.bytes <= 100_000
    assert 50 < len(kept) < 200
    assert kept.since == float(1000 - len(kept) - 1)


def test_one_story_that_is_too_long_for_all_bytes_does_no_harm():
    kept = Ring(0.0, max_bytes=1000)
    for number in range(50):
        kept.note("a", step(float(number)))
    assert kept.bytes <= 1000


def test_of_a_long_story_the_beginning_and_the_end_are_kept():
    kept = Ring(0.0)
    for number in range(ring.MAX_STEPS + 50):
        kept.note("a", step(float(number)))
    steps, left_out = kept.story("a")
    assert [step.time for step in steps] == [*map(float, range(ring.MAX_STEPS - 1)), ring.MAX_STEPS + 49.0]
    assert left_out == 50
