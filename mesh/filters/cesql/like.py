"""The patterns of LIKE (CESQL 1.0: 3.4.3), matched in time linear in the text."""

from __future__ import annotations

import re
from collections.abc import Callable

_SYMBOL = re.compile(r"\\[%_]|.", re.DOTALL)

_Piece = list[str | None]
"""Characters; `None` is any one."""


def matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a whole text matches: `%` is any run of characters, `_` any one, `\\%` and `\\_` are themselves."""
    pieces: list[_Piece] = [[]]
    for symbol in _SYMBOL.findall(pattern):
        if symbol == "%":
            pieces.append([])
        else:
            pieces[-1].append(None if symbol == "_" else symbol[-1])
    head, *middle, tail = pieces if len(pieces) > 1 else (pieces[0], [])
    anywhere = len(pieces) > 1
    middle = [piece for piece in middle if piece]
    if all(None not in piece for piece in pieces):
        texts = ["".join(map(str, piece)) for piece in (head, *middle, tail)]
        return _of_texts(texts[0], texts[1:-1], texts[-1]) if anywhere else texts[0].__eq__
    begins, ends = _fixed(head), _fixed(tail)
    if not anywhere:
        return lambda text: len(text) == len(head) and begins(text, 0)
    finders = [_finder(piece) for piece in middle]

    def matches(text: str) -> bool:
        stop = len(text) - len(tail)
        position = len(head)
        if position > stop or not begins(text, 0) or not ends(text, stop):
            return False
        for find in finders:  # the leftmost place of each leaves most room for those behind it
            position = find(text, position, stop)
            if position < 0:
                return False
        return True

    return matches


def _of_texts(head: str, middle: list[str], tail: str) -> Callable[[str], bool]:
    """The common patterns, without `_`."""
    if not middle:
        if not tail:
            return lambda text: text.startswith(head)
        if not head:
            return lambda text: text.endswith(tail)
    elif len(middle) == 1 and not head and not tail:
        return lambda text: middle[0] in text

    def matches(text: str) -> bool:
        stop = len(text) - len(tail)
        position = len(head)
        if position > stop or not text.startswith(head) or not text.endswith(tail):
            return False
        for piece in middle:
            position = text.find(piece, position, stop)
            if position < 0:
                return False
            position += len(piece)
        return True

    return matches


def _fixed(piece: _Piece) -> Callable[[str, int], bool]:
    """Whether `piece` stands at a position of a text that is long enough."""
    known = [(offset, char) for offset, char in enumerate(piece) if char is not None]
    return lambda text, start: all(text[start + offset] == char for offset, char in known)


def _finder(piece: _Piece) -> Callable[[str, int, int], int]:
    """Where the first occurrence of `piece` in `text[start:stop]` ends, or -1.

    One pass over the text with a set of states in the bits of an integer (Baeza-Yates and Gonnet, "shift-and").
    """
    anything = sum(1 << offset for offset, char in enumerate(piece) if char is None)
    masks = {
        char: anything | sum(1 << offset for offset, other in enumerate(piece) if other == char)
        for char in piece
        if char is not None
    }
    accepted = 1 << (len(piece) - 1)

    def find(text: str, start: int, stop: int) -> int:
        states = 0
        for position in range(start, stop):
            states = (states << 1 | 1) & masks.get(text[position], anything)
            if states & accepted:
                return position + 1
        return -1

    return find
