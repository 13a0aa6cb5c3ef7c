"""The story of an event, from the hooks of publish and delivery to what the API says, over several sidecars."""

import asyncio

import msgspec
import pytest

from brokers.memory_tables import MemoryTables
from mesh import addressing, inquiry
from mesh.delivery.target import Judgement, Verdict
from mesh.delivery.watch import Outcome
from mesh.errors import BrokerUnavailable
from mesh.inquiry import Answers, Inquirer, Witness
from mesh.journal import story, testimony
from mesh.journal.recorder import SAMPLE, Recorder
from mesh.journal.ring import Ring
from mesh.journal.steps import identity
from mesh.journal.testimony import Question
from mesh.ports import Group, Message, Mode, Topic
from mesh.routing import Skipped
from tests.virtual_clock import VirtualClock

START = 1_700_000_000.0
ORDERS = Topic("pubsub", "orders")
BILLING = Group("billing", ORDERS)
QUESTION = Question("shop", "7")


def structured(**attributes):
    event = {"specversion": "1.0", "type": "t", "source": "shop", "id": "7", "data": {"id": "x", "source": [1]}}
    return Message(mode=Mode.STRUCTURED, payload=msgspec.json.encode(event | attributes))


class Stored(msgspec.Struct):
    """A `Record`."""

    message: Message
    position: str = "12"
    topic: str = "orders"
    headers: dict[str, str] = {}

    @property
    def mode(self):
        return self.message.mode

    @property
    def payload(self):
        return self.message.payload

    @property
    def attributes(self):
        return self.message.attributes


@pytest.fixture
def clock():
    return VirtualClock(START)


def told(*recorders, silent=(), question=QUESTION):
    given = {f"sidecar-{n}": testimony.encode(one.testify(question)) for n, one in enumerate(recorders)}
    return story.tell(question, Answers(given, list(silent)))


def lines(content):
    """What happened, with all but what is the same everywhere."""
    same = {"time", "pubsubname", "topic", "sidecar"}
    return [{name: value for name, value in line.items() if name not in same} for line in content["steps"]]


async def test_delivered_after_a_retry_by_another_app(clock):
    shop, billing = Recorder("shop", clock), Recorder("billing", clock)
    await clock.advance(0.25)
    shop.stored(ORDERS, structured(), "12", clock.now() - 0.25)
    watch, record = billing.watch(BILLING), Stored(structured())
    await clock.advance(1.0)
    watch.attempted(record, 1, Judgement(Verdict.RETRY, "the app answered 503", 503), 0.5, 2.0)
    await clock.advance(2.5)
    watch.attempted(record, 2, Judgement(Verdict.SUCCESS, status=200), 0.004, None)
    watch.settled(record, Outcome.ACKED)

    content = told(billing, shop).content
    assert lines(content) == [
        {"what": "accepted", "app": "shop"},
        {"what": "stored", "app": "shop", "position": "12"},
        {
            "what": "attempt",
            "app": "billing",
            "position": "12",
            "attempt": 1,
            "status": 503,
            "outcome": "retry",
            "reason": "the app answered 503",
            "durationMs": 500.0,
            "next": "2023-11-14T22:13:23.250000Z",
        },
        {
            "what": "attempt",
            "app": "billing",
            "position": "12",
            "attempt": 2,
            "status": 200,
            "outcome": "success",
            "durationMs": 4.0,
        },
        {"what": "acked", "app": "billing", "position": "12"},
    ]
    assert [line["time"] for line in content["steps"]] == [
        "2023-11-14T22:13:20.000000Z",
        "2023-11-14T22:13:20.250000Z",
        "2023-11-14T22:13:20.750000Z",
        "2023-11-14T22:13:23.746000Z",
        "2023-11-14T22:13:23.750000Z",
    ]
    assert content["subscriptions"] == [
        {"app": "billing", "pubsubname": "pubsub", "topic": "orders", "state": "acked", "attempts": 2}
    ]
    assert content["complete"] is True


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (Outcome.DEAD, "dead-lettered"),
        (Outcome.EXPIRED, "expired"),
        (Outcome.DROPPED, "dropped"),
        (Outcome.RELEASED, "released"),
    ],
)
async def test_other_ends(clock, outcome, state):
    recorder = Recorder("billing", clock)
    watch, record = recorder.watch(BILLING), Stored(structured())
    watch.attempted(record, 1, Judgement(Verdict.RETRY, "the app broke off"), 0.5, None)
    watch.settled(record, outcome)
    content = told(recorder).content
    assert [(line["what"], line.get("outcome"), line.get("reason")) for line in content["steps"]] == [
        ("attempt", "failed", "the app broke off"),
        (state, None, None),
    ]
    assert content["subscriptions"][0]["state"] == state


async def test_skipped_says_why(clock):
    recorder = Recorder("billing", clock)
    watch, record = recorder.watch(BILLING), Stored(structured())
    watch.skipped(record, Skipped.FILTER)
    watch.settled(record, Outcome.ACKED)
    assert lines(told(recorder).content) == [
        {"what": "skipped", "app": "billing", "position": "12", "reason": "its filters do not let it through"}
    ]


@pytest.mark.parametrize(
    ("outcome", "what"), [(Outcome.EXPIRED, ["expired"]), (Outcome.DEAD, ["expired", "dead-lettered"])]
)
async def test_expired_before_an_attempt(clock, outcome, what):
    recorder = Recorder("billing", clock)
    watch, record = recorder.watch(BILLING), Stored(structured())
    watch.skipped(record, Skipped.EXPIRED)
    watch.settled(record, outcome)
    assert [line["what"] for line in told(recorder).content["steps"]] == what


async def test_an_event_without_a_route_becomes_a_dead_letter(clock):
    recorder = Recorder("billing", clock)
    watch, record = recorder.watch(BILLING), Stored(structured())
    watch.skipped(record, Skipped.RULES)
    watch.settled(record, Outcome.DEAD)
    assert [line["what"] for line in told(recorder).content["steps"]] == ["skipped", "dead-lettered"]


@pytest.mark.parametrize(("header", "what"), [(addressing.REDRIVEN, "redriven"), (addressing.REPLAYED, "replayed")])
async def test_what_is_sent_again_says_so_once(clock, header, what):
    recorder = Recorder("billing", clock)
    watch, record = recorder.watch(BILLING), Stored(structured(), headers={header: "run-1"})
    watch.attempted(record, 1, Judgement(Verdict.RETRY, "no", 500), 0.1, 1.0)
    watch.attempted(record, 2, Judgement(Verdict.SUCCESS, status=200), 0.1, None)
    assert [(line["what"], line.get("to")) for line in lines(told(recorder).content)] == [
        (what, "run-1"),
        ("attempt", None),
        ("attempt", None),
    ]


async def test_a_publish_that_the_broker_did_not_take(clock):
    recorder = Recorder("shop", clock)
    recorder.refused(ORDERS, structured(), BrokerUnavailable("no answer in 5 s"), clock.now() - 5)
    content = told(recorder).content
    assert lines(content) == [
        {"what": "accepted", "app": "shop"},
        {"what": "refused", "app": "shop", "reason": "no answer in 5 s"},
    ]
    assert content["complete"] is False


async def test_several_groups_and_topics_of_an_app_are_told_apart(clock):
    recorder = Recorder("billing", clock)
    for group, topic in ((BILLING, "orders"), (Group("billing", ORDERS, "late"), "orders"), (BILLING, "orders.eu")):
        watch, record = recorder.watch(group), Stored(structured(), topic=topic)
        watch.attempted(record, 1, Judgement(Verdict.SUCCESS, status=200), 0.1, None)
        watch.settled(record, Outcome.ACKED)
    subscriptions = told(recorder).content["subscriptions"]
    assert [(one["topic"], one.get("group"), one["attempts"]) for one in subscriptions] == [
        ("orders", None, 1),
        ("orders", "late", 1),
        ("orders.eu", None, 1),
    ]


async def test_what_was_not_noted_down_is_said(clock):
    shop = Recorder("shop", clock)
    shop.stored(ORDERS, structured(), "12", clock.now())
    assert told(shop).content["complete"] is True
    await clock.advance(1)
    later = Recorder("billing", clock)
    content = told(shop, later, silent=["sidecar-9"]).content
    assert content["complete"] is False
    assert content["gaps"] == [
        "sidecar sidecar-9 has a journal and did not answer",
        "sidecar sidecar-1 remembers nothing from before 2023-11-14T22:13:21.000000Z",
    ]
    garbled = story.tell(QUESTION, Answers({"x": b"{"}, []))
    assert garbled.known is False
    assert "sidecar x gave an answer that cannot be read" in garbled.content["gaps"]


async def test_a_sample_has_the_same_events_everywhere(clock):
    recorders = [Recorder(name, clock, sampled=True, ring=Ring(0.0)) for name in ("a", "b")]
    for number in range(20 * SAMPLE):
        for recorder in recorders:
            recorder.stored(ORDERS, structured(id=str(number)), "1", clock.now())
    there = [
        {number for number in range(20 * SAMPLE) if recorder.testify(Question("shop", str(number))).steps}
        for recorder in recorders
    ]
    assert there[0] == there[1]
    assert 5 <= len(there[0]) <= 50
    missing = next(number for number in range(100) if number not in there[0])
    content = told(recorders[0], question=Question("shop", str(missing))).content
    assert content["gaps"][0] == "sidecar sidecar-0 notes down a sample of all events, and this is not in it"


@pytest.mark.parametrize(
    "message",
    [
        Message(mode=Mode.RAW, payload=b'{"source": "a", "id": "b"}'),
        Message(mode=Mode.STRUCTURED, payload=b"{"),
        Message(mode=Mode.STRUCTURED, payload=None),
        Message(mode=Mode.STRUCTURED, payload=b"[]"),
        Message(mode=Mode.STRUCTURED, payload=b'{"source": "a"}'),
        Message(mode=Mode.STRUCTURED, payload=b'{"source": "a", "id": 7}'),
        Message(mode=Mode.STRUCTURED, payload=b'{"source": "a", "id": "\xff"}'),
        Message(mode=Mode.STRUCTURED, payload=b'{"source":"a","id":"b","data":' + b"[" * 100_000),
        Message(mode=Mode.BINARY, payload=b"", attributes={"id": "b"}),
    ],
)
def test_what_is_no_event_is_not_noted_down(message):
    assert identity(message) is None


def test_binary_and_structured_events_have_the_same_name():
    binary = Message(mode=Mode.BINARY, payload=b"", attributes={"source": "shop", "id": "7"})
    assert identity(binary) == identity(structured()) == addressing.identity("shop", "7")


async def test_sidecars_are_asked_through_a_table(clock):
    table = MemoryTables(clock).table(addressing.JOURNAL_SCOPE)
    recorders = {name: Recorder(name, clock) for name in ("shop", "billing")}
    witnesses = [
        Witness(testimony.SUBJECT, f"{name}-1", table, clock, testimony.answers(recorder.testify))
        for name, recorder in recorders.items()
    ]
    for witness in witnesses:
        witness.start()
    await clock.settle()
    recorders["shop"].stored(ORDERS, structured(), "12", clock.now())
    inquirer = Inquirer(testimony.SUBJECT, table, clock)
    answers = await inquirer.ask(testimony.encode_question(QUESTION))
    assert story.tell(QUESTION, answers).content["steps"][0]["sidecar"] == "shop-1"
    garbled = asyncio.create_task(inquirer.ask(b"what?"))
    await clock.advance(inquiry.PATIENCE)
    assert (await garbled).silent == ["billing-1", "shop-1"]
    await asyncio.gather(*(witness.close() for witness in witnesses))


async def test_attempts_that_nobody_remembers_are_a_gap(clock):
    shop, gone, billing = Recorder("shop", clock), Recorder("billing", clock), Recorder("billing", clock)
    shop.stored(ORDERS, structured(), "12", clock.now())
    record = Stored(structured())
    for recorder, attempt in ((gone, 1), (billing, 2), (billing, 3)):
        recorder.watch(BILLING).attempted(record, attempt, Judgement(Verdict.RETRY, "no", 500), 0.1, 1.0)
    assert told(shop, gone, billing).content["complete"] is True
    content = told(shop, billing).content
    assert content["complete"] is False
    assert content["gaps"] == ["of 3 attempts of app billing for topic orders, 1 are not remembered"]


@pytest.mark.parametrize(
    "garbage",
    [
        b"?",
        b"[" * 100_000,
        b'{"app":"a","since":1e300}',
        b'{"app":"a","since":-1}',
        b'{"app":"a","since":1,"steps":[{"what":"stored","time":1e30,"topic":["p","t"]}]}',
        b'{"app":"a","since":1,"steps":[{"what":"attempt","time":1,"topic":["p","t"],"next":1e300}]}',
    ],
    ids=range(6),
)
async def test_testimony_that_cannot_be_is_a_gap(clock, garbage):
    shop = Recorder("shop", clock)
    shop.stored(ORDERS, structured(), "12", clock.now())
    given = {"good": testimony.encode(shop.testify(QUESTION)), "bad": garbage}
    content = story.tell(QUESTION, Answers(given, [])).content
    assert content["gaps"] == ["sidecar bad gave an answer that cannot be read"]
    assert [line["what"] for line in content["steps"]] == ["accepted", "stored"]


async def test_texts_count_by_the_memory_that_they_take(clock):
    small, large = Ring(0.0), Ring(0.0)
    for ring, letter in ((small, "x"), (large, "\N{PILE OF POO}")):
        source = letter * 1000
        Recorder("shop", clock, ring=ring).stored(ORDERS, structured(source=source), "1", 0.0)
    assert large.bytes - small.bytes >= 3000


async def test_what_is_in_hand_is_told_until_it_is_answered(clock):
    billing = Recorder("billing", clock)
    watch, record, other = billing.watch(BILLING), Stored(structured()), Stored(structured(id="8"))
    watch.started(other, 1, clock.now())
    watch.held(record, "nobody listens", clock.now())
    assert [line["what"] for line in lines(told(billing).content)] == ["held"]
    watch.started(record, 3, clock.now())
    content = told(billing).content
    assert lines(content) == [{"what": "started", "app": "billing", "position": "12", "attempt": 3}]
    assert (content["subscriptions"][0]["state"], content["subscriptions"][0]["attempts"]) == ("started", 1)
    watch.attempted(record, 3, Judgement(Verdict.RETRY, "no", 500), 0.1, 1.0)
    assert [line["what"] for line in lines(told(billing).content)] == ["attempt"]
    watch.started(record, 4, clock.now())
    watch.settled(record, Outcome.RELEASED)
    assert [line["what"] for line in lines(told(billing).content)] == ["attempt", "released"]
