"""What an app says about its actors in answer to `GET /dapr/config` (Dapr)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import msgspec

from mesh.actors.names import MAX_TYPE, RESERVED, InvalidName, check
from mesh.errors import clip
from mesh.quantities import duration

logger = logging.getLogger("meshwire.actors")

IDLE_TIMEOUT = 3600.0
DRAIN_TIMEOUT = 2.0
"""Seconds (Dapr)."""
LONGEST_DRAIN = 24.0
"""Seconds: 80 % of what a move of an actor may take (Dapr)."""
STACK_DEPTH = 32
MAX_TYPES = 256

_SETTINGS = ("actorIdleTimeout", "drainOngoingCallTimeout", "drainRebalancedActors", "reentrancy")
_KNOWN = {name.lower(): name for name in ("entities", "entitiesConfig", *_SETTINGS, "enabled", "maxStackDepth")}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Of one type of actors. Times in seconds."""

    idle_timeout: float = IDLE_TIMEOUT
    drain_timeout: float = DRAIN_TIMEOUT
    """How long the turn of an actor that is to move may take to its end."""
    drain: bool = True
    """Whether it may at all."""
    reentrant: bool = False
    max_stack_depth: int = STACK_DEPTH


class InvalidHosting(ValueError):
    """Why no type of the app's can be hosted."""


def read(answer: bytes) -> dict[str, Settings]:
    """The types that the app hosts. Names of members in any letter case (Dapr).

    Raises `InvalidHosting` when none can be hosted; what is wrong with one type is logged, and its default is used.
    """
    try:
        told = _canonical(msgspec.json.decode(answer, type=dict[str, Any]))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidHosting(f"the answer is not a JSON object: {error}") from None
    entities = told.get("entities") or []
    if not isinstance(entities, list) or not all(isinstance(name, str) for name in entities):
        raise InvalidHosting("entities must be an array of names")
    if len(entities) > MAX_TYPES:
        raise InvalidHosting(f"entities has {len(entities)} types; there may be {MAX_TYPES}")
    try:
        common = _settings(told, Settings())
    except ValueError as error:
        raise InvalidHosting(str(error)) from None
    types: dict[str, Settings] = {}
    for name in entities:
        try:
            check("actorType", name, MAX_TYPE)
        except InvalidName as error:
            raise InvalidHosting(f"entities: {error}") from None
        if name.startswith(RESERVED):
            raise InvalidHosting(f"entities: types that begin with '{RESERVED}' are kept for workflows")
        types[name] = common
    return types | _overrides(told, types, common)


def _overrides(told: Mapping[str, Any], types: Mapping[str, Settings], common: Settings) -> dict[str, Settings]:
    """Dapr: an absent idle time or reentrancy of an entry is the built-in default, not that of the top level."""
    defaults = Settings(drain_timeout=common.drain_timeout, drain=common.drain)
    found: dict[str, Settings] = {}
    for entry in told.get("entitiesConfig") or []:
        if not isinstance(entry, dict):
            logger.warning("GET /dapr/config: an entry of entitiesConfig is no object and is passed over")
            continue
        for name in entry.get("entities") or []:
            if name not in types:
                logger.warning("GET /dapr/config: entitiesConfig names '%s', which entities does not", clip(name))
                continue
            settings = defaults
            for member in _SETTINGS:
                try:
                    settings = _settings({member: entry.get(member)}, settings)
                except ValueError as error:
                    logger.warning("GET /dapr/config: entitiesConfig of '%s': %s; the default is used", name, error)
            found[name] = settings
    return found


def _settings(told: Mapping[str, Any], base: Settings) -> Settings:
    """Raises `ValueError`."""
    changes: dict[str, Any] = {}
    if told.get("actorIdleTimeout"):
        changes["idle_timeout"] = _duration(told, "actorIdleTimeout")
    if told.get("drainOngoingCallTimeout"):
        changes["drain_timeout"] = min(_duration(told, "drainOngoingCallTimeout"), LONGEST_DRAIN)
    if (drain := told.get("drainRebalancedActors")) is not None:
        changes["drain"] = _truth(drain, "drainRebalancedActors")
    reentrancy = told.get("reentrancy")
    if reentrancy is not None:
        if not isinstance(reentrancy, dict):
            raise ValueError("reentrancy must be an object")
        changes["reentrant"] = _truth(reentrancy.get("enabled", False), "reentrancy.enabled")
        depth = reentrancy.get("maxStackDepth")
        if depth is not None:
            if type(depth) is not int or not 1 <= depth <= 10_000:
                raise ValueError(f"reentrancy.maxStackDepth must be from 1 to 10000 (got '{clip(depth)}')")
            changes["max_stack_depth"] = depth
    return msgspec.structs.replace(base, **changes)


def _duration(told: Mapping[str, Any], member: str) -> float:
    value = told[member]
    try:
        seconds = duration(value, bare_unit=None) if isinstance(value, str) else -1.0
    except ValueError as error:
        raise ValueError(f"{member} {error}") from None
    if seconds <= 0:
        raise ValueError(f"{member} must be a duration of more than 0, such as 60m (got '{clip(value)}')")
    return seconds


def _truth(value: object, member: str) -> bool:
    if value is not True and value is not False:
        raise ValueError(f"{member} must be true or false (got '{clip(value)}')")
    return value


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {_KNOWN.get(name.lower(), name): _canonical(member) for name, member in value.items()}
    return [_canonical(member) for member in value] if isinstance(value, list) else value
