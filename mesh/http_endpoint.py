"""HTTPEndpoint manifests: servers outside the mesh that are invoked by a name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mesh.errors import clip

if TYPE_CHECKING:
    from mesh.documents import Fields

RENEGOTIATION = ("Never", "FreelyAsClient")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientTls:
    """What the client shows and trusts. PEM texts; empty is the system's trust, and no certificate."""

    root_ca: str = ""
    certificate: str = ""
    private_key: str = field(default="", repr=False)
    may_renegotiate: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpEndpoint:
    """`spec.baseUrl` + `/` + method + query is the URL that is called."""

    name: str
    base_url: str
    """Without a slash at the end."""
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Added to each request, over those of the caller."""
    tls: ClientTls = ClientTls()
    origin: str = ""
    """`file:line`."""


def read_endpoint(spec: Fields, name: str, origin: str, value: Callable[[Fields, str], str]) -> HttpEndpoint:
    """`value` gives the text of an entry with `value`, `envRef` or `secretKeyRef`.

    Raises `ConfigurationError`.
    """
    spec = spec.closed("baseUrl", "headers", "clientTLS")
    return HttpEndpoint(
        name=name,
        base_url=_base_url(spec),
        headers=tuple(_header(entry, value) for entry in spec.entries("headers")),
        tls=_client_tls(spec, value),
        origin=origin,
    )


def _base_url(spec: Fields) -> str:
    text = spec.text("baseUrl")
    try:
        parts = urlsplit(text)
        fits = bool(parts.scheme in ("http", "https") and parts.hostname and parts.port != 0)
    except ValueError:
        fits = False
    if not fits or not re.fullmatch(r"[!-~]+", text) or parts.username is not None or re.search(r"[?#]", text):
        shown = "" if "@" in text else f" (got '{clip(text)}')"  # there may be a password in it
        raise spec.fault("baseUrl", f"must be http(s)://host[:port][/prefix], without user, query or fragment{shown}")
    return text.rstrip("/")


def _header(entry: Fields, value: Callable[[Fields, str], str]) -> tuple[str, str]:
    entry = entry.closed("name", "value", "secretKeyRef", "envRef")
    name = entry.text("name")
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
        raise entry.fault("name", f"must be the name of an HTTP header (got '{clip(name)}')")
    text = value(entry, name)
    if not re.fullmatch(r"[\t -~\x80-\U0010ffff]*", text):
        raise entry.fault("value", f"the header '{name}' must not have control characters")
    return name, text


def _client_tls(spec: Fields, value: Callable[[Fields, str], str]) -> ClientTls:
    tls = spec.fields("clientTLS").closed("rootCA", "certificate", "privateKey", "renegotiation")
    pem = {key: _pem(tls, key, value) for key in ("rootCA", "certificate", "privateKey")}
    for key, other in (("certificate", "privateKey"), ("privateKey", "certificate")):
        if pem[key] and not pem[other]:
            raise tls.fault(key, f"needs {other} beside it")
    renegotiation = tls.text("renegotiation", "Never") or "Never"
    if renegotiation not in RENEGOTIATION:
        raise tls.fault("renegotiation", f"must be {' or '.join(RENEGOTIATION)} (got '{clip(renegotiation)}')")
    if tls and spec.text("baseUrl").startswith("http:"):
        raise spec.fault("clientTLS", "has no effect on a baseUrl with http:")
    return ClientTls(
        root_ca=pem["rootCA"],
        certificate=pem["certificate"],
        private_key=pem["privateKey"],
        may_renegotiate=renegotiation == "FreelyAsClient",
    )


def _pem(tls: Fields, key: str, value: Callable[[Fields, str], str]) -> str:
    if tls.get(key) is None:
        return ""
    text = value(tls.fields(key).closed("value", "secretKeyRef"), key)
    if not re.search(r"-----BEGIN [A-Z0-9 ]+-----", text):
        raise tls.fault(key, "must be a PEM text")
    return text
