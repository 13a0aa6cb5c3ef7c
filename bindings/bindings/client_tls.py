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
    made = trusting(settings, "caCert", settings["caCert"] or None)
    if not verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    if settings["clientCert"]:
        show(made, settings, "clientCert", settings["clientCert"], settings["clientKey"])
    return made


def trusting(settings: Settings, name: str, authorities: str | None) -> ssl.SSLContext:
    """Servers are checked by these authorities, as PEM; `None` is the system's. Raises `ConfigurationError` about the
    setting `name`."""
    try:
        # an empty text would stand for the system's, too
        return ssl.create_default_context(cadata=authorities if authorities is None else authorities or "none")
    except (ssl.SSLError, ValueError):
        raise settings.fault(name, "it holds no certificate in PEM") from None


def show(context: ssl.SSLContext, settings: Settings, name: str, certificate: str, key: str) -> None:
    """Have it show a certificate, as PEM. Raises `ConfigurationError` about the setting `name`."""
    # Python's TLS reads keys from files: one that only this user can read, for a moment
    with tempfile.NamedTemporaryFile("w", prefix="meshwire-", suffix=".pem") as file:
        file.write(certificate + os.linesep + key)
        file.flush()
        try:
            context.load_cert_chain(file.name, password=_no_password)
        except (ssl.SSLError, ValueError):
            raise settings.fault(name, "it and its key are no pair in PEM, without a password") from None


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # else the library asks at the terminal, and waits
