"""From exec to the first accepted publish: what a user waits for."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.conditions import Options, Place, place
from benchmarks.processes import SCRIPTS, Kind, Sidecar
from benchmarks.report import Row, Target

NAME = "cold-start"
EMBEDDED = Target(1.2, at_most=True)
WITH_SERVER = Target(0.8, at_most=True)
SETTLE = 0.5
"""Seconds of rest between two starts."""


def run(options: Options) -> list[Row]:
    embedded = Row(benchmark=NAME, name="meshwire run, embedded broker, empty home", unit="s", target=EMBEDDED)
    with place(options) as here:
        rows = [
            Row(
                benchmark=NAME,
                name=f"{kind.name}, server running",
                unit="s",
                target=None if number else WITH_SERVER,
            )
            for number, kind in enumerate(here.kinds)
        ]
        for _ in range(options.runs):
            embedded.values.append(_embedded(here))
            for kind, row in zip(here.kinds, rows, strict=True):
                row.values.append(_start(kind, here.folder))
    return [embedded, *rows]


def _embedded(here: Place) -> float:
    with TemporaryDirectory(prefix="meshwire-home-", ignore_cleanup_errors=True) as home:
        kind = Kind(name="meshwire-run", command=(str(SCRIPTS / "meshwire"), "run"), environ={"MESHWIRE_HOME": home})
        return _start(kind, here.folder)


def _start(kind: Kind, folder: Path) -> float:
    with Sidecar(kind, folder / f"{kind.name}-cold.log") as sidecar:
        seconds = sidecar.wait_until_accepting()
    time.sleep(SETTLE)
    return seconds
