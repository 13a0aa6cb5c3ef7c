"""What one sidecar remembers of an event, as it tells others."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from mesh.journal.steps import Moment, Step

SUBJECT = "journal"


class Question(msgspec.Struct, frozen=True):
    """Which event. On the wire: fields are only ever added."""

    source: str
    id: str


class Testimony(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """On the wire, as `Question`."""

    app: str
    since: Moment
    """What happened earlier may have been forgotten; seconds since the epoch."""
    sampled_out: bool = False
    """The sidecar notes only some events down, and this is none of them."""
    left_out: int = 0
    """Steps that are missing before the last."""
    steps: list[Step] = []


encode_question = msgspec.json.Encoder().encode
decode_question = msgspec.json.Decoder(Question).decode
encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Testimony).decode


def answers(testify: Callable[[Question], Testimony]) -> Callable[[bytes], bytes | None]:
    """What a `mesh.inquiry.Witness` on this subject answers."""

    def answer(asked: bytes) -> bytes | None:
        try:
            question = decode_question(asked)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return encode(testify(question))

    return answer
