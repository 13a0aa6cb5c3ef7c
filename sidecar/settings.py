"""Everything the sidecar was told, in one place: the flags, and the environment, which is read here only.

| Variable | Meaning | Default |
|---|---|---|
| `MESHWIRE_BROKER` | `nats://…`, `tls://…`, `kafka://…`, `kafka+tls://…`, or many; `memory`, `embedded:…` | required |
| `MESHWIRE_REQUESTS` | `nats://host` beside Kafka: calls between apps go there | the broker |
| `MESHWIRE_KAFKA_…` | how to sign in to Kafka, and its topics: `sidecar.kafka_settings` | none |
| `MESHWIRE_PREFIX` | first token of every subject, so that several meshes can share a broker | `mesh` |
| `MESHWIRE_REPLICAS` | copies of each stream or topic that the broker keeps, 1 to 5 | `1` |
| `MESHWIRE_ALLOWED_HOSTS` | comma list of further host names under which clients reach the API without a token | none |
| `MESHWIRE_JOURNAL` | which events' fates are noted down: `full` (all), `sampled` (one of a hundred), `off` | `off` |
| `MESHWIRE_CALLERS_VERIFIED` | `true`: the broker's permissions let each app call under its own name only | `false` |
| `MESHWIRE_DEAD_LETTERS_KEPT` | how long the store keeps a dead letter, 1 minute to 10 years | `720h` |
| `MESHWIRE_ACTOR_LEASE` | a host of actors that is silent for so long is replaced, 6 seconds to 5 minutes | `10s` |
| `NAMESPACE` | namespace of this app (Dapr) | `default` |
| `DAPR_API_TOKEN` | what clients must send as `dapr-api-token` (Dapr) | no check |
| `APP_API_TOKEN` | what the app is sent as `dapr-api-token` (Dapr) | not sent |

An empty variable counts as one that is not set. `POD_NAME`, `DAPR_ENV_KEYS` and what manifests refer to are read
from `Settings.environ` by `mesh.resources` and `mesh.configuration`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from brokers.kafka.security import Security
from mesh.errors import ConfigurationError, clip
from mesh.journal.mode import JournalMode
from mesh.quantities import comma_list, duration
from sidecar import kafka_settings
from sidecar.flags import SidecarFlags

BROKER, PREFIX, REPLICAS = "MESHWIRE_BROKER", "MESHWIRE_PREFIX", "MESHWIRE_REPLICAS"
ALLOWED_HOSTS, REQUESTS = "MESHWIRE_ALLOWED_HOSTS", "MESHWIRE_REQUESTS"
CALLERS_VERIFIED, JOURNAL = "MESHWIRE_CALLERS_VERIFIED", "MESHWIRE_JOURNAL"
DEAD_LETTERS_KEPT = "MESHWIRE_DEAD_LETTERS_KEPT"
ACTOR_LEASE = "MESHWIRE_ACTOR_LEASE"
_KNOWN = (
    BROKER,
    PREFIX,
    REPLICAS,
    ALLOWED_HOSTS,
    REQUESTS,
    CALLERS_VERIFIED,
    DEAD_LETTERS_KEPT,
    JOURNAL,
    ACTOR_LEASE,
    *kafka_settings.VARIABLES,
)
_OF_THE_COMMAND_LINE = ("MESHWIRE_HOME", "MESHWIRE_SYNC", "MESHWIRE_DEBUG", "MESHWIRE_LIFELINE_FD")

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokerAddress:
    """Where the broker is. Printing it never shows credentials."""

    kind: Literal["nats", "kafka", "memory", "embedded"]
    servers: tuple[str, ...] = field(default=(), repr=False)
    """Kind `nats`: URLs, credentials included. Kind `kafka`: `host:port` each."""
    folder: Path | None = None
    """Kind `embedded`: where its files are."""
    security: Security = field(default=Security(), repr=False)
    """Kind `kafka`."""
    partitions: int = kafka_settings.DEFAULT_PARTITIONS
    """Kind `kafka`: of topics for events that are made."""

    def __str__(self) -> str:
        if self.kind == "nats":
            return ",".join(map(redacted, self.servers))
        if self.kind == "kafka":
            return f"kafka{'+tls' * self.security.tls}://{','.join(self.servers)}"
        return f"embedded:{self.folder}" if self.folder else self.kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    flags: SidecarFlags
    broker: BrokerAddress
    requests: BrokerAddress | None = None
    """Where calls between apps go, if not to `broker`."""
    prefix: str
    replicas: int
    namespace: str
    api_token: str | None = field(repr=False)
    app_token: str | None = field(repr=False)
    allowed_hosts: frozenset[str]
    """In lower case."""
    callers_verified: bool = False
    """Whether the broker vouches for who calls this app."""
    dead_letters_kept: float = 30 * 24 * 3600.0
    """Seconds."""
    journal: JournalMode = JournalMode.OFF
    actor_lease: float = 10.0
    """Seconds."""
    environ: Mapping[str, str] = field(repr=False)
    """A copy of the environment, for what manifests refer to."""
    warnings: tuple[str, ...] = ()
    """For the log."""

    @classmethod
    def from_environment(cls, flags: SidecarFlags, environ: Mapping[str, str]) -> Settings:
        """Raises `ConfigurationError`, naming variable, value and rule; never with a token or a password in it."""
        broker = parse_broker(environ.get(BROKER, "").strip(), environ)
        return cls(
            flags=flags,
            broker=broker,
            requests=parse_requests(environ, broker),
            prefix=_name(PREFIX, environ, "mesh"),
            replicas=_replicas(environ.get(REPLICAS) or "1"),
            namespace=_name("NAMESPACE", environ, "default"),
            api_token=_api_token("DAPR_API_TOKEN", environ),
            app_token=_api_token("APP_API_TOKEN", environ),
            allowed_hosts=frozenset(map(_host, comma_list(environ.get(ALLOWED_HOSTS, "")))),
            callers_verified=_truth(CALLERS_VERIFIED, environ),
            journal=_journal(environ.get(JOURNAL) or "off"),
            actor_lease=_actor_lease(environ.get(ACTOR_LEASE) or "10s"),
            dead_letters_kept=_dead_letters_kept(environ.get(DEAD_LETTERS_KEPT) or "720h"),
            environ=dict(environ),
            warnings=(*_unknown(environ), *_in_the_clear(broker)),
        )


def redacted(url: str) -> str:
    """`url` without credentials and query, for messages. Cuts too much rather than too little."""
    url = re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)?.*@", r"\1***@", url, flags=re.DOTALL)
    return re.sub(r"[?#].*", "?***", url, flags=re.DOTALL)


def parse_broker(text: str, environ: Mapping[str, str]) -> BrokerAddress:
    """`environ` has what the address leaves open. Raises `ConfigurationError`."""
    if kafka_settings.is_kafka(text):
        servers, security, partitions = kafka_settings.parse(text, environ)
        return BrokerAddress(kind="kafka", servers=servers, security=security, partitions=partitions)
    kafka_settings.refuse(environ)
    return _other_broker(text)


def parse_requests(environ: Mapping[str, str], broker: BrokerAddress) -> BrokerAddress | None:
    """Raises `ConfigurationError`."""
    text = environ.get(REQUESTS, "").strip()
    if not text:
        return None
    if broker.kind != "kafka":
        raise ConfigurationError(f"{REQUESTS}: has no use unless {BROKER} is Kafka: calls go by the broker: unset it")
    if not text.lower().startswith(("nats://", "tls://")):
        raise ConfigurationError(
            f"{REQUESTS}: must be nats://host:port or tls://host:port (got '{clip(redacted(text))}')"
        )
    return BrokerAddress(kind="nats", servers=_nats_servers(REQUESTS, text))


def _other_broker(text: str) -> BrokerAddress:
    if not text:
        raise ConfigurationError(
            f"{BROKER} is not set: say where the broker is, as in {BROKER}=nats://localhost:4222 "
            "(a sidecar of its own never starts one; `meshwire run` does)"
        )
    if text in ("memory", "memory:", "memory://"):
        return BrokerAddress(kind="memory")
    scheme, colon, rest = text.partition(":")
    if scheme == "embedded":
        if not rest:
            raise ConfigurationError(f"{BROKER}: embedded: needs a folder, as in embedded:/var/lib/meshwire")
        return BrokerAddress(kind="embedded", folder=Path(rest))
    if colon and scheme.lower() in ("ws", "wss"):
        raise ConfigurationError(f"{BROKER}: {scheme.lower()}:// is not there yet, nats://, tls:// and kafka:// are")
    return BrokerAddress(kind="nats", servers=_nats_servers(BROKER, text))


def _nats_servers(variable: str, text: str) -> tuple[str, ...]:
    # a password may contain a comma, so a comma parts servers only where a scheme follows
    found = re.split(r",(?=\s*[A-Za-z][A-Za-z0-9+.-]*://)", text)
    return tuple(_server(variable, server.strip()) for server in found)


def _server(variable: str, url: str) -> str:
    def fault(rule: str) -> ConfigurationError:
        return ConfigurationError(f"{variable}: {rule} (got '{clip(redacted(url))}')")

    if not url.lower().startswith(("nats://", "tls://")):
        raise fault("must be nats://host:port, tls://host:port, kafka://host:port, memory or embedded:<folder>")
    if not url.isprintable() or " " in url:
        raise fault("a URL has no blanks and control characters")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise fault("must have a host and a port after ://, and in a list of servers the scheme before each") from None
    if not host or "," in host or parts.netloc.count("@") > 1:
        raise fault("must have one host; percent-encode , / ? # @ in a password, repeat the scheme in a list")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise fault("must end after host and port; percent-encode '/', '?' and '#' in a password")
    return url


def _name(variable: str, environ: Mapping[str, str], default: str) -> str:
    value = environ.get(variable) or default
    if not _TOKEN.fullmatch(value):
        raise ConfigurationError(f"{variable}: must be 1 to 64 letters, digits, '-' or '_' (got '{clip(value)}')")
    return value


def _truth(variable: str, environ: Mapping[str, str]) -> bool:
    value = environ.get(variable) or "false"
    if value.lower() not in ("true", "false"):
        raise ConfigurationError(f"{variable}: must be true or false (got '{clip(value)}')")
    return value.lower() == "true"


def _journal(text: str) -> JournalMode:
    try:
        return JournalMode(text.lower())
    except ValueError:
        raise ConfigurationError(f"{JOURNAL}: must be off, sampled or full (got '{clip(text)}')") from None


def _replicas(text: str) -> int:
    if text not in ("1", "2", "3", "4", "5"):
        raise ConfigurationError(f"{REPLICAS}: must be a number from 1 to 5 (got '{clip(text)}')")
    return int(text)


def _dead_letters_kept(text: str) -> float:
    try:
        seconds = duration(text)
    except ValueError as error:
        raise ConfigurationError(f"{DEAD_LETTERS_KEPT}: {error}") from None
    if not 60 <= seconds <= 10 * 365 * 24 * 3600:
        raise ConfigurationError(f"{DEAD_LETTERS_KEPT}: must be from 1m to 87600h (got '{clip(text)}')")
    return seconds


def _actor_lease(text: str) -> float:
    """Longer than what a caller waits for a callee that has fallen silent: when an actor has a new owner, nobody waits
    for an answer of the old one any more."""
    try:
        seconds = duration(text)
    except ValueError as error:
        raise ConfigurationError(f"{ACTOR_LEASE}: {error}") from None
    if not 6 <= seconds <= 300:
        raise ConfigurationError(f"{ACTOR_LEASE}: must be from 6s to 5m (got '{clip(text)}')")
    return seconds


def _api_token(variable: str, environ: Mapping[str, str]) -> str | None:
    token = environ.get(variable)
    if token and not re.fullmatch(r"[!-~](?:[ -~]*[!-~])?", token):
        raise ConfigurationError(
            f"{variable}: must be visible ASCII characters, since it travels in a header; blanks may stand only between"
        )
    return token or None


def _host(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,255}|\[[0-9A-Fa-f:.]+\]", text):
        raise ConfigurationError(
            f"{ALLOWED_HOSTS}: must be host names without scheme and port, IPv6 in brackets (got '{clip(text)}')"
        )
    return text.lower()


def _in_the_clear(broker: BrokerAddress) -> list[str]:
    if broker.security.mechanism in ("PLAIN", "OAUTHBEARER") and not broker.security.tls:
        return [f"{broker} has no TLS: {broker.security.mechanism} shows what we sign in with to whoever can listen"]
    return []


def _unknown(environ: Mapping[str, str]) -> list[str]:
    """A warning only: Kubernetes makes up such names for a Service that is called meshwire."""
    return [
        f"{clip(name)} has no meaning here; known are {', '.join(_KNOWN)}"
        for name in sorted(environ)
        if name.startswith("MESHWIRE_") and name not in (*_KNOWN, *_OF_THE_COMMAND_LINE) and environ[name]
    ]
