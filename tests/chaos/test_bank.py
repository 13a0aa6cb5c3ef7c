"""A bank over the state API: 20 workers move money between 100 accounts by way of three sidecars of one app, which are
killed or paused at random while they work, and the server is killed. No money is made or lost, nothing is done twice,
and nothing that was acknowledged is undone.

`BANK_SECONDS` is how long each test makes trouble, 5 by default.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import pytest

from tests.chaos.brokers import BROKERS, mesh_on
from tests.e2e.mesh import JSON, LIMIT, Answer, Mesh, Sidecar, call

WORKERS, ACCOUNTS, SIDECARS = 20, 100, 3
OPENING = 1000
"""What each account begins with."""
LOAD = float(os.environ.get("BANK_SECONDS", "5"))
"""Seconds of transfers, or more where the server takes longer to come back."""
S = "/v1.0/state/statestore"
LIST = "/mesh/v1/state/statestore"
HISTORY = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: statestore}
spec:
  type: state.meshwire
  version: v1
  metadata:
  - {name: history, value: "64"}
"""

pytestmark = pytest.mark.timeout(120 + 2 * LOAD)


Transfer = tuple[str, str, int]
"""From whom, to whom, how much."""


def account(number: int) -> str:
    return f"account-{number}"


def upsert(key: str, value: object, **more: object) -> dict[str, object]:
    return {"operation": "upsert", "request": {"key": key, "value": value, **more}}


class Lost(Exception):
    """No answer came: the request may have been carried out, or may yet be."""


class Bank:
    """What the workers know: for each transfer how it was answered. What is true stands in the store."""

    def __init__(self, sidecars: list[Sidecar]) -> None:
        self.sidecars = sidecars
        self.numbers = itertools.count()
        self.done: set[str] = set()
        """Transfers that were acknowledged, or found in the store."""
        self.refused: set[str] = set()
        """Transfers of which every answer said that it did not happen."""
        self.counts: Counter[str] = Counter()
        self.random = random.Random()

    async def ask(self, method: str, target: str, body: object = None) -> Answer:
        """Ask any of the sidecars. Raises `Lost`."""
        content = b"" if body is None else json.dumps(body).encode()
        headers = [] if body is None else [JSON]
        try:
            return await call(self.random.choice(self.sidecars).port, method, target, headers, content)
        except (OSError, AssertionError, TimeoutError):
            raise Lost from None

    async def surely(self, method: str, target: str, body: object = None, *, status: int = 200) -> Answer:
        """Ask until the answer is `status`."""
        deadline = time.monotonic() + LIMIT
        while True:
            try:
                answer = await self.ask(method, target, body)
                if answer.status == status:
                    return answer
                told: object = answer
            except Lost:
                told = "no answer"
            assert time.monotonic() < deadline, f"{method} {target}: {told}"
            await asyncio.sleep(0.02)

    async def open(self) -> None:
        for first in range(0, ACCOUNTS, 25):
            items = [{"key": account(number), "value": OPENING} for number in range(first, first + 25)]
            await self.surely("POST", S, items, status=204)

    async def read(self, *keys: str) -> list[tuple[int, str]]:
        """Balance and ETag of accounts. A read from the sidecar's own view may be old: its ETag tells."""
        query = self.random.choice(("", "?consistency=strong"))
        answers = [await self.ask("GET", f"{S}/{key}{query}") for key in keys]
        for answer in answers:
            if answer.status != 200:
                assert answer.status == 500, answer  # the broker is away, or the sidecar starts: money is never missing
                raise Lost
        return [(answer.json, answer.headers["etag"]) for answer in answers]

    async def exists(self, key: str) -> bool:
        """Whether there is a record, whatever it takes to learn it."""
        for _ in range(1000):
            try:
                answer = await self.ask("GET", f"{S}/{key}?consistency=strong")
                if answer.status in (200, 204):
                    return answer.status == 200
            except Lost:
                pass
            await asyncio.sleep(0.02)
        raise AssertionError(f"{key} cannot be read")

    async def transfer(self) -> None:
        """Move some money: once, or not at all."""
        name = f"transfer-{next(self.numbers)}"
        source, target = map(account, self.random.sample(range(ACCOUNTS), 2))
        amount = self.random.randint(1, 50)
        uncertain = False
        for _ in range(30):
            try:
                (having, old), (getting, older) = await self.read(source, target)
                operations = [
                    upsert(source, having - amount, etag=old),
                    upsert(target, getting + amount, etag=older),
                    upsert(name, [source, target, amount], options={"concurrency": "first-write"}),
                ]
                answer = await self.ask("POST", f"{S}/transaction", {"operations": operations})
            except Lost:
                self.counts["lost"] += 1
                uncertain = True
            else:
                if answer.status == 204:
                    self.counts["acknowledged"] += 1
                    self.done.add(name)
                    return
                assert answer.status == 500, answer
                conflict = "etag mismatch" in answer.json["message"]
                self.counts["conflict" if conflict else "unknown"] += 1
                if not conflict:
                    uncertain = True
            if uncertain and await self.exists(name):
                self.counts["found"] += 1
                self.done.add(name)
                return
            await asyncio.sleep(self.random.uniform(0, 0.02))
        if not uncertain:
            self.refused.add(name)

    async def work(self, over: asyncio.Event) -> None:
        while not over.is_set():
            await self.transfer()

    async def work_under(self, trouble: Awaitable[None]) -> None:
        """All workers, until the trouble is over."""
        over = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(WORKERS):
                tasks.create_task(self.work(over))
            await trouble
            over.set()
        await asyncio.gather(*(sidecar.ready() for sidecar in self.sidecars))

    # What is true

    async def transfers(self) -> dict[str, tuple[str, Transfer]]:
        """Those of which there is a record: ETag and content."""
        found: dict[str, tuple[str, Transfer]] = {}
        cursor = ""
        while True:
            page = (await self.surely("GET", f"{LIST}?prefix=transfer-&limit=1000{cursor}")).json
            found |= {item["key"]: (item["etag"], tuple(item["data"])) for item in page["items"]}
            if "cursor" not in page:
                return found
            cursor = f"&cursor={page['cursor']}"

    async def balances(self) -> dict[str, int]:
        keys = [account(number) for number in range(ACCOUNTS)]
        found = (await self.surely("POST", f"{S}/bulk", {"keys": keys, "parallelism": 10})).json
        return {entry["key"]: entry["data"] for entry in found}

    async def check(self) -> dict[str, tuple[str, Transfer]]:
        """Once nobody works any more."""
        transfers, balances = await self.transfers(), await self.balances()
        print(f"{len(transfers)} transfers, {dict(self.counts)}")
        assert sum(balances.values()) == ACCOUNTS * OPENING
        expected = dict.fromkeys(balances, OPENING)
        for _, (source, target, amount) in transfers.values():
            expected[source] -= amount
            expected[target] += amount
        assert balances == expected, "some transfer was applied twice, or in part"
        assert not self.done - transfers.keys(), "acknowledged, and gone"
        assert not self.refused & transfers.keys(), "refused, and done"
        return transfers

    async def audit(self, transfers: dict[str, tuple[str, Transfer]], count: int) -> None:
        """The sum at moments of the past: as of a transfer, whose record is the last change of its transaction."""
        in_order = sorted(int(etag) for etag, _ in transfers.values())
        for revision in self.random.sample(in_order, count):
            targets = [f"{LIST}/{account(number)}?revision={revision}" for number in range(ACCOUNTS)]
            answers = await asyncio.gather(*(self.surely("GET", target) for target in targets))
            assert sum(answer.json for answer in answers) == ACCOUNTS * OPENING, f"as of revision {revision}"


async def kill_at_random(mesh: Mesh, sidecars: list[Sidecar]) -> None:
    """One sidecar after the other, and half-way the server."""

    async def restart_server() -> None:
        await asyncio.sleep(LOAD / 2)
        mesh.server.kill()
        await asyncio.sleep(0.5)
        await asyncio.to_thread(mesh.server.start)

    end = time.monotonic() + LOAD
    async with asyncio.TaskGroup() as tasks:
        restart = tasks.create_task(restart_server())
        while time.monotonic() < end or not restart.done():
            victim = random.choice(sidecars)
            victim.kill()
            await asyncio.sleep(random.uniform(0.05, 0.3))
            await victim.start().ready()
            await asyncio.sleep(random.uniform(0.1, 0.5))


async def bank_with(mesh: Mesh, kind: type[Bank] = Bank, manifest: str = "") -> Bank:
    flags = []
    if manifest:
        resources = mesh.folder / "resources"
        resources.mkdir()
        (resources / "components.yaml").write_text(manifest)
        flags = ["--resources-path", str(resources)]
    sidecars = [mesh.add("bank", *flags, name=f"bank-{number}") for number in range(SIDECARS)]
    await asyncio.gather(*(sidecar.start().ready() for sidecar in sidecars))
    bank = kind(sidecars)
    await bank.open()
    return bank


@pytest.fixture(params=BROKERS)
async def mesh(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with mesh_on(request.param, tmp_path) as mesh:
        yield mesh


@pytest.mark.parametrize("mesh", ["nats"], indirect=True)  # on Kafka a history is no other way to store
async def test_no_money_is_made_or_lost(mesh: Mesh) -> None:
    bank = await bank_with(mesh)
    await bank.work_under(kill_at_random(mesh, bank.sidecars))
    await bank.check()
    assert len(bank.done) > 20
    assert bank.counts["lost"]


async def test_the_sum_was_right_at_every_moment(mesh: Mesh) -> None:
    bank = await bank_with(mesh, manifest=HISTORY)
    await bank.work_under(kill_at_random(mesh, bank.sidecars))
    await bank.audit(await bank.check(), 5)
    assert bank.counts["lost"]


# Locks in place of ETags

LOCK, UNLOCK = "/v1.0-alpha1/lock/lockstore", "/v1.0-alpha1/unlock/lockstore"
BRANCHES = 10
EXPIRY = 1
"""Seconds; a sidecar is paused for longer than that."""


class GuardedBank(Bank):
    """Whoever moves money within a branch holds its lock, writes with the fencing token, and compares no ETag."""

    async def transfer(self) -> None:
        name = f"transfer-{next(self.numbers)}"
        branch = self.random.randrange(BRANCHES)
        members = range(branch, ACCOUNTS, BRANCHES)
        source, target = map(account, self.random.sample(members, 2))
        amount = self.random.randint(1, 50)
        begun = False
        for attempt in range(200):
            holder = {"resourceId": f"branch-{branch}", "lockOwner": f"{name}/{attempt}"}
            try:
                answer = await self.ask("POST", LOCK, holder | {"expiryInSeconds": EXPIRY})
                token = answer.json["fencingToken"] if answer.status == 200 and answer.json["success"] else None
                if token is None:
                    await asyncio.sleep(self.random.uniform(0.02, 0.1))
                    continue
                # What we began under an earlier lock has happened by now, or never will.
                if begun and await self.exists(name):
                    self.counts["found"] += 1
                    self.done.add(name)
                    return
                [having, getting] = [
                    (await self.surely("GET", f"{S}/{key}?consistency=strong")).json for key in (source, target)
                ]
                operations = [
                    upsert(source, having - amount),
                    upsert(target, getting + amount),
                    upsert(name, [source, target, amount]),
                ]
                begun = True
                transaction = {"operations": operations, "metadata": {"fencingToken": token}}
                answer = await self.ask("POST", f"{S}/transaction", transaction)
                if answer.status == 204:
                    self.counts["acknowledged"] += 1
                    self.done.add(name)
                    await self.ask("POST", UNLOCK, holder)
                    return
                self.counts["fenced" if "is not held any more" in answer.json["message"] else "unknown"] += 1
            except Lost:
                if name in self.done:
                    return
                self.counts["lost"] += 1


async def pause_at_random(sidecars: list[Sidecar]) -> None:
    """One sidecar after the other, for longer than its workers may hold their locks."""
    end = time.monotonic() + LOAD
    while time.monotonic() < end:
        sleeper = random.choice(sidecars)
        sleeper.send(signal.SIGSTOP)
        await asyncio.sleep(EXPIRY + random.uniform(0.3, 0.8))
        sleeper.send(signal.SIGCONT)
        await asyncio.sleep(random.uniform(0.2, 0.5))


async def test_who_holds_a_lock_no_longer_moves_no_money(mesh: Mesh) -> None:
    bank = await bank_with(mesh, GuardedBank)
    await bank.work_under(pause_at_random(bank.sidecars))
    await bank.check()
    assert bank.done
    assert bank.counts["fenced"]
