"""Requests that need a component while the sidecar still starts: they wait, as a publish waits for its broker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from mesh.errors import ApiError, Code
from mesh.state.component import DEFAULT_COMPONENT
from sidecar.api.bindings import BindingsApi
from sidecar.api.configuration import ConfigurationApi
from sidecar.api.lock import LockApi
from sidecar.api.secrets import SecretsApi
from sidecar.api.state import StateApi
from sidecar.api.state_extras import StateExtrasApi
from sidecar.api.triggers import TriggersApi
from sidecar.components import Components

PATIENCE = 15.0
"""Seconds, as long as a publish waits."""

NOUNS = {
    "state": "state store",
    "lock": "lock store",
    "configuration": "configuration store",
    "secretstores": "secret store",
    "bindings": "binding",
}

_ROUTES: Mapping[object, tuple[str, Code]] = {
    StateApi.get: ("state", Code.STATE_GET),
    StateApi.save: ("state", Code.STATE_SAVE),
    StateApi.delete: ("state", Code.STATE_DELETE),
    StateApi.get_many: ("state", Code.STATE_BULK_GET),
    StateApi.transact: ("state", Code.STATE_TRANSACTION),
    StateApi.query: ("state", Code.STATE_QUERY),
    StateExtrasApi.list_or_watch: ("state", Code.STATE_READ),
    StateExtrasApi.get: ("state", Code.STATE_READ),
    StateExtrasApi.history: ("state", Code.STATE_READ),
    LockApi.lock: ("lock", Code.LOCK_TRY),
    LockApi.unlock: ("lock", Code.LOCK_UNLOCK),
    ConfigurationApi.get: ("configuration", Code.CONFIGURATION_GET),
    ConfigurationApi.subscribe: ("configuration", Code.CONFIGURATION_SUBSCRIBE),
    ConfigurationApi.unsubscribe: ("configuration", Code.CONFIGURATION_SUBSCRIBE),
    ConfigurationApi.list_items: ("configuration", Code.CONFIGURATION_WRITE),
    ConfigurationApi.put: ("configuration", Code.CONFIGURATION_WRITE),
    ConfigurationApi.delete: ("configuration", Code.CONFIGURATION_WRITE),
    BindingsApi.invoke: ("bindings", Code.INVOKE_OUTPUT_BINDING),
    TriggersApi.trigger: ("bindings", Code.BINDING_TRIGGER),
    SecretsApi.get: ("secretstores", Code.SECRET_GET),
    SecretsApi.get_all: ("secretstores", Code.SECRET_GET),
}
"""What a handler needs, and its code for a store that does not answer."""


class WhileStarting:
    def __init__(self, components: Components, problem: Callable[[], str | None]) -> None:
        """`problem` says why there is no connection to the broker; `None` when there is one."""
        self._components = components
        self._problem = problem

    def around(self, app: ASGIApp) -> ASGIApp:
        """`app`, called once the component of its path is there, or all have been started that there are.

        Raises `ApiError` with the code of the route when neither is so after `PATIENCE`, or the sidecar ends before.
        """
        category, code = _ROUTES.get(getattr(app, "__func__", None), ("", Code.INTERNAL))
        if not category:
            return app
        components, current = self._components, self._components.of(category)

        def handle(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
            parameters = scope["path_params"]
            name = parameters.get("store") or parameters.get("binding", DEFAULT_COMPONENT)
            if components.started or name in current:
                return app(scope, receive, send)
            return wait(name, scope, receive, send)

        async def wait(name: str, scope: Scope, receive: Receive, send: Send) -> None:
            try:
                async with asyncio.timeout(PATIENCE):
                    await components.arrival(category, name)
            except TimeoutError:
                pass
            if not components.started and name not in current:
                raise ApiError(code, f"{NOUNS[category]} {name} has not started yet: {self._reason()}")
            await app(scope, receive, send)

        return handle

    def _reason(self) -> str:
        if self._components.given_up:
            return "the sidecar ends"
        problem = self._problem()
        return f"no connection to the broker: {problem}" if problem else "the sidecar is still starting; try again"
