"""What an app may ask of a state store, checked once for all stores and for all APIs.

Every check raises `BadRequest` with the rule that is broken; the caller knows its error code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from mesh.errors import ApiError, Code, MeshError, clip
from mesh.fencing import METADATA as FENCE
from mesh.fencing import FenceToken, InvalidFence
from mesh.ports.stores import DeleteState, SetState, StateFeature
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


def set_state(
    component: StateComponent,
    key: str,
    value: bytes,
    *,
    etag: str | None = None,
    metadata: Mapping[str, str] = {},
    options: Options = NO_OPTIONS,
    content_type: str = "",
) -> SetState:
    """An empty ETag is none. Raises `BadRequest`, `ApiError` for the key."""
    if not metadata and options is NO_OPTIONS and not etag:  # what most writes are
        return SetState(key=check_key(component, key), value=_sealed(component, value), content_type=content_type)
    folded = {name.lower(): text for name, text in metadata.items()}
    lifetime = folded.get(TTL)
    change = SetState(
        key=check_key(component, key),
        value=_sealed(component, value),
        etag=etag or None,
        first_write=first_write(options.concurrency),
        strong=strong(options.consistency),
        ttl=ttl(lifetime) if lifetime else None,
        content_type=content_type or folded.get(CONTENT_TYPE, ""),
        fence=_fence(component, folded),
        metadata=metadata,
    )
    _check_features(component, change)
    if change.ttl is not None and StateFeature.TTL not in component.features:
        raise BadRequest(f"state store {component.name} cannot let items expire (ttlInSeconds)")
    return change


def delete_state(
    component: StateComponent,
    key: str,
    *,
    etag: str | None = None,
    metadata: Mapping[str, str] = {},
    options: Options = NO_OPTIONS,
) -> DeleteState:
    """As `set_state`."""
    folded = {name.lower(): text for name, text in metadata.items()}
    change = DeleteState(
        key=check_key(component, key),
        etag=etag or None,
        first_write=first_write(options.concurrency),
        strong=strong(options.consistency),
        fence=_fence(component, folded),
        metadata=metadata,
    )
    _check_features(component, change)
    return change


def _check_features(component: StateComponent, change: SetState | DeleteState) -> None:
    if (change.etag or change.first_write) and StateFeature.ETAG not in component.features:
        asked = "ETags" if change.etag else "first-write"
        raise BadRequest(f"state store {component.name} has no {asked}")


def _fence(component: StateComponent, folded: Mapping[str, str]) -> str | None:
    token = folded.get(FENCE.lower())
    if not token:
        return None
    if StateFeature.FENCE not in component.features:
        raise BadRequest(f"state store {component.name} cannot check a {FENCE}: locks and state must be in one store")
    try:
        FenceToken.decode(token)
    except InvalidFence as error:
        raise BadRequest(f"{FENCE}: {error}") from None
    return token


def _sealed(component: StateComponent, value: bytes) -> bytes:
    return value if component.cipher is None else component.cipher.encrypt(value)
