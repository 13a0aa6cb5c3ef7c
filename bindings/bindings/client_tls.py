"""TLS towards a server, from settings that hold PEM texts."""

from __future__ import annotations

import os
import ssl
import tempfile

from mesh.components import Field, Settings


def fields() -> tuple[Field, ...]:
    """Dapr's, of the components that speak to brokers."""
    return (
        Field(
            "caCert", "The authorities that the server's certificate is checked by, as PEM text; the system's, else."
        ),
        Field("clientCert", "The certificate that this client shows, as PEM text."),
        Field("clientKey", "The private key of clientCert, as PEM text.", secret=True),
    )


def check(settings: Settings) -> None:
    """Raises `ConfigurationError`."""
    if bool(settings["clientCert"]) != bool(settings["clientKey"]):
        raise settings.fault("clientCert", "clientCert and clientKey need each other")


def context(settings: Settings, *, verify: bool = True) -> ssl.SSLContext:
    """What caCert, clientCert and clientKey say. Raises `ConfigurationError`."""
    check(settings)
    try:
        made = ssl.create_default_context(cadata=settings["caCert"] or None)
    except (ssl.SSLError, ValueError):
        raise settings.fault("caCert", "it holds no certificate in PEM") from None
    if not verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    if settings["clientCert"]:
        _show(made, settings)
    return made


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # else the library asks at the terminal, and waits


def _show(made: ssl.SSLContext, settings: Settings) -> None:
    # Python's TLS reads keys from files: one that only this user can read, for a moment
    with tempfile.NamedTemporaryFile("w", prefix="meshwire-", suffix=".pem") as file:
        file.write(settings["clientCert"] + os.linesep + settings["clientKey"])
        file.flush()
        try:
            made.load_cert_chain(file.name, password=_no_password)
        except (ssl.SSLError, ValueError):
            raise settings.fault(
                "clientCert", "clientCert and clientKey are no pair in PEM, without a password"
            ) from None
