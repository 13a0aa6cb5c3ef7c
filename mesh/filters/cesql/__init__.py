"""CESQL, the CloudEvents SQL expression language, version 1.0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mesh.event import AttributeValue
from mesh.filters.cesql.compiler import compile_tree
from mesh.filters.cesql.functions import BUILT_IN, Function, Functions, InvalidFunction
from mesh.filters.cesql.parser import parse
from mesh.filters.cesql.values import ErrorKind, EvaluationError, Value
from mesh.filters.explanation import Fault, Outcome, Step, deciding, steps_of
from mesh.filters.syntax import InvalidExpression, Node

__all__ = [
    "BUILT_IN",
    "ErrorKind",
    "EvaluationError",
    "Expression",
    "Function",
    "Functions",
    "InvalidExpression",
    "InvalidFunction",
    "Result",
]


class Result(NamedTuple):
    """A complete evaluation: a value in any case, and all errors, in the order of the text."""

    value: Value
    errors: tuple[Fault, ...]
    step: Step
    decided_by: Step


class Expression:
    """A compiled expression. Guarded by `benchmarks/filters.py`."""

    def __init__(self, text: str, functions: Functions = BUILT_IN) -> None:
        """Raises `InvalidExpression`."""
        self.text = text
        parsed = parse(text)
        self._tree = parsed.tree
        self._functions = functions
        self._run = compile_tree(parsed.tree, functions)
        unknown = [
            f"column {node.start + 1}: there is no function {node.value} with {len(node.operands)} arguments"
            for node in _nodes(parsed.tree)
            if node.kind == "call" and functions.find(str(node.value), len(node.operands)) is None
        ]
        self.warnings = (*parsed.warnings, *unknown)
        """What is allowed and hardly meant."""

    def evaluate(self, attributes: Mapping[str, AttributeValue]) -> Value:
        """The value, by attributes of the event. Stops at the first error: raises `EvaluationError`."""
        value: Value = self._run(attributes)
        return value

    def matches(self, attributes: Mapping[str, AttributeValue]) -> bool:
        """As a filter: whether the value is the Boolean true, without any error. The hot function."""
        try:
            return self._run(attributes) is True
        except EvaluationError:
            return False

    def explain(self, attributes: Mapping[str, AttributeValue]) -> Result:
        """The value and all errors, sub-expression by sub-expression. Compiles anew: not for the hot path."""
        outcomes: dict[int, Outcome] = {}
        compile_tree(self._tree, self._functions, outcomes)(attributes)
        whole = outcomes[id(self._tree)]
        reached = sorted((node.start, -node.end, id(node)) for node in _nodes(self._tree) if id(node) in outcomes)
        errors = [outcomes[key].error for _, _, key in reached]
        step = steps_of(self.text, self._tree, outcomes) or Step(self.text, whole.value, 0)
        return Result(
            whole.value,
            tuple(error for error in errors if error is not None),
            step,
            deciding(self.text, self._tree, outcomes) or step,
        )


def _nodes(node: Node) -> list[Node]:
    return [node, *(inner for operand in node.operands for inner in _nodes(operand))]
