"""Output bindings: the building block behind every API by which an app calls an external system."""

from __future__ import annotations

from collections.abc import Mapping

from mesh.bindings.component import BindingComponent
from mesh.errors import ApiError, Code, MeshError, clip
from mesh.ports.bindings import BindingError, InvalidOperation, Invocation, OutputBinding, Result
from mesh.ports.stores import StoreError
from mesh.resiliency.policy import TimedOut
from mesh.resiliency.retry import Failure
from mesh.resiliency.targets import Direction, Resiliency


class OutputFailed(ApiError):
    """The invocation of an output binding failed. `shown` is the metadata that the answer has all the same (Dapr)."""

    def __init__(self, message: str, shown: Mapping[str, str] = {}) -> None:
        super().__init__(Code.INVOKE_OUTPUT_BINDING, message)
        self.shown = shown


class Outputs:
    """The output bindings of one app's sidecar."""

    def __init__(self, components: Mapping[str, BindingComponent], *, resiliency: Resiliency) -> None:
        """`components` by name; it may change while this runs."""
        self._components = components
        self._resiliency = resiliency

    async def invoke(self, name: str, invocation: Invocation) -> Result:
        """Raises `OutputFailed`, with Dapr's texts, in Dapr's order."""
        try:
            output = self._find(name, invocation.operation)
            policy = self._resiliency.for_component(name, Direction.OUTBOUND, "bindings")
            if policy is None:
                return await output.invoke(invocation)
            return await policy.run(lambda: output.invoke(invocation), failed=_judge)
        except MeshError as error:
            shown = error.metadata if isinstance(error, BindingError) else {}
            raise OutputFailed(f"error invoking output binding {clip(name)}: {error}", shown) from error

    def _find(self, name: str, operation: str) -> OutputBinding:
        if not operation:
            raise MeshError("operation field is missing from request")
        component = self._components.get(name)
        if component is None or component.output is None:
            raise MeshError(f"couldn't find output binding {clip(name)}")
        if operation not in component.output.operations:
            raise MeshError(
                f"binding {clip(name)} does not support operation {clip(operation)}. "
                f"supported operations:{' '.join(component.output.operations)}"
            )
        return component.output


def _judge(outcome: object) -> Failure | None:
    if isinstance(outcome, InvalidOperation):
        return None
    return Failure() if isinstance(outcome, StoreError | TimedOut) else None
