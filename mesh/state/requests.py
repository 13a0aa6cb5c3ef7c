"""What an app may ask of a state store, checked once for all stores and for all APIs.

Every check raises `BadRequest` with the rule that is broken; the caller knows its error code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from mesh.errors import ApiError, Code, MeshError, clip
from mesh.fencing import METADATA as FENCE
from mesh.fencing import FenceToken, InvalidFence
from mesh.ports.stores import DeleteState, SetState, StateChange, StateFeature
from mesh.state.component import SEPARATOR, StateComponent

TTL = "ttlinseconds"
CONTENT_TYPE = "contenttype"
MAX_TTL = 2**31 - 1


class BadRequest(MeshError):
    """An option that cannot be obeyed. `status` is the one of the answer."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Options(msgspec.Struct, frozen=True, gc=False):
    """`options` of an item, or the query parameters of the same names."""

    concurrency: str = ""
    consistency: str = ""


NO_OPTIONS = Options()


def first_write(concurrency: str) -> bool:
    if concurrency in ("", "last-write"):
        return False
    if concurrency == "first-write":
        return True
    raise BadRequest(f"unrecognized concurrency model '{clip(concurrency)}': use first-write or last-write", 500)


def strong(consistency: str) -> bool:
    if consistency in ("", "eventual"):
        return False
    if consistency == "strong":
        return True
    raise BadRequest(f"unrecognized consistency model '{clip(consistency)}': use strong or eventual", 500)


def ttl(text: str) -> int:
    """Seconds, at least 1; -1 is for ever, as is 0 (Dapr)."""
    if not re.fullmatch(r"-1|[0-9]{1,10}", text) or int(text) > MAX_TTL:
        raise BadRequest(
            f"ttlInSeconds must be an integer from -1 (never expires) to {MAX_TTL} (got '{clip(text)}')", 500
        )
    return int(text) or -1


def check_key(component: StateComponent, key: str) -> str:
    """The key as it is stored. Raises `ApiError` for one that names another app's item (Dapr: illegal key)."""
    if SEPARATOR in key:
        message = (
            f"api error: code = InvalidArgument desc = input key/keyPrefix '{clip(key)}' can't contain '{SEPARATOR}'"
        )
        raise ApiError(
            Code.STATE_ILLEGAL_KEY,
            message,
            detail=("BadRequest", {"field_violations": [{"field": clip(key), "description": message}]}),
            resource=("state", component.name),
        )
    return component.key_prefix + key


class Write(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One item to set, or to delete, as an app asks for it."""

    key: str
    value: bytes | None = None
    """`None` deletes it."""
    etag: str | None = None
    """An empty one is none."""
    metadata: Mapping[str, str] = {}
    options: Options = NO_OPTIONS
    content_type: str = ""


def check(component: StateComponent, write: Write) -> StateChange:
    """What the store is to do. Raises `BadRequest`, `ApiError` for the key."""
    key = check_key(component, write.key)
    value = write.value
    if value is not None and component.cipher is not None:
        value = component.cipher.encrypt(value)
    if value is not None and not write.metadata and not write.etag and write.options is NO_OPTIONS:
        return SetState(key=key, value=value, content_type=write.content_type)  # what most writes are
    features = component.features
    metadata = {name.lower(): text for name, text in write.metadata.items()}
    first = first_write(write.options.concurrency)
    safe = strong(write.options.consistency)
    etag = write.etag or None
    if (etag or first) and StateFeature.ETAG not in features:
        raise BadRequest(f"state store {component.name} has no {'ETags' if etag else 'first-write'}")
    fence = fence_of(component, write.metadata)
    if value is None:
        return DeleteState(key=key, etag=etag, first_write=first, strong=safe, fence=fence, metadata=write.metadata)
    lifetime = ttl(metadata[TTL]) if metadata.get(TTL) else None
    if lifetime is not None and StateFeature.TTL not in features:
        raise BadRequest(f"state store {component.name} cannot let items expire (ttlInSeconds)")
    return SetState(
        key=key,
        value=value,
        etag=etag,
        first_write=first,
        strong=safe,
        ttl=lifetime,
        content_type=write.content_type or metadata.get(CONTENT_TYPE, ""),
        fence=fence,
        metadata=write.metadata,
    )


def fence_of(component: StateComponent, metadata: Mapping[str, str]) -> str | None:
    """The fencing token that the metadata of an item, or of a transaction, has; checked as far as can be."""
    tokens = {text for name, text in metadata.items() if name.lower() == FENCE.lower()}
    if not tokens:
        return None
    if len(tokens) > 1:
        raise BadRequest(f"{FENCE} is given twice, in two spellings")
    [token] = tokens  # an empty one too: an app that has lost its token has lost its lock
    if StateFeature.FENCE not in component.features:
        raise BadRequest(f"state store {component.name} cannot check a {FENCE}: locks and state must be in one store")
    try:
        FenceToken.decode(token)
    except InvalidFence as error:
        raise BadRequest(f"{FENCE}: {error}") from None
    return token


def with_fence(changes: Sequence[StateChange], fence: str | None) -> Sequence[StateChange]:
    """All changes under the fence of their transaction. Raises `BadRequest` for one that has another of its own: both
    would have to hold."""
    if fence is None:
        return changes
    if any(change.fence not in (None, fence) for change in changes):
        raise BadRequest(f"the transaction has a {FENCE}, and an operation has another one: give one of them")
    return [msgspec.structs.replace(change, fence=fence) for change in changes]
