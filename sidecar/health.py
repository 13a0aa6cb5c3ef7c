"""Whether this sidecar is ready, and for what it still waits."""

from __future__ import annotations

from collections.abc import Callable


class Health:
    """Two questions (Dapr): may the app use the API (`outbound`), and is everything up, the app included?

    `broker_problem` is asked each time: a lost broker makes the sidecar not ready until it is back.
    """

    def __init__(self, broker_problem: Callable[[], str | None]) -> None:
        self._broker_problem = broker_problem
        self._waiting_for = {"runtime": True, "app": True}

    def reached(self, target: str) -> None:
        self._waiting_for[target] = False

    def outbound_problem(self) -> str | None:
        """Why the API cannot do its work; `None` when it can."""
        if self._waiting_for["runtime"]:
            return self._broker_problem() or "the sidecar is starting"
        return self._broker_problem()

    def missing(self) -> list[str]:
        """What is not ready."""
        missing = [target for target, waits in self._waiting_for.items() if waits]
        problem = self._broker_problem()
        return [*missing, f"broker: {problem}"] if problem else missing
