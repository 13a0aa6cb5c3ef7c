"""Which topics the app wants, and where on the app each event goes.

Two sources: the app's answer to `GET /dapr/subscribe` (programmatic) and manifests (declarative). Both end as
`SubscriptionSpec`s that are known to be deliverable.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import quote

from mesh.delivery.bulk import DEFAULT_AWAIT, DEFAULT_EVENTS, MAX_AWAIT, MAX_EVENTS, Bulk
from mesh.delivery.settings import Statements, of_subscription
from mesh.errors import ConfigurationError, MeshError, clip
from mesh.quantities import boolean
from mesh.resources import SubscriptionManifest
from mesh.routing import ACTOR_ROUTE, Route, Routing

if TYPE_CHECKING:
    from mesh.filters.cel import Rule
    from mesh.filters.dialects import Filter

MAX_ANSWER = 1 << 20
"""Longest answer of the app, in bytes."""
MAX_SUBSCRIPTIONS = 1000
MAX_PATH = 2048
"""Longest path, in bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SubscriptionSpec:
    """One subscription. Its routes are tried in order; there is at least one."""

    pubsub: str
    topic: str
    routes: tuple[Route, ...]
    filters: Mapping[str, Any] | None = None
    """The filters as one, with one dialect in each object; `None` lets everything through."""
    routing: Routing | None = field(default=None, compare=False)
    """Filters and routes, compiled; `None` where every event goes to the one route."""
    dead_letter_topic: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    delivery: Statements = field(default_factory=dict, compare=False)
    """What the metadata says of the delivery plan."""
    raw_payload: bool = False
    """The stored bytes are no event and are wrapped for the app."""
    bulk: Bulk | None = None
    """How many events go in one call; `None` where each has its own."""
    type: Literal["PROGRAMMATIC", "DECLARATIVE"]
    origin: str = field(compare=False)
    """For messages: `file:line`, or the entry of the app's answer."""


class Parsed(NamedTuple):
    specs: list[SubscriptionSpec]
    refused: list[str]
    """Subscriptions that ask for what is not there or cannot be; one line each, an error for the log."""
    warnings: list[str]
    """Entries that Dapr passes over as well; one line each."""


class InvalidSubscriptions(MeshError):
    """The app's answer cannot be used at all: no subscription of it starts (Dapr). Names entry and field."""


class Unsupported(MeshError):
    """One subscription that cannot start; the others can."""


def parse_programmatic(status: int, body: bytes, *, default_pubsub: str) -> Parsed:
    """The app's answer to `GET /dapr/subscribe`.

    Understood are an array of objects, field names in any letter case, and the forms of 2019 and 2020: a topic
    as a bare text (delivered to `/<topic>`) and an object without `pubsubname` (`default_pubsub`). 404 and an
    empty body mean no subscriptions, other statuses too, with a warning. Whatever follows the first JSON value
    is not looked at (Dapr). Raises `InvalidSubscriptions`.
    """
    if status != 200:
        warnings = [] if status == 404 else [f"GET /dapr/subscribe: the app answered {status}, so no subscriptions"]
        return Parsed([], [], warnings)
    parsed = Parsed([], [], [])
    for index, item in enumerate(_entries(body)):
        origin = f"GET /dapr/subscribe: entry {index}"
        try:
            spec = _programmatic(item, origin, default_pubsub, parsed.warnings)
        except Unsupported as error:
            parsed.refused.append(f"{error}")
        else:
            if spec is not None:
                parsed.specs.append(spec)
    return parsed


def from_manifest(manifest: SubscriptionManifest) -> SubscriptionSpec:
    """Raises `Unsupported`, naming the manifest's file and line."""
    return _from_manifest(manifest, [])


def from_manifests(manifests: Iterable[SubscriptionManifest]) -> Parsed:
    """Each manifest on its own: one that is refused does not stop the others."""
    parsed = Parsed([], [], [])
    for manifest in manifests:
        try:
            parsed.specs.append(_from_manifest(manifest, parsed.warnings))
        except Unsupported as error:
            parsed.refused.append(f"{error}")
    return parsed


def _from_manifest(manifest: SubscriptionManifest, warnings: list[str]) -> SubscriptionSpec:
    return _spec(
        "DECLARATIVE",
        manifest.origin,
        manifest.pubsub,
        manifest.topic,
        [*manifest.rules, *([("", manifest.default)] if manifest.default else [])],
        list(manifest.filters),
        manifest.dead_letter_topic,
        manifest.metadata,
        manifest.bulk,
        warnings,
    )


def merge(programmatic: Iterable[SubscriptionSpec], declarative: Iterable[SubscriptionSpec]) -> list[SubscriptionSpec]:
    """One subscription per pub/sub and topic (Dapr): the last programmatic one, else the first declarative one."""
    merged: dict[tuple[str, str], SubscriptionSpec] = {}
    for spec in declarative:
        merged.setdefault((spec.pubsub, spec.topic), spec)
    for spec in programmatic:
        merged[spec.pubsub, spec.topic] = spec
    return list(merged.values())


def delivery_path(path: str) -> str:
    """`path` as it stands in a request line: with a leading `/` unless it is an `ACTOR_ROUTE`, characters beyond ASCII
    percent-encoded.

    Raises `ValueError` with the rule for a path that could not be sent as it is.
    """
    if not path.isprintable() or " " in path or "#" in path:
        raise ValueError(f"a path has no blanks, control characters or '#' (got '{clip(path)}')")
    encoded = quote(path, safe="!\"$%&'()*+,/:;<=>?@[\\]^`{|}")
    encoded = encoded if encoded.startswith(("/", ACTOR_ROUTE)) else f"/{encoded}"
    if len(encoded) > MAX_PATH:
        raise ValueError(f"a path has at most {MAX_PATH} bytes (got {len(encoded)})")
    return encoded


def _entries(body: bytes) -> list[Any]:
    """The members of the answer; raises `InvalidSubscriptions` when there is no list of them."""
    if len(body) > MAX_ANSWER:
        raise InvalidSubscriptions(
            f"GET /dapr/subscribe: the answer has {len(body)} bytes, at most {MAX_ANSWER} may be"
        )
    try:
        text = body.decode().strip(" \t\r\n")
        entries = json.JSONDecoder(parse_constant=_no_constant).raw_decode(text)[0] if text else None
    except RecursionError:
        raise InvalidSubscriptions("GET /dapr/subscribe: the answer is nested too deeply") from None
    except ValueError as error:
        raise InvalidSubscriptions(f"GET /dapr/subscribe: the answer is no JSON: {error}") from None
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise InvalidSubscriptions(f"GET /dapr/subscribe: the answer must be an array, not {_kind(entries)}")
    if len(entries) > MAX_SUBSCRIPTIONS:
        raise InvalidSubscriptions(
            f"GET /dapr/subscribe: the answer has {len(entries)} entries, at most {MAX_SUBSCRIPTIONS} may be"
        )
    return entries


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _programmatic(item: object, origin: str, default_pubsub: str, warnings: list[str]) -> SubscriptionSpec | None:
    if isinstance(item, str):
        item = {"topic": item}
    entry = _Object(item, origin)
    legacy = "pubsubname" not in entry.members
    topic, route = entry.text("topic"), entry.text("route")
    routes = entry.object("routes")
    rules = [(rule.text("match"), rule.text("path")) for rule in routes.objects("rules")]
    default = routes.text("default") or route or (topic if legacy and not rules else "")
    metadata = entry.texts("metadata")
    bulk = entry.object("bulkSubscribe")
    limits = bulk.number("maxMessagesCount"), bulk.number("maxAwaitDurationMs")
    pubsub = default_pubsub if legacy else entry.text("pubsubname")
    arguments = entry.text("deadLetterTopic"), metadata, limits if bulk.flag("enabled") else None
    routed = [*rules, *([("", default)] if default else [])]
    for missing, what in ((not pubsub, "pubsubname"), (not topic, "topic"), (not routed, "route")):
        if missing:
            warnings.append(f"{origin} has no {what}, skipped")
            return None
    return _spec("PROGRAMMATIC", origin, pubsub, topic, routed, entry.value("filters"), *arguments, warnings)


def _spec(
    type_: Literal["PROGRAMMATIC", "DECLARATIVE"],
    origin: str,
    pubsub: str,
    topic: str,
    matches: Iterable[tuple[str, str]],
    filters: object,
    dead_letter_topic: str,
    metadata: Mapping[str, str],
    bulk: tuple[int, int] | None,
    warnings: list[str],
) -> SubscriptionSpec:
    """The one place that decides what can be subscribed to, for both sources."""
    where = f"{origin}: topic '{clip(topic)}' of '{clip(pubsub)}' is not subscribed"
    if not {"*", ">"}.isdisjoint(dead_letter_topic.split(".")):
        raise Unsupported(f"{where}: a dead letter topic has no wildcards (got '{clip(dead_letter_topic)}')")
    routes: list[Route] = []
    rules: list[tuple[Rule | None, str]] = []
    for index, (match, path) in enumerate(matches):
        try:
            routes.append(Route(match.strip(), delivery_path(path)))
        except ValueError as error:
            raise Unsupported(f"{where}: {error}") from None
        rules.append((_rule(match, f"{where}: rules[{index}].match") if match.strip() else None, routes[-1].path))
    filtered = _filters(filters, metadata, where)
    if filtered is not None:
        warnings += [f"{origin}: topic '{clip(topic)}' of '{clip(pubsub)}': {warning}" for warning in filtered.warnings]
    try:
        raw_payload = boolean(metadata.get("rawPayload") or "false")
    except ValueError as error:
        raise Unsupported(f"{where}: metadata.rawPayload: {error}") from None
    for key in metadata:
        # Dapr knows this key in one spelling only; silence would hand over events that nobody expects.
        for known in ("rawPayload", "filters"):
            if key.lower() == known.lower() and key != known:
                raise Unsupported(f"{where}: metadata.{clip(key)}: write it '{known}'")
    try:
        delivery = of_subscription(metadata, origin)
    except ConfigurationError as error:
        raise Unsupported(f"{where}: {str(error).removeprefix(f'{origin}: ')}") from None
    return SubscriptionSpec(
        pubsub=pubsub,
        topic=topic,
        routes=tuple(routes),
        filters=None if filtered is None else filtered.canonical,
        routing=None if filtered is None and rules[0][0] is None else Routing(rules, filtered),
        dead_letter_topic=dead_letter_topic or None,
        metadata=dict(metadata),
        delivery=delivery,
        raw_payload=raw_payload,
        bulk=None if bulk is None else _bulk(*bulk, where),
        type=type_,
        origin=origin,
    )


def _bulk(events: int, milliseconds: int, where: str) -> Bulk:
    """Raises `Unsupported`. 0 is the default (Dapr)."""
    for name, value, most in (
        ("maxMessagesCount", events, MAX_EVENTS),
        ("maxAwaitDurationMs", milliseconds, int(MAX_AWAIT * 1000)),
    ):
        if not 0 <= value <= most:
            raise Unsupported(f"{where}: bulkSubscribe.{name}: must be from 1 to {most} (got {value})")
    return Bulk(events or DEFAULT_EVENTS, milliseconds / 1000 or DEFAULT_AWAIT)


def _rule(match: str, where: str) -> Rule:
    """Raises `Unsupported` for what is no rule."""
    from mesh.filters.cel import InvalidExpression, Rule

    try:
        return Rule(match)
    except InvalidExpression as error:
        raise Unsupported(f"{where}: {error} in '{clip(match)}'") from None


def _filters(given: object, metadata: Mapping[str, str], where: str) -> Filter | None:
    """The filters of a subscription, or those in its metadata: SDKs of Dapr have no other place for them.

    Raises `Unsupported` for what are no filters.
    """
    text = metadata.get("filters")
    if given in (None, []) and not text:
        return None
    from mesh.filters.dialects import InvalidFilter, parse_filters

    try:
        if not text:
            return parse_filters(given)
        if given not in (None, []):
            raise InvalidFilter(
                "metadata.filters", "there are filters beside the metadata too: keep the one or the other"
            )
        return parse_filters(json.loads(text), "metadata.filters")
    except InvalidFilter as error:
        raise Unsupported(f"{where}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise Unsupported(f"{where}: metadata.filters: must be JSON, a list of filters: {error}") from None


class _Object:
    """A JSON object as Go decodes it into a struct: names in any letter case, null is the same as absent."""

    def __init__(self, value: object, where: str) -> None:
        if value is not None and not isinstance(value, dict):
            raise InvalidSubscriptions(f"{where} must be an object, not {_kind(value)}")
        self.where = where
        self.members = {key.lower(): member for key, member in (value or {}).items()}

    def _fault(self, name: str, rule: str) -> InvalidSubscriptions:
        return InvalidSubscriptions(f"{self.where}: {name} {rule}")

    def value(self, name: str) -> object:
        return self.members.get(name.lower())

    def text(self, name: str) -> str:
        value = self.members.get(name.lower())
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self._fault(name, f"must be a string, not {_kind(value)}")
        return _whole(value)

    def flag(self, name: str) -> bool:
        value = self.members.get(name.lower())
        if value is None or isinstance(value, bool):
            return bool(value)
        raise self._fault(name, f"must be true or false, not {_kind(value)}")

    def number(self, name: str) -> int:
        """0 where there is none."""
        value = self.members.get(name.lower())
        if value is None:
            return 0
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._fault(name, f"must be a whole number, not {_kind(value)}")
        return value

    def object(self, name: str) -> _Object:
        return _Object(self.members.get(name.lower()), f"{self.where}: {name}")

    def objects(self, name: str) -> Iterator[_Object]:
        value = self.members.get(name.lower())
        if value is not None and not isinstance(value, list):
            raise self._fault(name, f"must be an array, not {_kind(value)}")
        return (_Object(member, f"{self.where}: {name}[{index}]") for index, member in enumerate(value or []))

    def texts(self, name: str) -> dict[str, str]:
        """A map from string to string, its keys as they are."""
        value = self.members.get(name.lower())
        if value is not None and not isinstance(value, dict):
            raise self._fault(name, f"must be an object, not {_kind(value)}")
        texts: dict[str, str] = {}
        for key, member in (value or {}).items():
            if member is not None and not isinstance(member, str):
                raise self._fault(f"{name}.{clip(key)}", f"must be a string, not {_kind(member)}")
            texts[_whole(key)] = _whole(member or "")
        return texts


def _whole(text: str) -> str:
    """Without lone surrogates, which Go's decoder replaces too: they could not be sent on."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case str():
            return "a string"
        case int() | float():
            return "a number"
        case list():
            return "an array"
        case _:
            return "an object"
