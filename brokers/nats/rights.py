"""What nats-server is told so that each app can do what it needs, and call nobody in another's name.

Streams are made by an administrator (`prepare`): who may make one may have it mirror any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from brokers.nats.event_log import ALL_LANES
from mesh import addressing
from mesh.errors import ConfigurationError, clip
from mesh.needs import AppNeeds, Needs
from mesh.ports import Group, Peer
from mesh.ports.tables import Tables
from mesh.state.backbone import KIND

_INSTANCE = f".{addressing.INSTANCE}.*"
_CALLS = ("", f".{addressing.CANCEL}", _INSTANCE, f"{_INSTANCE}.{addressing.CANCEL}")
"""What follows the caller in the address of a call."""
_API = "$JS.API"


class User(msgspec.Struct, frozen=True):
    """A user and what he may publish and subscribe to; nothing else."""

    name: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]

    @property
    def password_variable(self) -> str:
        """The variable of the environment of nats-server that holds his password."""
        return "NATS_PASSWORD_" + re.sub(r"[^A-Z0-9]", "_", self.name.upper())


def users(needs: Needs) -> list[User]:
    """One for each app, with all that its sidecars need, and no more.

    Raises `ConfigurationError` for two whose passwords one variable would hold.
    """
    found = [_user(app, needs) for app in needs.users]
    variables: dict[str, str] = {}
    for user in found:
        other = variables.setdefault(user.password_variable, user.name)
        if other != user.name:
            raise ConfigurationError(f"the users {clip(other)} and {clip(user.name)} differ in signs only; rename one")
    return found


def configuration(found: list[User]) -> Iterator[str]:
    """The lines of a file for nats-server to include."""
    yield "authorization {"
    yield "  users: ["
    for user in found:
        yield f"    {{ user: {_text(user.name)}, password: ${user.password_variable}, permissions: {{"
        for what, subjects in (("publish", user.publish), ("subscribe", user.subscribe)):
            yield f"      {what}: ["
            yield from (f"        {_text(subject)}" for subject in subjects)
            yield "      ]"
        yield "    } }"
    yield "  ]"
    yield "}"


async def prepare(needs: Needs, tables: Tables) -> None:
    """Make the streams of all apps, unless they are there; that of events an event log makes when it starts.

    Raises `BrokerError`, `BrokerUnavailable`.
    """
    scopes = {scope for app in needs.users for scope in (*app.own_scopes, *app.shared_scopes)}
    for scope in sorted(scopes):
        await tables.table(scope).get((KIND, "any"))  # whoever looks makes it


def _user(app: AppNeeds, needs: Needs) -> User:
    publish = dict.fromkeys(_published(app, needs))
    return User(app.signs_in_as, tuple(publish), tuple(dict.fromkeys(_subscribed(app, needs))))


def _subscribed(app: AppNeeds, needs: Needs) -> Iterator[str]:
    yield f"{addressing.inbox(app.app_id)}.>"
    for address, _ in _served(app, needs):
        yield from (f"{addressing.invocation_root(needs.prefix, address)}*{suffix}" for suffix in _CALLS)


def _served(app: AppNeeds, needs: Needs) -> list[tuple[Peer, Peer]]:
    """As `Needs.callers`. An app listens under its name even if nobody calls it."""
    me = Peer(needs.namespace, app.app_id)
    return [(me, me), *needs.callers(app)]


def _published(app: AppNeeds, needs: Needs) -> Iterator[str]:
    prefix, namespace, me = needs.prefix, needs.namespace, Peer(needs.namespace, app.app_id)
    for peer in (*(target for _, target in needs.called(app)), *(caller for _, caller in _served(app, needs))):
        yield f"{addressing.inbox(peer.app_id)}.>"
    for address, _ in needs.called(app):
        root = addressing.invocation_root(prefix, address) + addressing.caller_token(me, address.namespace)
        yield from (f"{root}{suffix}" for suffix in _CALLS)
    for topic in app.published:
        yield f"{addressing.topic_root(prefix, namespace, topic)}*"
    yield from _events(app, needs)
    for scope in (*app.own_scopes, *app.shared_scopes):
        stream = addressing.state_stream(prefix, namespace, scope)
        yield f"{addressing.state_root(prefix, namespace, scope)}>"
        yield from _reading(stream)
        yield from _consuming(stream, "*")
        yield f"{_API}.STREAM.MSG.DELETE.{stream}"
    for component in app.history:
        stream = addressing.state_stream(prefix, namespace, app.app_id)
        history = addressing.history_stream(prefix, namespace, app.app_id, (KIND, component))
        yield f"{_API}.STREAM.UPDATE.{stream}"
        yield from (f"{_API}.STREAM.{verb}.{history}" for verb in ("CREATE", "UPDATE"))
        yield from _reading(history)


def _events(app: AppNeeds, needs: Needs) -> Iterator[str]:
    stream = addressing.event_stream(needs.prefix, needs.namespace)
    yield f"{_API}.STREAM.INFO.{stream}"
    if app.subscribed:
        yield from _reading(stream)
    if app.replays:
        yield from _consuming(stream, "*")
        return
    for topic in app.subscribed:
        for name in ("", *app.groups):
            for lane in ALL_LANES:
                yield from _consuming(stream, addressing.durable(Group(app.app_id, topic, name), lane))


def _reading(stream: str) -> Iterator[str]:
    yield f"{_API}.STREAM.INFO.{stream}"
    yield f"{_API}.STREAM.MSG.GET.{stream}"
    yield f"{_API}.DIRECT.GET.{stream}"
    yield f"{_API}.DIRECT.GET.{stream}.>"


def _consuming(stream: str, consumer: str) -> Iterator[str]:
    for verb in ("CREATE", "INFO", "MSG.NEXT", "RESET", "DELETE"):
        yield f"{_API}.CONSUMER.{verb}.{stream}.{consumer}"
    yield f"$JS.ACK.{stream}.{consumer}.>"
    yield f"$JS.ACK.*.*.{stream}.{consumer}.>"  # where the server names its domain and account


def _text(text: str) -> str:
    return msgspec.json.encode(text).decode()
