"""From hints that something has changed to the changes: what stores have in common that only send such hints.

What was seen last is compared with what is there. So a change is told once, and with its newest value, whatever the
hints say; and after a lost connection what has changed meanwhile is found.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing

from mesh.ports import Clock
from mesh.ports.stores import ConfigurationItem, StoreError

log = logging.getLogger("meshwire.configuration")

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
"""Seconds until a lost connection is tried again; doubling."""
SILENCE = 10.0
"""Seconds without a word after which a server is asked whether it is there."""
MAX_ITEMS = 10_000
"""Items of a store that are read, or followed, at once."""
DELETED = ConfigurationItem(value="")

Items = Mapping[str, ConfigurationItem]


def check_number(number: int) -> None:
    """Raises `StoreError`."""
    if number > MAX_ITEMS:
        raise StoreError(f"there are more than {MAX_ITEMS} items: ask for those that you need by their keys")


async def follow(
    keys: Sequence[str],
    *,
    listen: Callable[[], AsyncGenerator[str | None, None]],
    read: Callable[[Sequence[str]], Awaitable[Items]],
    is_closed: Callable[[], bool],
    clock: Clock,
    store: str,
) -> AsyncGenerator[Items, None]:
    """As `ConfigurationStore.watch`.

    `listen` connects, and shows keys that may have changed, or `None`: from now on no hint is missed, but there may
    have been some before. It ends in `StoreError` with its connection. `read` is `ConfigurationStore.get`. `store` is
    for the log.
    """
    seen: dict[str, ConfigurationItem] | None = None
    pause = FIRST_PAUSE
    while not is_closed():
        try:
            async with aclosing(listen()) as hints:
                async for key in hints:
                    found = await read(keys if key is None else [key])
                    pause = FIRST_PAUSE
                    if seen is None:
                        seen = dict(found)
                        yield {}
                    else:
                        changes = _changes(seen, found, {**seen, **found} if key is None else [key])
                        if changes:
                            yield changes
        except StoreError as error:
            if seen is None or is_closed():
                if is_closed():
                    return
                raise
            log.warning("%s: changes cannot be followed, again in %.1f s: %s", store, pause, error)
            await clock.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def _changes(seen: dict[str, ConfigurationItem], found: Items, keys: Iterable[str]) -> dict[str, ConfigurationItem]:
    """What is not as it was seen last; it is, from now on."""
    changes: dict[str, ConfigurationItem] = {}
    for key in list(keys):
        item = found.get(key)
        if item == seen.get(key):
            continue
        if item is None:
            del seen[key]
            changes[key] = DELETED
        else:
            seen[key] = changes[key] = item
    check_number(len(seen))
    return changes
