"""Publishing, and what becomes of events once they are stored: subscriptions, pull, control, dead letters, replay, and
the journal that tells of all of it."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from mesh import addressing, ids
from mesh.control.control import Control
from mesh.control.setting import Name
from mesh.dead_letters.inbox import Inbox
from mesh.dead_letters.redrive import Redrives
from mesh.dead_letters.store import LetterStore
from mesh.delivery.live import Live
from mesh.inquiry import Inquirer, Witness
from mesh.journal import testimony
from mesh.journal.mode import JournalMode
from mesh.journal.recorder import Recorder
from mesh.pubsub import Component, Later, PubSub
from mesh.pull.block import Pulls
from mesh.replay.replays import Items, Replays
from mesh.runs import Crew
from mesh.subscriber import Subscriber
from mesh.subscriptions import SubscriptionSpec
from sidecar.api.dead_letters import DeadLettersApi
from sidecar.api.events import EventsApi
from sidecar.api.journal import JournalApi
from sidecar.api.plans import PlansApi
from sidecar.api.publish import PublishApi
from sidecar.api.publish_bulk import BulkPublishApi
from sidecar.api.pull import PullApi
from sidecar.api.replays import ReplaysApi
from sidecar.api.subscriptions import SubscriptionsApi
from sidecar.blocks.common import Api, Common
from sidecar.runtime import Runtime


class Delivery:
    def __init__(
        self,
        common: Common,
        *,
        taking_events: Callable[[], Sequence[SubscriptionSpec] | None],
        play_items: Items,
        live_items: Callable[[], Mapping[Name, Live]],
        later: Later,
    ) -> None:
        """`taking_events` are the subscriptions of an app that takes events now. `play_items` and `live_items` are what
        the input bindings have to say: their items are delivered like events. `later` keeps what is not to be published
        yet."""
        app_id, clock, tables = common.app_id, common.clock, common.backbone.tables
        settings, pubsubs = common.settings, common.components.of("pubsub")
        self._common = common
        self._live_items = live_items
        self._replica = f"{app_id}-{ids.random_id()[:8]}"  # tells the replicas of the app apart
        self.recorder = (
            None
            if settings.journal is JournalMode.OFF
            else Recorder(app_id, clock, sampled=settings.journal is JournalMode.SAMPLED)
        )
        self.watch = None if self.recorder is None else self.recorder.watch
        self.letters = LetterStore(tables, app_id, kept_for=settings.dead_letters_kept)
        self.control = Control(self._replica, tables.table(app_id), clock)
        self.pubsub = PubSub(
            app_id,
            pubsubs,
            clock,
            resiliency=common.resiliency,
            telemetry=common.telemetry,
            watch=self.recorder,
            later=later,
        )
        self.subscriber = None if common.channel is None else self._subscriber(common)
        self._pulls = Pulls(
            app_id,
            self._replica,
            pubsubs,
            clock,
            resiliency=common.resiliency,
            is_pushed=self._is_pushed,
            dead_letters=self.letters,
            watch=self.watch,
            telemetry=common.telemetry,
        )
        self._steer()
        of_inputs = Component(name=addressing.BINDINGS, log=common.backbone.log)
        self._with_inputs = ChainMap({of_inputs.name: of_inputs}, cast(dict[str, Component], pubsubs))
        self._inbox = Inbox(self.letters, pubsubs, clock)
        self._redrives = Redrives(
            PubSub(app_id, self._with_inputs, clock, resiliency=common.resiliency, telemetry=common.telemetry),
            self._inbox,
            tables,
            clock,
        )
        self._replays = Replays(
            app_id,
            self._with_inputs,
            tables,
            clock,
            channel=common.channel,
            subscriptions=taking_events,
            resiliency=common.resiliency,
            items=play_items,
            dead_letters=self.letters,
            watch=self.watch,
            telemetry=common.telemetry,
        )
        self._crew = Crew(tables, app_id, clock)
        self._crew.works_on(self._redrives.runs, self._redrives.work)
        self._crew.works_on(self._replays.runs, self._replays.work)
        self._journal = tables.table(addressing.JOURNAL_SCOPE)

    def _subscriber(self, common: Common) -> Subscriber:
        assert common.channel is not None  # noqa: S101 - without an app nothing is pushed
        return Subscriber(
            common.app_id,
            common.components.of("pubsub"),
            common.channel,
            common.clock,
            resiliency=common.resiliency,
            dead_letters=self.letters,
            watch=self.watch,
            telemetry=common.telemetry,
        )

    def _is_pushed(self, name: Name) -> bool:
        return self.subscriber is not None and not name.group and name[:2] in self.subscriber.running()

    def _steer(self) -> None:
        """Let `control` say how much each subscription takes, whether its events are pushed or pulled."""
        control = self.control
        self._pulls.began.append(lambda name, live: control.steer(name, live.gate))
        self._pulls.ended.append(lambda name, live: control.let_go(name, live.gate))
        if self.subscriber is not None:
            self.subscriber.began.append(
                lambda one: control.steer(Name(one.spec.pubsub, one.spec.topic), one.live.gate)
            )
            self.subscriber.ended.append(
                lambda one: control.let_go(Name(one.spec.pubsub, one.spec.topic), one.live.gate)
            )

    def running(self) -> dict[Name, Live]:
        """What this sidecar takes, pushed or pulled, with the items of input bindings."""
        pushed = {} if self.subscriber is None else self.subscriber.running()
        live = {Name(*name): one.live for name, one in pushed.items()}
        return {**live, **self._pulls.running(), **self._live_items()}

    def apis(self) -> list[Api]:
        app_id, limit = self._common.app_id, self._common.body_limit
        return [
            PublishApi(self.pubsub, limit),
            BulkPublishApi(self.pubsub, limit),
            EventsApi(self.pubsub, limit),
            PlansApi(self.subscriber),
            SubscriptionsApi(app_id, self.control, self._with_inputs, self.running),
            PullApi(self._pulls),
            JournalApi(Inquirer(testimony.SUBJECT, self._journal, self._common.clock), self._inbox),
            DeadLettersApi(app_id, self._inbox, self._redrives),
            ReplaysApi(app_id, self._replays),
        ]

    def join(self, runtime: Runtime) -> None:
        """Begin and end with the sidecar."""
        if self.recorder is not None:
            answers = testimony.answers(self.recorder.testify)
            runtime.companions.append(
                Witness(testimony.SUBJECT, self._replica, self._journal, self._common.clock, answers)
            )
        runtime.companions += [self._inbox, self._crew]
        runtime.ending.append(self._pulls.turn_away)
        runtime.closing += [self._pulls.close, self.control.stop]
