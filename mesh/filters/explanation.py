"""What each part of a filter or rule gave for one event, for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from mesh.filters.syntax import Node

SHOWN = 200
"""Longest text, in characters, that a step shows as its value."""


class Fault(msgspec.Struct, frozen=True):
    """An error of evaluation: its kind in the language's own words, and what happened."""

    kind: str
    message: str


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """One sub-expression, or one filter, that was evaluated. What was passed over for good reason is not there."""

    expression: str
    value: str | int | float | bool | None = None
    """What it gave; after an error its zero value, if the language has one."""
    position: int | None = None
    """Offset of the sub-expression in its expression's text, in characters from 0."""
    error: Fault | None = None
    steps: tuple[Step, ...] = ()


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What a node gave in one evaluation. `failed` without an `error` is that an operand has failed."""

    value: Any
    error: Fault | None = None
    failed: bool = False


def steps_of(text: str, node: Node, outcomes: Mapping[int, Outcome]) -> Step | None:
    """The tree below `node`; `outcomes` are by `id` of node. Literals and what was not reached are left out."""
    outcome = outcomes.get(id(node))
    if outcome is None or node.kind == "literal":
        return None
    steps = (steps_of(text, operand, outcomes) for operand in node.operands)
    return Step(
        expression=text[node.start : node.end],
        value=shown(outcome.value),
        position=node.start,
        error=outcome.error,
        steps=tuple(step for step in steps if step is not None),
    )


def shown(value: Any) -> str | int | float | bool | None:
    """A value as a step shows it: lists and maps as JSON, times as text, none of them longer than `SHOWN`."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (list, dict)):
        try:
            value = json.dumps(value, ensure_ascii=False, default=str)
        except RecursionError:
            value = "nested too deeply"
    text = str(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def deciding(text: str, node: Node, outcomes: Mapping[int, Outcome]) -> Step | None:
    """The smallest sub-expression that made `node` what it is: the operand that made an `and` false or an `or` true,
    the one whose error went through, else the expression itself."""
    while True:
        following = _decider(node, outcomes)
        if following is None or following.kind == "literal":
            return steps_of(text, node, outcomes)
        node = following


def _decider(node: Node, outcomes: Mapping[int, Outcome]) -> Node | None:
    own = outcomes.get(id(node))
    if own is None:
        return None
    reached = [(operand, outcomes[id(operand)]) for operand in node.operands if id(operand) in outcomes]
    if own.failed:
        return next((operand for operand, outcome in reached if outcome.failed), None)
    if node.kind in ("and", "or") and own.value is (node.kind == "or"):
        return next((operand for operand, outcome in reached if outcome.value is own.value), None)
    return node.operands[0] if node.kind == "not" else None
