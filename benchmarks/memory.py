"""Memory of a sidecar that does nothing, with no rule and no component, some seconds after its start."""

from __future__ import annotations

import time

from benchmarks.conditions import Options, place
from benchmarks.processes import Sidecar
from benchmarks.report import Row, Target

NAME = "memory"
AGE = 10.0
"""Seconds after the start."""
TARGET = Target(60, at_most=True)
"""Megabytes, of 1,000,000 bytes."""


def run(options: Options) -> list[Row]:
    rows = []
    with place(options) as here:
        for number, kind in enumerate(here.kinds):
            resident = Row(
                benchmark=NAME,
                name=f"{kind.name}, resident (RSS)",
                unit="MB",
                target=None if number else TARGET,
            )
            proportional = Row(benchmark=NAME, name=f"{kind.name}, its share (PSS)", unit="MB")
            for _ in range(options.runs):
                with Sidecar(kind, here.folder / f"{kind.name}-memory.log") as sidecar:
                    sidecar.wait_until_accepting()
                    time.sleep(max(0.0, sidecar.started + AGE - time.monotonic()))
                    sizes = sidecar.memory()
                resident.values.append(sizes.resident / 1e6)
                proportional.values.append(sizes.proportional / 1e6)
            rows += [resident, proportional]
    return rows
