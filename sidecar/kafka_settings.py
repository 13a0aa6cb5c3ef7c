"""What the environment says about Kafka: where it is, and how to sign in."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from brokers.kafka.security import MECHANISMS, Security
from mesh.errors import ConfigurationError, clip

BROKER = "MESHWIRE_BROKER"
PARTITIONS = "MESHWIRE_KAFKA_PARTITIONS"
CA, CERTIFICATE, KEY = "MESHWIRE_KAFKA_TLS_CA", "MESHWIRE_KAFKA_TLS_CERT", "MESHWIRE_KAFKA_TLS_KEY"
SASL, USER, PASSWORD_FILE = "MESHWIRE_KAFKA_SASL", "MESHWIRE_KAFKA_USER", "MESHWIRE_KAFKA_PASSWORD_FILE"
TOKEN_FILE, TOKEN_URL, TOKEN_SCOPE = (f"MESHWIRE_KAFKA_TOKEN_{what}" for what in ("FILE", "URL", "SCOPE"))
VARIABLES = (PARTITIONS, CA, CERTIFICATE, KEY, SASL, USER, PASSWORD_FILE, TOKEN_FILE, TOKEN_URL, TOKEN_SCOPE)
SCHEMES = {"kafka": False, "kafka+tls": True, "kafka+ssl": True}
"""Whether they stand for TLS. The last one is what some hosts of Kafka hand out."""
DEFAULT_PARTITIONS = 16
DEFAULT_PORT = 9092

_SERVER = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")
_RULE = "must be kafka://[user:password@]host:port,host:port, or kafka+tls://… the same way"


class KafkaSettings(NamedTuple):
    servers: tuple[str, ...]
    """`host:port` each."""
    security: Security
    partitions: int
    """Of topics for events that are made."""


def is_kafka(text: str) -> bool:
    scheme, colon, _ = text.partition("://")
    return bool(colon) and scheme.lower() in SCHEMES


def parse(text: str, environ: Mapping[str, str]) -> KafkaSettings:
    """Raises `ConfigurationError`, never with a secret in it."""
    if importlib.util.find_spec("aiokafka") is None:
        raise ConfigurationError(f"{BROKER}: Kafka needs a library: pip install 'meshwire[kafka]'")
    scheme, _, rest = text.partition("://")
    tls = SCHEMES[scheme.lower()]
    rest = re.sub(rf",\s*{re.escape(scheme)}://", ",", rest, flags=re.IGNORECASE)
    credentials, at, servers = rest.rpartition("@")
    if "@" in credentials or "," in credentials:
        raise ConfigurationError(
            f"{BROKER}: {_RULE}: credentials stand once, before the first server; percent-encode '@' and ',' in them"
        )
    user, _, password = credentials.partition(":")
    if at and not (user and password):
        raise ConfigurationError(f"{BROKER}: {_RULE}: both a user and a password stand before '@'")
    own = _Own(environ)
    security = _security(own, tls, _decoded(user) or None, _decoded(password) or None)
    return KafkaSettings(_servers(servers), security, own.number(PARTITIONS, DEFAULT_PARTITIONS, most=10_000))


def _decoded(text: str) -> str:
    """Of a user or a password: what is not what was meant would be refused by the servers without a reason."""
    if not re.search("%(?![0-9A-Fa-f]{2})", text):
        with suppress(UnicodeDecodeError):
            decoded = unquote(text, errors="strict")
            if decoded.isprintable():
                return decoded
    raise ConfigurationError(
        f"{BROKER}: {_RULE}: user and password are percent-encoded UTF-8 without control characters; '%' is '%25'"
    )


def refuse(environ: Mapping[str, str]) -> None:
    """With another broker, a variable of Kafka's is a mistake. Raises `ConfigurationError`."""
    for name in VARIABLES:
        if environ.get(name):
            raise ConfigurationError(f"{name}: has no use unless {BROKER} is kafka://… or kafka+tls://…: unset it")


def _servers(text: str) -> tuple[str, ...]:
    servers = tuple(server.strip() for server in text.rstrip("/").split(","))
    for server in servers:
        found = _SERVER.fullmatch(server)
        if found is None or not 0 < int(found[1] or DEFAULT_PORT) < 65536:
            raise ConfigurationError(f"{BROKER}: {_RULE}, without anything else (got '{clip(server)}')")
    return tuple(server if re.search(r":[0-9]+$", server) else f"{server}:{DEFAULT_PORT}" for server in servers)


def _security(own: _Own, tls: bool, user: str | None, password: str | None) -> Security:
    for name in (CA, CERTIFICATE, KEY):
        if own[name] and not tls:
            raise ConfigurationError(f"{name}: has no use without TLS: say kafka+tls:// in {BROKER}, or unset it")
    if own[KEY] and not own[CERTIFICATE]:
        raise ConfigurationError(f"{KEY}: needs {CERTIFICATE}")
    if user is not None:
        own.refuse((USER, PASSWORD_FILE), f"{BROKER} holds credentials, too: remove one of them")
    mechanism = own.mechanism()
    if mechanism is None and (user is not None or own[USER] or own[PASSWORD_FILE]):
        mechanism = "PLAIN"
    user = user or own[USER]
    if mechanism == "OAUTHBEARER":
        _check_tokens(own, user, password)
    else:
        own.refuse((TOKEN_FILE, TOKEN_URL, TOKEN_SCOPE), f"has no use unless {SASL} is OAUTHBEARER: unset it")
        if mechanism is not None and not (user and (password or own[PASSWORD_FILE])):
            missing = PASSWORD_FILE if user else USER
            raise ConfigurationError(f"{missing}: {mechanism} needs a user and a password, here or in {BROKER}")
    return Security(
        tls=tls,
        ca=own.path(CA),
        certificate=own.path(CERTIFICATE),
        key=own.path(KEY),
        mechanism=mechanism,
        user=user,
        password=password,
        password_file=own.path(PASSWORD_FILE),
        token_file=own.path(TOKEN_FILE),
        token_url=own[TOKEN_URL],
        token_scope=own[TOKEN_SCOPE],
    )


def _check_tokens(own: _Own, user: str | None, password: str | None) -> None:
    if bool(own[TOKEN_FILE]) == bool(own[TOKEN_URL]):
        raise ConfigurationError(f"{SASL}: OAUTHBEARER needs either {TOKEN_FILE} or {TOKEN_URL}")
    if own[TOKEN_FILE]:
        own.refuse((USER, PASSWORD_FILE, TOKEN_SCOPE), f"has no use beside {TOKEN_FILE}: unset it")
        if user is not None:
            raise ConfigurationError(f"{BROKER}: credentials have no use beside {TOKEN_FILE}: remove them")
        return
    if not (user and (password or own[PASSWORD_FILE])):
        missing = PASSWORD_FILE if user else USER
        raise ConfigurationError(
            f"{missing}: {TOKEN_URL} needs the client's id ({USER}) and its secret ({PASSWORD_FILE})"
        )
    url = own[TOKEN_URL] or ""
    try:
        parts = urlsplit(url)
        local = parts.hostname in ("127.0.0.1", "::1", "localhost")
        sound = parts.scheme == "https" or (parts.scheme == "http" and local)
    except ValueError:
        sound = False
    if not sound or parts.username or not parts.hostname or not url.isprintable() or " " in url:
        raise ConfigurationError(f"{TOKEN_URL}: must be https://… without credentials (http only for this machine)")


class _Own:
    """The variables of Kafka's."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def __getitem__(self, name: str) -> str | None:
        return self._environ.get(name) or None

    def path(self, name: str) -> Path | None:
        value = self[name]
        return None if value is None else Path(value)

    def number(self, name: str, default: int, *, most: int) -> int:
        value = self[name] or str(default)
        if not re.fullmatch(r"[0-9]{1,9}", value) or not 0 < int(value) <= most:
            raise ConfigurationError(f"{name}: must be a number from 1 to {most} (got '{clip(value)}')")
        return int(value)

    def mechanism(self) -> str | None:
        value = self[SASL]
        if value is not None and value.upper() not in MECHANISMS:
            raise ConfigurationError(f"{SASL}: must be {', '.join(MECHANISMS)} (got '{clip(value)}')")
        return value and value.upper()

    def refuse(self, names: tuple[str, ...], rule: str) -> None:
        for name in names:
            if self[name]:
                raise ConfigurationError(f"{name}: {rule}")
