"""Dead letters are sent again: each once, at the pace, as they were, and whatever happens to who sends them."""

import msgspec
import pytest

from mesh import addressing
from mesh.dead_letters.redrive import Destination
from mesh.dead_letters.selection import Filter
from mesh.delivery.letters import marked
from mesh.envelope import KEPT_EXPIRED
from mesh.errors import ApiError, BrokerError, BrokerUnavailable
from mesh.ids import utc_time
from mesh.ports import Message, Mode, Topic
from mesh.runs import MOST, State, TooManyRuns
from tests.unit.mesh.dead_letters.bench import ORDERS, TRACE, Bench, event, letter, settle

ALL = Filter()


async def test_all_are_sent_to_where_they_came_from_for_this_app_alone(bench):
    await bench.keep(*(letter(number, died=float(number)) for number in range(50)))
    bench.join()
    run = await bench.run(await bench.redrives.start(ALL, rate=500.0), 5)
    assert (run.state, run.matched, run.sent, run.failed) == (State.DONE, 50, 50, 0)
    assert run.finished is not None
    for number, (topic, message) in enumerate(bench.published):
        assert topic == ORDERS
        assert message.headers == {
            "traceparent": TRACE,
            addressing.REDRIVEN: run.id,
            addressing.ONLY_FOR: "app1",
        }
        sent = msgspec.json.decode(message.payload)
        assert sent == msgspec.json.decode(event(number)) | {addressing.REDRIVEN: run.id}
    assert len(bench.published) == 50
    assert await bench.ids(ALL) == []


async def test_the_pace(bench):
    await bench.keep(*(letter(number) for number in range(100)))
    bench.join()
    run = await bench.redrives.start(ALL, rate=20.0)
    await bench.run(run, 2.0)
    assert 38 <= len(bench.published) <= 44
    assert (await bench.redrives.runs.get("app1", run.id)).sent == len(bench.published)
    await bench.run(run, 3.2)
    assert len(bench.published) == 100
    assert bench.times[-1] - bench.times[0] == pytest.approx(98 / 20)


async def test_less_than_one_a_second(bench):
    await bench.keep(letter(1), letter(2, died=1.0))
    bench.join()
    await bench.redrives.start(ALL, rate=0.1)
    await bench.clock.advance(30)
    assert bench.times[1] - bench.times[0] == pytest.approx(10)


@pytest.mark.parametrize("mode", list(Mode))
async def test_the_event_is_as_its_publisher_made_it(bench, mode):
    """Without what a dead letter topic added, and without an earlier mark."""
    attributes = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "partitionkey": "k", "n": 7}
    payload = b'{"specversion": "1.0", "partitionkey": "k", "n" : 1e400, "data":{"b":1,"a":[ 2]}}'
    original = {
        Mode.BINARY: Message(mode=mode, payload=b"\xff", attributes=attributes, key="k"),
        Mode.STRUCTURED: Message(mode=mode, payload=payload, key="other"),
        Mode.RAW: Message(mode=mode, payload=b"\xff", content_type="text/x", key="k", headers={"baggage": "a=b"}),
    }[mode]
    came = marked(letter(1, message=original))
    before = {**came.headers, addressing.REDRIVEN: "earlier", addressing.ONLY_FOR: "x", addressing.REPLAYED: "y"}
    died = letter(1, message=msgspec.structs.replace(came, headers=before))
    await bench.keep(died)
    bench.join()
    run = await bench.run(await bench.redrives.start(ALL, everyone=True), 1)
    [(_, sent)] = bench.published
    assert sent.mode is mode
    assert sent.headers == {**original.headers, addressing.REDRIVEN: run.id}
    assert sent.content_type == original.content_type
    assert sent.key == original.key
    if mode is Mode.BINARY:
        assert sent.attributes == attributes | {addressing.REDRIVEN: run.id}
        assert sent.payload == b"\xff"
    elif mode is Mode.RAW:
        assert sent.payload == b"\xff"
    else:
        assert b'"n":1e400' in sent.payload  # as it stood
        assert b'"data":{"b":1,"a":[ 2]}' in sent.payload
        assert b"knative" not in sent.payload
        assert b'"meshwirereason"' not in sent.payload


async def test_elsewhere(bench):
    await bench.keep(letter(1))
    bench.join()
    await bench.run(await bench.redrives.start(ALL, to=Destination("other", "spare")), 1)
    [(topic, message)] = bench.published
    assert topic == Topic("other", "ns-spare")
    assert addressing.ONLY_FOR not in message.headers


async def test_only_what_is_meant(bench):
    await bench.keep(*(letter(number, status=400 + number % 2) for number in range(10)))
    bench.join()
    run = await bench.run(await bench.redrives.start(Filter(status=401)), 1)
    assert (run.matched, run.sent) == (5, 5)
    assert len(await bench.ids(Filter(status=400))) == 5


async def test_topics_out_of_scope():
    async with Bench(scopes={"publishingScopes": "app1=spare"}) as bench:
        await bench.keep(letter(1))
        for how in ({"to": Destination("pubsub", "orders")}, {"everyone": True}):
            with pytest.raises(ApiError, match="not allowed for app id app1") as refusal:
                await bench.redrives.start(ALL, **how)
            assert refusal.value.status == 403
        with pytest.raises(ApiError, match="pubsub nope is not found"):
            await bench.redrives.start(ALL, to=Destination("nope", "spare"))
        bench.join()
        await bench.redrives.start(ALL, to=Destination("pubsub", "spare"))
        await bench.clock.advance(1)
        assert len(bench.published) == 1


async def test_an_event_that_dies_again_is_not_sent_again_by_the_same_run(bench):
    """Also when the clock of who notes its death is behind."""
    await bench.keep(letter(1), letter(2, died=1.0))
    bench.join()
    run = await bench.redrives.start(ALL, rate=1.0)
    await settle()
    [(_, message)] = bench.published
    await bench.keep(letter(3, message=message, died=0.0))
    run = await bench.run(run, 10)
    assert (run.state, len(bench.published)) == (State.DONE, 2)
    assert await bench.ids(ALL) == ["1"]


async def test_what_died_later_is_not_meant(bench):
    await bench.keep(letter(1, died=bench.clock.now() - 1), letter(2, died=bench.clock.now() + 1))
    bench.join()
    await bench.run(await bench.redrives.start(ALL), 1)
    assert [message.dedupe_id.split("\0")[-1] for _, message in bench.published] == ["1".zfill(20)]


async def test_expired_events_stay(bench):
    late = Message(mode=Mode.STRUCTURED, payload=event(1, expirytime=utc_time(bench.clock.now() - 1)))
    early = Message(mode=Mode.STRUCTURED, payload=event(2, expirytime=utc_time(bench.clock.now() + 100)))
    await bench.keep(letter(1, message=late), letter(2, message=early))
    bench.join()
    run = await bench.run(await bench.redrives.start(ALL), 1)
    assert (run.state, run.sent, run.expired) == (State.DONE, 1, 1)
    assert bench.published[0][1].ttl == pytest.approx(100 + KEPT_EXPIRED, abs=1)
    assert await bench.ids(ALL) == ["1"]


async def test_what_the_broker_refuses_stays(bench):
    await bench.keep(letter(1), letter(2), letter(3))
    bench.refuse = lambda _, message: BrokerError("no room") if b'"id":"2"' in message.payload else None
    bench.join()
    run = await bench.run(await bench.redrives.start(ALL), 1)
    assert (run.state, run.sent, run.failed, run.error) == (State.DONE, 2, 1, "no room")
    assert await bench.ids(ALL) == ["2"]


async def test_an_outage_is_waited_out_with_the_same_ids(bench):
    await bench.keep(*(letter(number) for number in range(10)))
    tried = []

    def refuse(_, message):
        tried.append(message.dedupe_id)
        return BrokerUnavailable("silent") if len(tried) <= 30 else None

    bench.refuse = refuse
    bench.join()
    run = await bench.run(await bench.redrives.start(ALL), 10)
    assert (run.state, run.sent, run.error) == (State.DONE, 10, "silent")
    assert len(tried) == 40 and len(set(tried)) == 10


async def test_another_sidecar_carries_on_where_one_is_killed(bench):
    await bench.keep(*(letter(number) for number in range(40)))
    first = bench.join()
    run = await bench.redrives.start(ALL, rate=10.0)
    await bench.clock.advance(2)
    assert 0 < len(bench.published) < 40
    bench.join()
    await first.close()
    run = await bench.run(run, 20)
    assert (run.state, run.sent) == (State.DONE, 40)
    assert len({message.dedupe_id for _, message in bench.published}) == 40 == len(bench.published)


async def test_two_sidecars_do_not_do_it_twice(bench):
    await bench.keep(*(letter(number) for number in range(40)))
    for _ in range(3):
        bench.join()
    run = await bench.run(await bench.redrives.start(ALL, rate=10.0), 10)
    assert (run.state, run.sent, len(bench.published)) == (State.DONE, 40, 40)


async def test_a_run_that_began_without_a_sidecar_is_found(bench):
    await bench.keep(letter(1))
    run = await bench.redrives.start(ALL)
    bench.join()
    assert (await bench.run(run, 1)).state is State.DONE


async def test_cancel(bench):
    await bench.keep(*(letter(number) for number in range(40)))
    bench.join(), bench.join()
    run = await bench.redrives.start(ALL, rate=10.0)
    await bench.clock.advance(1)
    assert (await bench.redrives.runs.cancel("app1", run.id)).state is State.CANCELLING
    run = await bench.run(run, 1)
    assert run.state is State.CANCELLED
    sent = len(bench.published)
    assert 5 < sent < 20
    await bench.clock.advance(10)
    assert len(bench.published) == sent == run.sent
    assert (await bench.redrives.runs.cancel("app1", run.id)).state is State.CANCELLED
    assert await bench.redrives.runs.cancel("app1", "nope") is None


async def test_runs_are_listed_and_bounded(bench):
    await bench.keep(letter(1))
    runs = []
    for _ in range(MOST):
        runs.append(await bench.redrives.start(ALL))
        await bench.clock.advance(1)
    assert [run.id for run in await bench.redrives.runs.all("app1")] == [run.id for run in reversed(runs)]
    with pytest.raises(TooManyRuns, match="32 of this kind"):
        await bench.redrives.start(ALL)
