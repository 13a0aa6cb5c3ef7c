"""What Dapr counts, under Dapr's names and labels, and a few numbers of our own (`meshwire_…`)."""

from __future__ import annotations

from time import perf_counter

from mesh.telemetry_settings import MetricsSettings
from sidecar.telemetry.metrics import Counter, Family, Gauge, Histogram, Registry

KEPT_TOPICS = 1000
"""Topics of which publishing is looked up at once. Labels have a narrower bound of their own."""


class TopicPublishes:
    __slots__ = ("_failed", "_in_flight", "_stored")

    def __init__(self, stored: Outcome, failed: Outcome, in_flight: Gauge) -> None:
        self._stored = stored
        self._failed = failed
        self._in_flight = in_flight

    def begin(self) -> float:
        self._in_flight.value += 1
        return perf_counter()

    def end(self, begun: float, stored: bool) -> None:
        self._in_flight.value -= 1
        (self._stored if stored else self._failed).record(begun)


class Outcome:
    """A count and the latencies of what was counted, in milliseconds."""

    __slots__ = ("_count", "_latency")

    def __init__(self, count: Counter, latency: Histogram) -> None:
        self._count = count
        self._latency = latency

    def record(self, begun: float) -> None:
        self._count.inc()
        self._latency.observe(1000 * (perf_counter() - begun))


class TopicDeliveries:
    def __init__(self, families: PubSubFamilies, pubsub: str, topic: str) -> None:
        self._families = families
        self._labels = pubsub, topic
        self._outcomes: dict[tuple[str, str], Outcome] = {}
        own = families.retries, families.dead_letters, families.expired
        self._retries, self._dead_letters, self._expired = (family.labels(pubsub, topic) for family in own)

    def begin(self) -> float:
        return perf_counter()

    def end(self, begun: float, verdict: str, status: str) -> None:
        outcome = self._outcomes.get((verdict, status))
        if outcome is None:
            pubsub, topic = self._labels
            outcome = self._outcomes[verdict, status] = self._families.ingress(pubsub, topic, verdict, status)
        outcome.record(begun)

    def retried(self) -> None:
        self._retries.inc()

    def dead_lettered(self) -> None:
        self._dead_letters.inc()

    def expired(self) -> None:
        self._expired.inc()

    def skipped(self, reason: str) -> None:
        self._families.skipped.labels(*self._labels, reason).inc()


class PubSubFamilies:
    def __init__(self, registry: Registry, settings: MetricsSettings, namespace: str) -> None:
        self._namespace = namespace
        ingress = ("component", "namespace", "process_status", "status", "topic")
        egress = ("component", "namespace", "success", "topic")
        dapr = "dapr_component_pubsub"
        self._ingress = registry.counter(f"{dapr}_ingress_count", "Events brought to the app.", ingress)
        self._ingress_latency = registry.histogram(
            f"{dapr}_ingress_latencies", "Milliseconds that the app took for an event.", settings.buckets, ingress
        )
        self._egress = registry.counter(f"{dapr}_egress_count", "Calls to publish.", egress)
        self._egress_latency = registry.histogram(
            f"{dapr}_egress_latencies", "Milliseconds until the broker had stored it.", settings.buckets, egress
        )
        own = ("component", "topic")
        self.in_flight = registry.gauge("meshwire_publishes_in_flight", "Publishes that await the broker.").labels()
        self.retries = registry.counter("meshwire_retries_total", "Deliveries that will be tried again.", own)
        self.dead_letters = registry.counter("meshwire_dead_letters_total", "Events put on a dead letter topic.", own)
        self.expired = registry.counter("meshwire_expired_total", "Events that ended before their delivery.", own)
        self.skipped = registry.counter(
            "meshwire_skipped_total", "Events that filters or rules kept from the app.", (*own, "reason")
        )

    def egress(self, pubsub: str, topic: str, success: str) -> Outcome:
        values = pubsub, self._namespace, success, topic
        return Outcome(self._egress.labels(*values), self._egress_latency.labels(*values))

    def ingress(self, pubsub: str, topic: str, verdict: str, status: str) -> Outcome:
        values = pubsub, self._namespace, verdict, status, topic
        return Outcome(self._ingress.labels(*values), self._ingress_latency.labels(*values))


class InvocationCalls:
    """Dapr's names for the two labels are kept: `src_app_id` of an answer is the app that answers."""

    def __init__(self, registry: Registry, settings: MetricsSettings) -> None:
        dapr = "dapr_runtime_service_invocation"
        self._sent = registry.counter(f"{dapr}_req_sent_total", "Calls to other apps.", ("dst_app_id", "type"))
        self._received = registry.counter(f"{dapr}_req_recv_total", "Calls from other apps.", ("src_app_id",))
        self._replied = registry.counter(f"{dapr}_res_sent_total", "Answers to other apps.", ("dst_app_id", "status"))
        self._answers = registry.counter(
            f"{dapr}_res_recv_total", "Answers of other apps.", ("src_app_id", "status", "type")
        )
        self._latency = registry.histogram(
            f"{dapr}_res_recv_latency_ms",
            "Milliseconds until the answer was there.",
            settings.buckets,
            ("src_app_id", "status"),
        )

    def sent(self, target: str, kind: str) -> float:
        self._sent.labels(target, kind).inc()
        return perf_counter()

    def answered(self, begun: float, target: str, status: int, kind: str) -> None:
        self._answers.labels(target, str(status), kind).inc()
        self._latency.labels(target, str(status)).observe(1000 * (perf_counter() - begun))

    def received(self, caller: str) -> None:
        self._received.labels(caller).inc()

    def replied(self, caller: str, status: int) -> None:
        self._replied.labels(caller, str(status)).inc()


class ActorFamilies:
    def __init__(self, registry: Registry) -> None:
        own, dapr = ("actor_type",), "dapr_runtime_actor"
        self.pending = registry.gauge(f"{dapr}_pending_actor_calls", "Calls of actors that are not answered.", own)
        self.timers = registry.gauge(f"{dapr}_timers", "Timers of actors.", own)
        self.fired = {
            kind: registry.counter(f"{dapr}_{kind}_fired_total", f"Ticks of {kind}.", (*own, "success"))
            for kind in ("timers", "reminders")
        }
        self.moved = registry.counter(f"{dapr}_rebalanced_total", "Actors that moved to another host.", own)
        self.told = registry.counter(f"{dapr}_deactivated_total", "Actors that were deactivated.", own)
        self.untold = registry.counter(f"{dapr}_deactivated_failed_total", "Those the app did not hear of.", own)


class TypeOfActors:
    """`mesh.telemetry.ActorWork`."""

    def __init__(self, families: ActorFamilies, actor_type: str) -> None:
        self._families = families
        self._type = actor_type
        self._pending = families.pending.labels(actor_type)
        self._timers = families.timers.labels(actor_type)

    def pending(self, change: int) -> None:
        self._pending.value += change

    def timers(self, change: int) -> None:
        self._timers.value += change

    def fired(self, kind: str, success: bool) -> None:
        self._families.fired[kind].labels(self._type, "true" if success else "false").inc()

    def moved(self) -> None:
        self._families.moved.labels(self._type).inc()

    def deactivated(self, told: bool) -> None:
        (self._families.told if told else self._families.untold).labels(self._type).inc()


class PrometheusMeter:
    """`mesh.telemetry.Meter` over a registry."""

    def __init__(self, registry: Registry, settings: MetricsSettings, namespace: str) -> None:
        self._pubsub = PubSubFamilies(registry, settings, namespace)
        self.calls = InvocationCalls(registry, settings)
        self._actors = ActorFamilies(registry)
        self._publishes: dict[tuple[str, str], TopicPublishes] = {}
        self._loaded = registry.counter("dapr_runtime_component_loaded", "Components of the manifests.").labels()
        self._initialised: Family[Counter] = registry.counter(
            "dapr_runtime_component_init_total", "Components that work.", ("component",)
        )
        self._failed: Family[Counter] = registry.counter(
            "dapr_runtime_component_init_fail_total",
            "Components that do not.",
            ("component", "reason", "componentName"),
        )

    def publishes(self, pubsub: str, topic: str) -> TopicPublishes:
        found = self._publishes.get((pubsub, topic))
        if found is None:
            if len(self._publishes) >= KEPT_TOPICS:
                self._publishes.clear()
            families = self._pubsub
            stored, failed = (families.egress(pubsub, topic, success) for success in ("true", "false"))
            found = self._publishes[pubsub, topic] = TopicPublishes(stored, failed, families.in_flight)
        return found

    def deliveries(self, pubsub: str, topic: str) -> TopicDeliveries:
        return TopicDeliveries(self._pubsub, pubsub, topic)

    def actors(self, actor_type: str) -> TypeOfActors:
        return TypeOfActors(self._actors, actor_type)

    def component_loaded(self, type_: str) -> None:
        self._loaded.inc()
        self._initialised.labels(type_).inc()

    def component_failed(self, type_: str, name: str, reason: str) -> None:
        self._loaded.inc()
        self._failed.labels(type_, reason, name).inc()
