"""Regular expressions of `matches()`: RE2, as CEL has it, whose matching time is linear in the text."""

from __future__ import annotations

from collections.abc import Callable


def compiled(pattern: str) -> Callable[[str], bool]:
    """Whether `pattern` is found in a text. Raises `ValueError` with the reason."""
    try:
        import re2
    except ImportError:
        raise ValueError("matches() needs RE2: pip install 'meshwire[cel]'") from None
    options = re2.Options()
    options.log_errors = False
    try:
        search = re2.compile(pattern, options).search
    except re2.error as error:
        reason = error.args[0] if error.args else error
        shown = reason.decode(errors="replace") if isinstance(reason, bytes) else reason
        raise ValueError(f"this is no regular expression of RE2: {shown}") from None
    return lambda text: search(text) is not None
