"""The examples with actors do what their READMEs say, on the embedded broker: the commands are those of the READMEs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

from tests.e2e.collectors import Collector, HttpCollector
from tests.e2e.mesh import LIMIT, MESHWIRE, Process, running, until
from tests.ports import free_port

EXAMPLES = Path(__file__).parents[2] / "examples"


class Example:
    """A copy of an example that was started by its run file, on ports that are free."""

    def __init__(self, folder: Path, name: str, environment: Mapping[str, str], ports: Mapping[str, int]) -> None:
        self.folder = Path(shutil.copytree(EXAMPLES / name, folder / name, ignore=shutil.ignore_patterns(".dapr")))
        self.home = folder / "home"
        self.apps: list[str] = []
        self._numbers = count(1)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._environment = {"MESHWIRE_HOME": str(self.home), "PATH": path, **environment}
        for file in self.folder.glob("*.yaml"):
            text = re.sub(r"(?<=appPort: )\d+", lambda _: str(free_port()), file.read_text())
            for old, new in ports.items():
                text = text.replace(old, str(new))
            self.apps += re.findall(r"appID: (\S+)", text)
            file.write_text(text)
        # of the README, in order
        self.commands = re.findall(r"^\$ (meshwire .*)$", (self.folder / "README.md").read_text(), re.MULTILINE)
        self.run = self.start(self.commands.pop(0))

    def start(self, line: str) -> Process:
        """A command line of the README."""
        words = shlex.split(line)
        assert words[0] == "meshwire"
        environment = self._environment | {"PWD": str(self.folder)}
        command = ["env", "-C", str(self.folder), *MESHWIRE, *words[1:]]
        return Process(self.folder.parent, f"command-{next(self._numbers)}", command, environment).start()

    async def does(self, line: str) -> Process:
        process = self.start(line)
        await process.end(None)
        return process

    async def next(self) -> Process:
        """Run the next command of the README to its end."""
        return await self.does(self.commands.pop(0))

    def lines(self, app: str) -> list[str]:
        return re.findall(rf"^== APP - {app} == (.*)$", self.run.log, re.MULTILINE)

    async def tells(self, app: str, line: str) -> None:
        await until(lambda: line in self.lines(app), lambda: f"{app} does not tell {line!r}:\n{self.run.log}")


@asynccontextmanager
async def example(
    folder: Path, name: str, environment: Mapping[str, str] | None = None, **ports: int
) -> AsyncIterator[Example]:
    """One that is up; all that it started is gone at the end, and there was no traceback."""
    running_example = Example(folder, name, environment or {}, ports)
    run = running_example.run
    try:
        for app in running_example.apps:
            await run.says(f"{app}: ✅  You're up and running!")
        yield running_example
    finally:
        code = await run.end(signal.SIGINT)
    assert code == 0, run.log
    assert "Traceback" not in run.log, run.log
    await until(lambda: not running(running_example.home), lambda: f"left behind: {running(running_example.home)}")


async def test_shop(tmp_path: Path) -> None:
    with HttpCollector() as collector:
        async with example(tmp_path, "shop", **{"9411": collector.port}) as shop:
            await check_shop(shop)
            await one_trace(collector)


async def check_shop(shop: Example) -> None:
    for _ in range(3):
        added = await shop.next()
        assert added.code == 0, added.log
    bought, refused = await shop.next(), await shop.next()
    assert (bought.code, '{"order": "ann-1", "van": 1}' in bought.log) == (0, True), bought.log
    assert (refused.code, "(402)" in refused.log) == (1, True), refused.log
    # as the README says
    await shop.tells("warehouse", "lamp and chair for ann into van 1")
    assert shop.lines("payment") == ["ann-1: 100"]
    assert shop.lines("delivery") == ["ann-1: van 1"]
    assert shop.lines("checkout") == ["ann paid 100", "bob cannot pay 900000"]
    assert shop.lines("carts") == ["ann takes lamp", "bob takes yacht", "ann takes chair"]
    order = "meshwire invoke -a checkout -m order -d '{}'"
    empty, kept = await asyncio.gather(
        shop.does(order.format('{"who": "ann"}')), shop.does(order.format('{"who": "bob"}'))
    )
    assert "(409)" in empty.log, empty.log
    assert "(402)" in kept.log, kept.log


async def one_trace(collector: Collector) -> None:
    """The order is one trace through all apps: whatever the warehouse was sent belongs to that of the checkout."""
    await collector.got("process orders")
    trace = collector.one("process orders", "warehouse").trace_id

    def services() -> set[str]:
        return {span.service for span in collector.spans if span.trace_id == trace}

    apps = {"carts", "checkout", "payment", "delivery", "warehouse"}
    await until(lambda: services() == apps, lambda: f"{services()} of {collector.spans}")


async def test_thermostats(tmp_path: Path) -> None:
    async with example(tmp_path, "thermostats") as fleet:
        await check_thermostats(fleet)


async def check_thermostats(fleet: Example) -> None:
    async def shared() -> bool:
        told = await fleet.does("meshwire actors -a east -o json")
        return told.code == 0 and [
            [len(host["partitions"]) for host in one["hosts"]] for one in json.loads(told.log)
        ] == [[32, 32]]

    def readings(host: str, room: str) -> list[float]:
        return [
            float(found)
            for found in re.findall(rf"^== APP - {host} == {room}: ([\d.]+), ", fleet.run.log, re.MULTILINE)
        ]

    def living(host: str) -> set[str]:
        return {room for room in rooms if len(readings(host, room)) >= 2}

    async with asyncio.timeout(LIMIT):
        while not await shared():
            pass
    rooms = set(shlex.split(fleet.commands[0])[-6:])
    caretaker = await fleet.next()
    assert caretaker.code == 0, caretaker.log
    assert set(re.findall(r"^== APP == (\w+): 16.5$", caretaker.log, re.MULTILINE)) == rooms
    await until(lambda: living("east") | living("west") == rooms, lambda: fleet.run.log)
    assert not living("east") & living("west")
    table = await fleet.next()
    assert re.search(r"^Thermostat +(east|west) ", table.log, re.MULTILINE), table.log

    # One host goes, and its rooms are looked after as they are.
    gone, stays = ("west", "east") if living("west") else ("east", "west")
    moved = living(gone)
    assert (await fleet.does(f"meshwire stop -a {gone}")).code == 0
    await until(lambda: living(stays) == rooms, lambda: fleet.run.log)
    for room in moved:
        assert abs(readings(stays, room)[0] - readings(gone, room)[-1]) <= 0.5
        assert readings(stays, room)[0] > 15.0

    off = await fleet.next()
    assert off.code == 0, off.log
    for room in rooms:
        await fleet.tells(stays, f"{room}: off")
