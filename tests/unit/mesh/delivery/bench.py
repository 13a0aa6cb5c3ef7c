"""One subscription with an app made of answers, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

from brokers.memory import MemoryEventLog
from mesh.delivery import Deliverer, DeliveryWatch, EventTarget, Letter, Plan
from mesh.delivery.live import Live
from mesh.errors import BrokerUnavailable
from mesh.ports import AppResponse, AppRoute, Group, HeaderLines, Message, Mode, Subscription, Topic
from mesh.routing import Routing
from mesh.telemetry import Deliveries, NoMeter, Telemetry
from tests.virtual_clock import VirtualClock

TOPIC = Topic("pubsub", "A")
DEAD = Topic("pubsub", "dead")
Answer = AppResponse | Exception | None

EVENT = b'{"specversion":"1.0","id":"1","source":"/a","type":"t","data":1}'


def answer(status: int, body: bytes = b"") -> AppResponse:
    return AppResponse(status, [], body)


class App:
    """An app whose answers the test queues; `None` never answers. Out of answers it answers 200."""

    def __init__(self, clock: VirtualClock) -> None:
        self.calls: list[tuple[float, bytes, bytes]] = []
        self.answers: list[Answer] = []
        self.open: list[asyncio.Future[AppResponse]] = []
        self.path = ""
        self._clock = clock

    def prepare(self, _method: str, path: str, _fixed_headers: Sequence[tuple[str, str]] = ()) -> AppRoute:
        self.path = path
        return self

    def header_lines(self, headers: Sequence[tuple[str, str]]) -> HeaderLines:
        return HeaderLines("".join(f"{name}: {value}\r\n" for name, value in headers).encode())

    def send(
        self, body: bytes = b"", extra_headers: HeaderLines | None = None, *, timeout: float
    ) -> asyncio.Future[AppResponse]:
        self.calls.append((self._clock.now(), body, extra_headers or b""))
        call: asyncio.Future[AppResponse] = asyncio.get_running_loop().create_future()
        planned = self.answers.pop(0) if self.answers else answer(200)
        if planned is None:
            self.open.append(call)
        elif isinstance(planned, Exception):
            call.set_exception(planned)
        else:
            call.set_result(planned)
        return call

    @property
    def times(self) -> list[float]:
        return [round(moment - self.calls[0][0], 3) for moment, _, _ in self.calls]


class SkipMeter(NoMeter):
    """Notes what was skipped."""

    def __init__(self, skipped: list[str]) -> None:
        self._skipped = skipped

    def deliveries(self, pubsub: str, topic: str) -> Deliveries:
        counted = super().deliveries(pubsub, topic)
        return cast(
            Deliveries,
            SimpleNamespace(**{name: getattr(counted, name) for name in COUNTED}, skipped=self._skipped.append),
        )


COUNTED = ("begin", "end", "retried", "dead_lettered", "expired")


class Store:
    """Keeps letters, unless it is told to fail."""

    def __init__(self) -> None:
        self.letters: dict[str, Letter] = {}
        self.failures = 0

    async def keep(self, letter: Letter) -> None:
        if self.failures:
            self.failures -= 1
            raise BrokerUnavailable("the store is away")
        self.letters[letter.position] = letter

    @property
    def only(self) -> Letter:
        (letter,) = self.letters.values()
        return letter


class Bench:
    """A subscription to `TOPIC` by its plan, on the reference log."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.log = MemoryEventLog(self.clock)
        self.app = App(self.clock)
        self.dead: list[Message] = []
        self.live: Live
        self.deliverer: Deliverer
        self.subscription: Subscription
        self.skipped: list[str] = []

    async def subscribe(
        self,
        plan: Plan,
        *,
        to: str | Routing = "/A",
        raw: bool = False,
        store: Store | None = None,
        watch: DeliveryWatch | None = None,
    ) -> None:
        await self.log.start()
        self.live = Live(
            group=Group("app", TOPIC),
            target=EventTarget(TOPIC, to, self.app, raw_payload=raw),  # type: ignore[arg-type]
            plan=plan,
            log=self.log,
            channel=self.app,  # type: ignore[arg-type]
            clock=self.clock,
            dead_letters=store,
            watch=watch,
            telemetry=Telemetry(meter=SkipMeter(self.skipped)),
        )
        self.live.begin()
        await self.clock.settle()
        self.deliverer = self.live.deliverer
        assert self.live.subscription is not None
        self.subscription = self.live.subscription
        stored = self.log.publish

        async def publish(topic: Topic, message: Message) -> str:
            if topic == DEAD:
                self.dead.append(message)
            return await stored(topic, message)

        self.log.publish = publish  # type: ignore[method-assign]

    async def publish(self, payload: bytes = EVENT, **more: object) -> None:
        await self.log.publish(TOPIC, Message(mode=Mode.STRUCTURED, payload=payload, **more))  # type: ignore[arg-type]
        await self.clock.settle()
