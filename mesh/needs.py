"""What the apps of a namespace need of the broker: who publishes, subscribes to and calls what.

A file of the user's says it (docs/security.md); `brokers/kafka/rights.py` and `brokers/nats/rights.py` turn it into
what the servers are told.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import yaml

from mesh import addressing
from mesh.errors import ConfigurationError, MeshError, clip
from mesh.ports import Peer, Topic


class AppNeeds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Of one app. Topics are `<component>/<topic>`; apps of another namespace `<app>@<namespace>`."""

    app_id: str
    user: str = ""
    """The name by which its sidecars sign in; the app id unless given."""
    publishes: tuple[str, ...] = ()
    subscribes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    """Names of groups that pull."""
    replays: bool = False
    """Whether it takes events again, or in broadcast."""
    calls: tuple[str, ...] = ()
    called_by: tuple[str, ...] = ()
    """Callers that the file says nothing else of, such as those of another namespace."""
    calls_bindings_of: tuple[str, ...] = ()
    calls_actors_of: tuple[str, ...] = ()
    actors: tuple[str, ...] = ()
    """Types that it hosts."""
    bindings: tuple[str, ...] = ()
    """Its input bindings."""
    scopes: tuple[str, ...] = ()
    """Further ones of state, locks and configuration: those that it shares with others."""
    history: tuple[str, ...] = ()
    """State stores that keep earlier values below the app id."""

    @property
    def signs_in_as(self) -> str:
        return self.user or self.app_id

    @property
    def published(self) -> list[Topic]:
        return [*map(_topic, self.publishes), *self._items]

    @property
    def subscribed(self) -> list[Topic]:
        return [*map(_topic, self.subscribes), *self._items]

    @property
    def _items(self) -> list[Topic]:
        return [addressing.binding_topic(self.app_id, binding) for binding in self.bindings]

    @property
    def own_scopes(self) -> list[str]:
        """Of tables, without those of alarms."""
        app_id = self.app_id
        return [
            app_id,
            addressing.dead_letters_scope(app_id),
            addressing.runs_scope(app_id),
            addressing.bindings_scope(app_id),
        ]

    @property
    def shared_scopes(self) -> list[str]:
        actors = [addressing.ACTORS_SCOPE] if self.actors or self.calls_actors_of else []
        types = map(addressing.actors_scope, self.actors)
        return [addressing.JOURNAL_SCOPE, *actors, *types, *self.scopes]

    @property
    def alarmed_scopes(self) -> list[str]:
        """Those of `own_scopes` and `shared_scopes` that have alarms."""
        return [self.app_id, addressing.bindings_scope(self.app_id), *map(addressing.actors_scope, self.actors)]


class Needs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of all apps of a namespace."""

    users: tuple[AppNeeds, ...]
    prefix: str = addressing.DEFAULT_PREFIX
    namespace: str = addressing.DEFAULT_NAMESPACE

    def peer(self, name: str) -> Peer:
        """`<app>` or `<app>@<namespace>`."""
        app_id, _, namespace = name.partition("@")
        return Peer(namespace or self.namespace, app_id)

    def called(self, app: AppNeeds) -> Iterator[tuple[Peer, Peer]]:
        """Under which names `app` calls which apps: the address of each, and the app that answers there."""
        for target in map(self.peer, app.calls):
            yield target, target
        for target in map(self.peer, app.calls_bindings_of):
            yield addressing.bindings_host(target), target
        for target in map(self.peer, (*app.calls_actors_of, *((app.app_id,) if app.actors else ()))):
            yield addressing.actors_host(target), target

    def callers(self, app: AppNeeds) -> list[tuple[Peer, Peer]]:
        """Under which names of `app` who calls it: the address, and the caller."""
        me = Peer(self.namespace, app.app_id)
        named = [(me, self.peer(caller)) for caller in app.called_by]
        found = [
            (address, Peer(self.namespace, other.app_id))
            for other in self.users
            for address, answering in self.called(other)
            if answering == me
        ]
        return list(dict.fromkeys(found + named))


def load(path: Path) -> Needs:
    """Raises `ConfigurationError`, with the file and what is wrong; `OSError` when it cannot be read."""
    try:
        needs = msgspec.convert(yaml.safe_load(path.read_bytes()), Needs)
        _check(needs)
    except (yaml.YAMLError, msgspec.ValidationError, MeshError) as error:
        raise ConfigurationError(f"{path}: {' '.join(str(error).split())}") from None
    return needs


def _check(needs: Needs) -> None:
    seen: dict[str, str] = {}
    for app in needs.users:
        for value in (app.app_id, app.signs_in_as):
            if not value or not value.isprintable():
                raise ConfigurationError(f"'{clip(value)}' is no name of an app or a user")
        if app.app_id in seen.values() or app.signs_in_as in seen:
            raise ConfigurationError(f"the app {clip(app.app_id)}, or its user, is there twice")
        seen[app.signs_in_as] = app.app_id
        for topic in app.published:
            addressing.check_topic(topic.name)
        for topic in app.subscribed:
            addressing.check_pattern(topic.name)
        for peer, _ in (*needs.called(app), *needs.callers(app)):
            addressing.invocation_root(needs.prefix, peer)


def _topic(text: str) -> Topic:
    pubsub, slash, name = text.partition("/")
    if not (pubsub and slash and name):
        raise ConfigurationError(f"'{clip(text)}' must be <component>/<topic>, such as pubsub/orders")
    return Topic(pubsub, name)
