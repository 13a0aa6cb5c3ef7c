"""How a client of Kafka makes itself known and its servers prove themselves: TLS and SASL, as aiokafka is told.

aiokafka is imported only when `options` needs it: whoever reads the settings need not have it.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brokers.kafka.secret_file import read_secret
from mesh.errors import ConfigurationError

MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")


@dataclass(frozen=True, kw_only=True, slots=True)
class Security:
    """What was asked for. Printing it never shows a secret; those in files are read when a connection is opened."""

    tls: bool = False
    ca: Path | None = None
    """PEM: who may vouch for the servers; `None`: whoever the system trusts."""
    certificate: Path | None = None
    """PEM, ours (mutual TLS)."""
    key: Path | None = None
    """PEM, of `certificate`, if that does not hold it."""
    mechanism: str | None = None
    """Of `MECHANISMS`; `None`: no SASL."""
    user: str | None = None
    """With `token_url`, the client's id."""
    password: str | None = field(default=None, repr=False)
    password_file: Path | None = None
    """Instead of `password`. With `token_url`, the client's secret."""
    token_file: Path | None = None
    """`OAUTHBEARER`: holds the token, and is read again for each connection."""
    token_url: str | None = None
    """`OAUTHBEARER`: gives tokens for client credentials (RFC 6749, 4.4)."""
    token_scope: str | None = None


def options(security: Security) -> dict[str, Any]:
    """For every client of aiokafka. Raises `ConfigurationError` for a file that cannot be used."""
    found: dict[str, Any] = {}
    sasl = security.mechanism is not None
    if security.tls or sasl:
        found["security_protocol"] = ("SASL_" if sasl else "") + ("SSL" if security.tls else "PLAINTEXT")
    if security.tls:
        found["ssl_context"] = _context(security)
    if not sasl:
        return found
    found["sasl_mechanism"] = security.mechanism
    if security.mechanism == "OAUTHBEARER":
        from brokers.kafka import tokens

        if security.token_file is not None:
            provider: object = tokens.FromFile(security.token_file)
        else:
            secret = _password(security)
            provider = tokens.FromEndpoint(
                security.token_url or "", security.user or "", secret, scope=security.token_scope
            )
        return found | {"sasl_oauth_token_provider": provider}
    return found | {"sasl_plain_username": security.user, "sasl_plain_password": _password(security)}


def _password(security: Security) -> str:
    if security.password_file is None:
        return security.password or ""
    try:
        return read_secret(security.password_file)
    except OSError as error:
        raise ConfigurationError(f"{security.password_file}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigurationError(f"{security.password_file}: {error}") from None


def _context(security: Security) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=security.ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"{security.ca}: {_why(error)}: must be certificates in PEM form") from None
    if security.certificate is not None:
        try:
            # without a function, OpenSSL asks whoever sits at the terminal
            context.load_cert_chain(security.certificate, security.key, password=_no_password)
        except ConfigurationError as error:
            raise ConfigurationError(f"{security.key or security.certificate}: {error}") from None
        except (OSError, ssl.SSLError) as error:
            files = " and ".join(str(path) for path in (security.certificate, security.key) if path is not None)
            raise ConfigurationError(
                f"{files}: {_why(error)}: must be a certificate and its private key in PEM form"
            ) from None
    return context


def _no_password() -> str:
    raise ConfigurationError("the private key is encrypted: decrypt it, and let only the sidecar's user read it")


def _why(error: OSError) -> str:
    reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    return str(reason or error)
