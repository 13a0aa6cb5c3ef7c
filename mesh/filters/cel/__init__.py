"""Routing rules in CEL, the Common Expression Language, over one variable: `event` (Dapr: routing rules).

The part of the language that rules need; docs/routing.md says what is left out.
"""

from __future__ import annotations

from typing import NamedTuple

from mesh.filters.cel.compiler import compile_tree
from mesh.filters.cel.parser import parse
from mesh.filters.cel.types import check
from mesh.filters.cel.values import RuleError, name_of
from mesh.filters.event_view import EventView
from mesh.filters.explanation import Outcome, Step, deciding, steps_of
from mesh.filters.syntax import InvalidExpression

__all__ = ["Explained", "InvalidExpression", "Rule", "RuleError"]


class Explained(NamedTuple):
    matches: bool | None
    """`None` after an error."""
    error: str
    """What went wrong, else empty."""
    step: Step
    decided_by: Step


class Rule:
    """A compiled rule. Guarded by `benchmarks/filters.py`."""

    def __init__(self, text: str) -> None:
        """Raises `InvalidExpression`, also for a function that is not there, and for what can have no value."""
        self.text = text
        self._tree, self._variables = parse(text)
        check(text, self._tree)
        self._run = compile_tree(self._tree)

    def matches(self, event: EventView) -> bool:
        """The hot function. Raises `RuleError` when the rule has no value for the event, or one that is no bool."""
        self._prepare(event)
        try:
            value = self._run(event)
        except RecursionError:
            raise RuleError("the data is nested too deeply") from None
        if value is True or value is False:
            return bool(value)
        raise RuleError(f"a rule must be true or false, this one is a {name_of(value)}")

    def explain(self, event: EventView) -> Explained:
        """What each sub-expression gave. Compiles anew: not for the hot path."""
        outcomes: dict[int, Outcome] = {}
        matches, error = None, ""
        try:
            matches = self.matches(event)
        except RuleError as failure:
            error = str(failure)
        self._prepare(event)
        try:
            compile_tree(self._tree, outcomes)(event)
        except (RuleError, RecursionError):
            pass
        step = steps_of(self.text, self._tree, outcomes) or Step(self.text, matches, 0)
        return Explained(matches, error, step, deciding(self.text, self._tree, outcomes) or step)

    def _prepare(self, event: EventView) -> None:
        event.steps = 0
        if self._variables:
            event.variables = [None] * self._variables
