"""Publishing under outbound policies."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh import resources
from mesh.envelope import Publication
from mesh.errors import ApiError, BrokerError, BrokerUnavailable, MessageTooLarge
from mesh.ports import Message, Topic
from mesh.pubsub import Component, PubSub
from mesh.resiliency.targets import Resiliency
from tests.virtual_clock import VirtualClock

MANIFEST = """\
apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata: {name: r}
spec:
  policies:
    retries: {few: {duration: 1s, maxRetries: 2}}
    timeouts: {fast: 2s}
    circuitBreakers: {cb: {trip: consecutiveFailures >= 3, timeout: 60s}}
  targets:
    components: {pubsub: {outbound: {retry: few, timeout: fast, circuitBreaker: cb}}}
"""
EVENT = Publication(topic=Topic("pubsub", "A"), body=b"{}", content_type="application/json")


class Log:
    """Fails as it is told, then stores."""

    def __init__(self, clock: VirtualClock, *failures: Exception | None) -> None:
        self._clock = clock
        self._failures = list(failures)
        self.messages: list[Message] = []

    async def publish(self, _topic: Topic, message: Message) -> str:
        self.messages.append(message)
        if self._failures:
            failure = self._failures.pop(0)
            if failure is None:
                await self._clock.sleep(3600)
            else:
                raise failure
        return "1"


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


def pubsub(folder: Path, clock: VirtualClock, log: Log, manifest: str = MANIFEST) -> PubSub:
    (folder / "r.yaml").write_text(manifest)
    found = resources.load([folder], app_id="app", namespace="", environ={})
    component = Component(name="pubsub", log=log)  # type: ignore[arg-type]
    return PubSub("app", {"pubsub": component}, clock, resiliency=Resiliency(found.resiliency, clock=clock))


async def outcome(clock: VirtualClock, publishing: PubSub) -> str:
    """Empty when it was stored."""
    import asyncio

    task = asyncio.create_task(publishing.publish(EVENT))
    await clock.advance(30)
    try:
        await task
    except ApiError as error:
        return error.message
    return ""


async def test_what_was_not_acknowledged_is_published_again_under_one_id(tmp_path: Path, clock: VirtualClock) -> None:
    log = Log(clock, BrokerUnavailable("no answer"), None)
    assert await outcome(clock, pubsub(tmp_path, clock, log)) == ""
    assert len(log.messages) == 3
    assert len({message.dedupe_id for message in log.messages}) == 1
    assert log.messages[0].dedupe_id


@pytest.mark.parametrize("failure", [BrokerError("refused"), MessageTooLarge(9, 8)])
async def test_what_is_refused_for_good_is_not_tried_again(
    tmp_path: Path, clock: VirtualClock, failure: Exception
) -> None:
    log = Log(clock, failure)
    assert str(failure) in await outcome(clock, pubsub(tmp_path, clock, log))
    assert len(log.messages) == 1


async def test_an_open_breaker_answers_for_the_broker(tmp_path: Path, clock: VirtualClock) -> None:
    log = Log(clock, *[BrokerUnavailable("no answer")] * 3)
    publishing = pubsub(tmp_path, clock, log)
    assert "no answer" in await outcome(clock, publishing)
    assert "circuit breaker is open" in await outcome(clock, publishing)
    assert len(log.messages) == 3


async def test_without_a_policy_nothing_is_added(tmp_path: Path, clock: VirtualClock) -> None:
    log = Log(clock, BrokerUnavailable("no answer"))
    publishing = pubsub(tmp_path, clock, log, MANIFEST.partition("  targets")[0])
    assert "no answer" in await outcome(clock, publishing)
    assert [message.dedupe_id for message in log.messages] == [None]
