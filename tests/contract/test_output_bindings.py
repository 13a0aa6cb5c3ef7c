"""The contract of `OutputBinding`, on every implementation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from mesh.ports.bindings import InvalidOperation, Invocation, OutputBinding, Result
from mesh.ports.stores import StoreError, StoreUnavailable
from tests.contract.bindings import OUTPUTS, OutputBacking

LIMIT = 20.0
"""Seconds for anything."""


@pytest.fixture(scope="module", params=OUTPUTS, ids=lambda backing: backing.name)
def backing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OutputBacking]:
    started = request.param()
    started.start(tmp_path_factory.mktemp(started.name))
    yield started
    started.stop()


@pytest.fixture
async def binding(backing: OutputBacking) -> AsyncIterator[OutputBinding]:
    binding = await backing.binding()
    await asyncio.wait_for(binding.start(), LIMIT)
    yield binding
    await asyncio.wait_for(binding.close(), LIMIT)


async def test_it_does_what_it_declares(backing: OutputBacking, binding: OutputBinding) -> None:
    used = []

    async def invoke(operation: str, data: bytes = b"", **metadata: str) -> Result:
        used.append(operation)
        invocation = Invocation(operation=operation, data=data, metadata=metadata)
        return await asyncio.wait_for(binding.invoke(invocation), LIMIT)

    await backing.use(invoke)
    assert set(used) == set(binding.operations)
    assert len(set(binding.operations)) == len(binding.operations)


async def test_a_trace_is_no_unknown_metadata(backing: OutputBacking, binding: OutputBinding) -> None:
    """Dapr adds it to the metadata of every request."""
    trace = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01", "tracestate": "a=b", "baggage": "c=d"}

    async def invoke(operation: str, data: bytes = b"", **metadata: str) -> Result:
        return await binding.invoke(Invocation(operation=operation, data=data, metadata=metadata | trace))

    await asyncio.wait_for(backing.use(invoke), LIMIT)


async def test_what_can_never_be_done_is_refused(backing: OutputBacking, binding: OutputBinding) -> None:
    assert backing.refused
    for invocation in backing.refused:
        with pytest.raises(InvalidOperation) as caught:
            await asyncio.wait_for(binding.invoke(invocation), LIMIT)
        assert 10 < len(str(caught.value)) < 500, "it says why"
    await binding.ping()


async def test_a_system_that_does_not_answer(backing: OutputBacking) -> None:
    binding = backing.unreachable()
    try:
        with pytest.raises(StoreUnavailable) as caught:
            async with asyncio.timeout(LIMIT):
                await binding.start()

                async def invoke(operation: str, data: bytes = b"", **metadata: str) -> Result:
                    return await binding.invoke(Invocation(operation=operation, data=data, metadata=metadata))

                await backing.use(invoke)
        assert "open-sesame" not in str(caught.value)
    finally:
        await asyncio.wait_for(binding.close(), LIMIT)


async def test_closing_is_safe_twice_and_before_the_start(backing: OutputBacking) -> None:
    binding = await backing.binding()
    await binding.close()
    binding = await backing.binding()
    await binding.start()
    await binding.ping()
    await asyncio.wait_for(binding.close(), LIMIT)
    await asyncio.wait_for(binding.close(), LIMIT)
    with pytest.raises(StoreError):

        async def invoke(operation: str, data: bytes = b"", **metadata: str) -> Result:
            return await binding.invoke(Invocation(operation=operation, data=data, metadata=metadata))

        await asyncio.wait_for(backing.use(invoke), LIMIT)
