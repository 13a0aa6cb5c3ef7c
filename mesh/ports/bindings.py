"""Bindings: external systems that trigger an app, and external systems that an app calls.

`tests/contract/` holds one suite for each of the two, run over every component.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from mesh.ports.stores import Store, StoreError


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """What a source has for the app: a row, a message, a file, a request."""

    data: bytes
    """The body of the request to the app, as it is."""
    metadata: Mapping[str, str] = {}
    """Headers of the request to the app (Dapr); names in any letter case."""
    id: str | None = None
    """What the source calls it. An item that comes again under its id, within the broker's window, is stored once."""
    key: str | None = None
    """Items of one key are delivered in the order in which they were accepted."""
    content_type: str = "application/json"
    time: float | None = None
    """When it arose, in seconds since the epoch; `None` is now."""


Accept = Callable[[Item], Awaitable[None]]
"""Returns when the item is stored durably; only then may the source be told that it is done with.

Raises `BrokerError` when it is not stored: the source keeps it and offers it again. One that the broker will never take
is kept as a dead letter and counts as stored; but see `RefusingInputBinding`. Items may be accepted concurrently.
"""


class BindingError(StoreError):
    """The external system refused, or answered with an error. The text goes to the client: no secrets.

    `metadata` is shown to the app beside the error (Dapr: the headers `metadata.*`).
    """

    def __init__(self, text: str, metadata: Mapping[str, str] = {}) -> None:
        super().__init__(text)
        self.metadata = metadata


class InvalidOperation(BindingError):
    """The request itself cannot be carried out: metadata is missing or wrong, data is no such thing. Nothing was
    done, and trying again is of no use."""


class InputBinding(Store, Protocol):
    """A source of items."""

    @property
    def exclusive(self) -> bool:
        """Only one replica of an app may run it at a time (a folder that is watched, a query that is polled): it is
        worked under a lease. Otherwise the source itself shares items out among those who ask (a queue, a consumer
        group, a port)."""
        ...

    async def run(self, accept: Accept) -> None:
        """Take items, from where the source's own bookkeeping says, and acknowledge to it what `accept` has returned
        for. Runs until it is cancelled; it is called again, after a growing pause, when it raises anything.

        At most a bounded number of items is under way at once.
        """
        ...


class LastingInputBinding(InputBinding, Protocol):
    """One that keeps something on the backbone beside its component, such as a schedule. It is known by this method."""

    async def forget(self) -> None:
        """The component was taken out of the manifests while the sidecar ran: remove what was kept. Not called when
        the sidecar ends. Raises `StoreError`, `BrokerError`."""
        ...


class RefusingInputBinding(InputBinding, Protocol):
    """One that has another place for an item that the broker will never take: with a sender who is told, in the folder
    or the queue where it is. It is known by this attribute."""

    refuses: bool
    """`accept` raises `MessageTooLarge` for such an item, which is then the source's to deal with."""


class Invocation(msgspec.Struct, frozen=True, kw_only=True):
    """What the app asks an output binding to do."""

    operation: str
    """One of `OutputBinding.operations`: it was checked."""
    data: bytes = b""
    """Dapr: the JSON of the request's `data`; empty when there was none."""
    metadata: Mapping[str, str] = {}

    def text(self, name: str) -> str:
        """The metadata of this name, in any letter case; `""` when there is none."""
        value = self.metadata.get(name)
        if value is None:
            value = next((value for key, value in self.metadata.items() if key.lower() == name.lower()), "")
        return value


class Result(msgspec.Struct, frozen=True, kw_only=True):
    data: bytes | None = None
    """`None`: there is no answer (HTTP 204)."""
    metadata: Mapping[str, str] = {}
    content_type: str | None = None


class OutputBinding(Store, Protocol):
    """An external system that the app calls."""

    @property
    def operations(self) -> Sequence[str]:
        """In the order in which Dapr lists them."""
        ...

    async def invoke(self, invocation: Invocation) -> Result:
        """Raises `InvalidOperation`, `BindingError` or another `StoreError`: `StoreUnavailable` when trying again may
        help. Every wait has a limit."""
        ...
