"""Secrets by reference: files that hold a password or a token."""

from __future__ import annotations

from pathlib import Path

LONGEST = 64 * 1024
"""Bytes of such a file."""


def read_secret(path: Path) -> str:
    """What a file holds, without the blanks around it. Raises `OSError`; `ValueError` for what is no line of text."""
    with path.open("rb") as file:
        content = file.read(LONGEST + 1)
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        raise ValueError("is no text") from None
    if not text or not text.isprintable() or len(content) > LONGEST:
        raise ValueError("must hold one line of text")
    return text
