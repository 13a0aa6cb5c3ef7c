"""Output bindings: the building block behind every API by which an app calls an external system."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from mesh.bindings.component import BindingComponent
from mesh.errors import ApiError, Code, MeshError, clip
from mesh.ports.bindings import BindingError, InvalidOperation, Invocation, OutputBinding, Result
from mesh.ports.stores import StoreError
from mesh.resiliency.policy import TimedOut
from mesh.resiliency.retry import Failure
from mesh.resiliency.targets import Direction, Resiliency

Elsewhere = Callable[[str, str, Invocation], Awaitable[Result]]
"""Calls the output binding that an app (`app` or `app.namespace`) hosts under a name. As `OutputBinding.invoke`."""


class OutputFailed(ApiError):
    """The invocation of an output binding failed. `shown` is the metadata that the answer has all the same (Dapr)."""

    def __init__(self, message: str, shown: Mapping[str, str] = {}) -> None:
        super().__init__(Code.INVOKE_OUTPUT_BINDING, message)
        self.shown = shown


class Outputs:
    """The output bindings of one app's sidecar."""

    def __init__(
        self, components: Mapping[str, BindingComponent], *, resiliency: Resiliency, elsewhere: Elsewhere | None = None
    ) -> None:
        """`components` by name; it may change while this runs. `elsewhere` calls those that other apps host."""
        self._components = components
        self._resiliency = resiliency
        self._elsewhere = elsewhere

    async def invoke(self, name: str, invocation: Invocation) -> Result:
        """Raises `OutputFailed`, with Dapr's texts, in Dapr's order."""
        try:
            call = self._find(name, invocation)
            policy = self._resiliency.for_component(name, Direction.OUTBOUND, "bindings")
            if policy is None:
                return await call()
            return await policy.run(call, failed=_judge)
        except MeshError as error:
            shown = error.metadata if isinstance(error, BindingError) else {}
            raise OutputFailed(f"error invoking output binding {clip(name)}: {error}", shown) from error

    def _find(self, name: str, invocation: Invocation) -> Callable[[], Awaitable[Result]]:
        if not invocation.operation:
            raise MeshError("operation field is missing from request")
        component = self._components.get(name)
        if component is not None and component.host and self._elsewhere is not None:
            return partial(self._elsewhere, component.host, name, invocation)
        if component is None or component.output is None:
            raise MeshError(f"couldn't find output binding {clip(name)}")
        check_operation(name, component.output, invocation.operation)
        return partial(component.output.invoke, invocation)


def check_operation(name: str, output: OutputBinding, operation: str) -> None:
    """Raises `InvalidOperation`."""
    if operation not in output.operations:
        raise InvalidOperation(
            f"binding {clip(name)} does not support operation {clip(operation)}. "
            f"supported operations:{' '.join(output.operations)}"
        )


def _judge(outcome: object) -> Failure | None:
    if isinstance(outcome, InvalidOperation):
        return None
    return Failure() if isinstance(outcome, StoreError | TimedOut) else None
