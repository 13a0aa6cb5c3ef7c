"""How the whole suite is run at once: `pytest -n auto`."""

from __future__ import annotations

import os

import pytest

MOST_WORKERS = 16
"""More would only wait for each other's longest tests."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Two workers for each core that we may use, since most tests wait for other processes; at least two."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # pytest-xdist reads it
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(2 * cores, MOST_WORKERS)
