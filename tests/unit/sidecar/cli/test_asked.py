"""Tables of the command line."""

from __future__ import annotations

from sidecar.cli import asked


def test_what_a_row_is_called_by_can_be_copied_and_the_rest_is_clipped() -> None:
    name, text = f"pubsub/{'topic' * 40}/42", "x" * 100
    _, line = asked.table(("ID", "TEXT"), [(name, text)]).splitlines()
    assert line == f"{name}  {'x' * 59}…"


def test_nothing_of_a_row_reaches_the_terminal_as_a_control() -> None:
    _, line = asked.table(("ID", "TEXT"), [("a\x1b[2J", "b\nc")]).splitlines()
    assert line == "a\\x1b[2J  b\\nc"
