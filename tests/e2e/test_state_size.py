"""A store of many keys: what it costs a sidecar in memory and time."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.mesh import JSON, Mesh, Process

WARM, KEYS = 22_000, 15_000
"""The first keys bring the sidecar to its working size, with what it may keep in memory; what the others add is
measured."""
AT_ONCE = 500
VALUE = "x" * 198
"""200 bytes as JSON."""
GROWTH = 6.0
"""MiB. To keep the others would take more than 10."""
FIRST_PAGE, RESTART = 0.2, 5.0
"""Seconds."""
S, LIST = "/v1.0/state/statestore", "/mesh/v1/state/statestore"

pytestmark = pytest.mark.quiet


def resident(process: Process) -> float:
    """MiB."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


async def test_keys_are_kept_by_the_broker_and_not_by_the_sidecar(tmp_path: Path) -> None:
    async with Mesh(tmp_path) as mesh:
        sidecar, peer = await asyncio.gather(mesh.sidecar("shop", name="one"), mesh.sidecar("shop", name="two"))

        async def save(firsts: Iterator[int]) -> None:
            for first in firsts:
                items = [{"key": f"key-{number}", "value": VALUE} for number in range(first, first + AT_ONCE)]
                answer = await sidecar.call("POST", S, [JSON], json.dumps(items).encode())
                assert answer.status == 204, answer

        async def read(firsts: Iterator[int]) -> None:
            for first in firsts:
                keys = [f"key-{number}" for number in range(first, first + AT_ONCE)]
                answer = await sidecar.call("POST", f"{S}/bulk", [JSON], json.dumps({"keys": keys}).encode())
                assert [entry["data"] for entry in answer.json] == [VALUE] * AT_ONCE

        async def both(first: int, end: int) -> None:
            for each in (save, read):
                firsts = iter(range(first, end, AT_ONCE))
                await asyncio.gather(*(each(firsts) for _ in range(2)))

        await both(0, WARM)
        assert (await peer.call("GET", f"{S}/key-0")).json == VALUE  # from now on it watches
        before = [resident(each) for each in (sidecar, peer)]
        await both(WARM, WARM + KEYS)
        growth = [resident(each) - was for each, was in zip((sidecar, peer), before, strict=True)]

        pages = []
        for _ in range(3):
            begun = time.monotonic()
            assert len((await sidecar.call("GET", LIST)).json["items"]) == 100
            pages.append(time.monotonic() - begun)
        sidecar.kill()
        begun = time.monotonic()
        await sidecar.start().ready()
        assert (await sidecar.call("GET", f"{S}/key-1")).json == VALUE
        restart = time.monotonic() - begun
        print(f"growth {growth} MiB of {before}; first page {min(pages):.3f} s; restart {restart:.2f} s")
        assert growth[0] < GROWTH
        assert growth[1] < GROWTH, "a replica that reads one key keeps those that others write"
        assert min(pages) < FIRST_PAGE
        assert restart < RESTART
