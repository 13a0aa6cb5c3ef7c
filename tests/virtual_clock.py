"""Time that passes when the test says so: the clock that users' tests have too."""

from sidecar.testing.clock import VirtualClock

__all__ = ["VirtualClock"]
