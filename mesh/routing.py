"""Which events of a subscription reach the app, and by which path.

Filters come first: what they do not let through is none of the app's business. Then the rules, in order: the path of
the first that is true, else the default route. Guarded by `benchmarks/filters.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from mesh.errors import MeshError, clip
from mesh.filters.event_view import EventView
from mesh.filters.explanation import Step

if TYPE_CHECKING:  # loaded only where a subscription has rules or filters
    from mesh.filters.cel import Rule
    from mesh.filters.dialects import Filter

ACTOR_ROUTE = "actor://"
"""How the path of a subscription begins whose events go to actors: `actor://<type>/<method>`."""


class Route(NamedTuple):
    """Where an event goes if `match` is true; an empty `match` always is."""

    match: str
    path: str


class Skipped(Enum):
    """Why the app does not get an event."""

    FILTER = "filter"
    """The subscription's filters do not let it through."""
    RULES = "rules"
    """No rule is true, and there is no default route."""
    EXPIRED = "expired"
    """It ended before it could be delivered."""
    OTHER = "other"
    """It is sent again for another app alone (docs/dead-letters.md)."""


class RoutingError(MeshError):
    """A rule has no value for an event (Dapr: the event fails, later rules are not asked)."""


class RuleExplained(msgspec.Struct, frozen=True, omit_defaults=True):
    path: str
    match: str = ""
    """Empty: the route of everything that comes this far."""
    matches: bool | None = None
    """`None` when the rule has no value for the event."""
    step: Step | None = None


class Explained(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What would become of an event, and why."""

    matches: bool
    """Whether the app would get it."""
    path: str | None = None
    skipped: Skipped | None = None
    error: str | None = None
    """Why its delivery would fail before the app is called."""
    decided_by: Step | None = None
    """The smallest sub-expression, of the filters or of a rule, that decided."""
    filters: Step | None = None
    rules: tuple[RuleExplained, ...] = ()
    """Those that were asked."""


class Routing:
    """The routes of one subscription, compiled."""

    def __init__(self, routes: Sequence[tuple[Rule | None, str]], filters: Filter | None = None) -> None:
        """A route without a rule takes all that comes to it."""
        self._routes = tuple(routes)
        self._filters = filters

    @property
    def paths(self) -> frozenset[str]:
        return frozenset(path for _, path in self._routes)

    def choose(self, body: bytes) -> str | Skipped:
        """The path for an event in the JSON format, or why it has none. The hot function.

        Raises `RoutingError`; `InvalidEvent` unless `body` is a JSON object.
        """
        event = EventView(body)
        if self._filters is not None and not self._filters.matches(event.attributes):
            return Skipped.FILTER
        for rule, path in self._routes:
            try:
                if rule is None or rule.matches(event):
                    return path
            except MeshError as error:
                raise RoutingError(_failed(rule, error)) from None
        return Skipped.RULES

    def explain(self, body: bytes) -> Explained:
        """What `choose` would say, with the value of each sub-expression."""
        event = EventView(body)
        filters: Step | None = None
        decided_by: Step | None = None
        if self._filters is not None:
            filters, decided_by = self._filters.explain(event.attributes)
            if not self._filters.matches(event.attributes):
                return Explained(matches=False, skipped=Skipped.FILTER, decided_by=decided_by, filters=filters)
        asked: list[RuleExplained] = []
        for rule, path in self._routes:
            if rule is None:
                asked.append(RuleExplained(path, matches=True))
            else:
                found = rule.explain(event)
                decided_by = found.decided_by
                asked.append(RuleExplained(path, rule.text, found.matches, found.step))
                if found.matches is None:
                    error = _failed(rule, found.error)
                    return Explained(
                        matches=False, error=error, decided_by=decided_by, filters=filters, rules=tuple(asked)
                    )
            if asked[-1].matches:
                return Explained(matches=True, path=path, decided_by=decided_by, filters=filters, rules=tuple(asked))
        return Explained(
            matches=False, skipped=Skipped.RULES, decided_by=decided_by, filters=filters, rules=tuple(asked)
        )


def _failed(rule: Rule | None, reason: object) -> str:
    return f"the routing rule '{clip('' if rule is None else rule.text)}' cannot be evaluated: {reason}"
