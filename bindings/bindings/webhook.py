"""`bindings.webhook`: what other systems post becomes items, once it is stored; forged and repeated requests do not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from bindings.http_listener import HttpListener, Request, Response
from mesh import addressing
from mesh.components import ComponentSpec, Field, Kind, Settings, Setup
from mesh.errors import BrokerError, MessageTooLarge
from mesh.ports import Clock
from mesh.ports.bindings import Accept, Item
from mesh.ports.tables import Put, Tables

logger = logging.getLogger("meshwire.bindings")

METHODS = "POST, OPTIONS"
RETRY_AFTER = ("retry-after", "5")
REMEMBERED = 4096
"""Deliveries that are known to be repeats without asking the broker."""
LOG_PAUSE = 10.0
"""Seconds between two log lines about requests that are refused: nobody outside may fill a disk."""
_NEVER = frozenset(("authorization", "proxy-authorization", "cookie"))
"""Headers that are handed on to nobody."""


class Refused(Exception):
    """A request is not what its signature should prove. The text goes to the sender."""


class Check(Protocol):
    """Who may post."""

    def check(self, request: Request, now: float) -> str:
        """What identifies this delivery among all; empty when nothing does. Raises `Refused`."""
        ...


class Keys(NamedTuple):
    """The secrets that signatures are made with: the present one, and one that it has just replaced."""

    secrets: Sequence[bytes]

    def made(self, signed: bytes, signatures: Sequence[bytes], algorithm: str = "sha256") -> bool:
        """Whether one of `signatures` is that of `signed`. Takes the same time whatever they are."""
        found = False
        for secret in self.secrets:
            expected = hmac.new(secret, signed, algorithm).digest()
            for signature in signatures:
                found |= hmac.compare_digest(expected, signature)
        return found


class HmacCheck:
    """A header with the HMAC of the body (GitHub: `X-Hub-Signature-256: sha256=<hex>`).

    Without a header that names the delivery the signature does: whoever has seen a request cannot send it again under
    another name.
    """

    def __init__(
        self,
        keys: Keys,
        *,
        header: str,
        prefix: str = "",
        algorithm: str = "sha256",
        base64: bool = False,
        id: str = "",
    ) -> None:
        self._keys = keys
        self._header = header.lower()
        self._prefix = prefix
        self._algorithm = algorithm
        self._base64 = base64
        self._id = id.lower()

    def check(self, request: Request, now: float) -> str:
        text = request.headers.get(self._header, "")
        if not text.startswith(self._prefix) or len(text) == len(self._prefix):
            raise Refused(f"the header {self._header} with a signature is missing")
        signature = _decoded(text.removeprefix(self._prefix), self._base64)
        if not self._keys.made(request.body, [signature], self._algorithm):
            raise Refused("the signature is wrong")
        return request.headers.get(self._id, "") if self._id else signature.hex()


class StripeCheck:
    """`Stripe-Signature: t=<seconds>,v1=<hex>,…`, the HMAC of `<t>.<body>`."""

    def __init__(self, keys: Keys, tolerance: float) -> None:
        self._keys = keys
        self._tolerance = tolerance

    def check(self, request: Request, now: float) -> str:
        parts = [part.strip().partition("=") for part in request.headers.get("stripe-signature", "").split(",")]
        times = [value for name, _, value in parts if name == "t"]
        signatures = [_decoded(value, False) for name, _, value in parts if name == "v1"][:8]
        if len(times) != 1 or not signatures or not (times[0].isascii() and times[0].isdigit()):
            raise Refused("the header stripe-signature with t and v1 is missing")
        if not self._keys.made(f"{times[0]}.".encode() + request.body, signatures):
            raise Refused("the signature is wrong")
        if abs(now - float(times[0][:12])) > self._tolerance:
            raise Refused(f"the timestamp is more than {self._tolerance:g} s away from the time here")
        return hashlib.sha256(f"{times[0]}.".encode() + request.body).hexdigest()


class BearerCheck:
    """A token in `Authorization`, or as `?access_token=` (CloudEvents WebHook 3)."""

    def __init__(self, keys: Keys, id: str) -> None:
        self._keys = keys
        self._id = id

    def check(self, request: Request, now: float) -> str:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            token = request.query.get("access_token", "")
        given = token.strip().encode("latin-1", "replace")
        if sum(hmac.compare_digest(given, secret) for secret in self._keys.secrets) == 0:
            raise Refused("the token is missing or wrong")
        return _named(request.headers, self._id)


class NoCheck:
    """Everybody who can reach the port."""

    def __init__(self, id: str) -> None:
        self._id = id

    def check(self, request: Request, now: float) -> str:
        return _named(request.headers, self._id)


def _named(headers: Mapping[str, str], header: str) -> str:
    """What the sender calls the delivery: by the header that the component says, or as an event in binary mode."""
    if header:
        return headers.get(header.lower(), "")
    event = headers.get("ce-id", "")
    return addressing.identity(headers.get("ce-source", ""), event) if event else ""


def _decoded(text: str, as_base64: bool) -> bytes:
    try:
        return base64.b64decode(text, validate=True) if as_base64 else bytes.fromhex(text)
    except ValueError:
        return b""


class WebhookBinding:
    """An `InputBinding`; every replica listens."""

    exclusive = False
    refuses = True

    def __init__(self, setup: Setup, check: Check) -> None:
        settings = setup.settings
        self._name = setup.name
        self._check = check
        self._clock: Clock = setup.clock
        self._tables: Tables = setup.tables
        self._scope = addressing.bindings_scope(setup.app_id)
        self._address: str = settings["address"]
        self._port: int = settings["port"]
        self._max_body: int = settings["maxBodySize"]
        self._paths = frozenset(settings["path"])
        self._window: float = settings["replayWindow"]
        self._origins: Sequence[str] = settings["allowedOrigins"]
        self._rate = _Rate(settings["rate"], setup.clock)
        self._names = frozenset(name.lower() for name in settings["headers"] if not name.endswith("*"))
        self._beginnings = tuple(name[:-1].lower() for name in settings["headers"] if name.endswith("*"))
        self._seen: OrderedDict[str, float] = OrderedDict()
        self._silent_until = 0.0

    async def start(self) -> None: ...

    async def ping(self) -> None: ...

    async def close(self) -> None: ...

    async def run(self, accept: Accept) -> None:
        async def handle(request: Request) -> Response:
            return await self._handle(request, accept)

        await HttpListener(self._address, self._port, handle, max_body=self._max_body).serve()

    async def _handle(self, request: Request, accept: Accept) -> Response:
        if request.path not in self._paths:
            return Response(404)
        if request.method == "OPTIONS":
            return self._handshake(request)
        if request.method != "POST":
            return Response(405, [("allow", METHODS)])
        origin = request.headers.get("webhook-request-origin")
        if origin is not None and not self._allows(origin):
            return self._refusal(403, "this origin has no permission")
        pause = self._rate.take()
        if pause:
            return Response(429, [("retry-after", str(pause))])
        try:
            delivery = self._check.check(request, self._clock.now())
        except Refused as error:
            return self._refusal(401, str(error))
        try:
            return await self._take(request, delivery, accept)
        except MessageTooLarge:
            return Response(413)
        except BrokerError as error:
            self._log("a request could not be stored: %s", error)
            return Response(503, [RETRY_AFTER])

    async def _take(self, request: Request, delivery: str, accept: Accept) -> Response:
        """202 once it is stored, or was before."""
        digest = hashlib.sha256(delivery.encode("utf-8", "surrogatepass")).hexdigest() if delivery else ""
        if digest and await self._known(digest):
            return Response(202)
        await accept(
            Item(
                data=request.body,
                metadata=self._handed_on(request.headers),
                id=digest or None,
                content_type=request.headers.get("content-type", "application/octet-stream"),
            )
        )
        if digest:
            await self._remember(digest)
        return Response(202)

    async def _known(self, digest: str) -> bool:
        if self._seen.get(digest, 0.0) > self._clock.now():
            return True
        return await self._tables.table(self._scope).get(("seen", self._name, digest)) is not None

    async def _remember(self, digest: str) -> None:
        """After the item was stored: a request whose sender has had no answer must not count as seen."""
        await self._tables.table(self._scope).commit(
            [Put(key=("seen", self._name, digest), value=b"", ttl=self._window)]
        )
        self._seen[digest] = self._clock.now() + self._window
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    def _handed_on(self, headers: Mapping[str, str]) -> dict[str, str]:
        return {
            name: value
            for name, value in headers.items()
            if (name in self._names or name.startswith(self._beginnings)) and name not in _NEVER
        }

    def _handshake(self, request: Request) -> Response:
        """Consent to be called (CloudEvents WebHook 4). A callback URL is not called: the answer says it all."""
        origin = request.headers.get("webhook-request-origin", "")
        allow = ("allow", METHODS)
        if not origin or not self._allows(origin):
            return Response(403, [allow])
        rate = str(self._rate.per_minute or "*")
        granted = "*" if "*" in self._origins else origin
        return Response(200, [allow, ("webhook-allowed-origin", granted), ("webhook-allowed-rate", rate)])

    def _allows(self, origin: str) -> bool:
        return "*" in self._origins or origin.lower() in {one.lower() for one in self._origins}

    def _refusal(self, status: int, why: str) -> Response:
        self._log("a request was refused: %s", why)
        return Response(status, body=f"{why}\n".encode())

    def _log(self, line: str, cause: object) -> None:
        now = self._clock.now()
        if now >= self._silent_until:
            self._silent_until = now + LOG_PAUSE
            logger.warning(f"binding %s: {line}", self._name, cause)


class _Rate:
    """So many requests a minute, or as many in one burst."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        """0 is no limit."""
        self.per_minute = per_minute
        self._clock = clock
        self._left = float(per_minute)
        self._since = clock.now()

    def take(self) -> int:
        """0, or the seconds after which there is room again."""
        if not self.per_minute:
            return 0
        now = self._clock.now()
        self._left = min(self.per_minute, self._left + max(0.0, now - self._since) * self.per_minute / 60)
        self._since = now
        if self._left < 1:
            return max(1, round((1 - self._left) * 60 / self.per_minute))
        self._left -= 1
        return 0


def _check(settings: Settings) -> Check:
    kind, id_header = settings["signature"], settings["idHeader"]
    if kind == "none":
        for name in ("secret", "previousSecret"):
            if settings.given(name):
                raise settings.fault(name, "signature is none, so nothing would be checked with it")
    elif not settings["secret"]:
        raise settings.fault("secret", f"the signature {kind} needs it")
    for name in ("signatureHeader", "signaturePrefix", "algorithm", "encoding"):
        if kind != "hmac" and settings.given(name):
            raise settings.fault(name, "is for the signature hmac")
    if id_header and kind in ("github", "stripe"):
        raise settings.fault("idHeader", f"the signature {kind} identifies a delivery already")
    if kind != "stripe" and settings.given("tolerance"):
        raise settings.fault("tolerance", "is for the signature stripe")
    secrets = [settings[name].encode() for name in ("secret", "previousSecret") if settings[name]]
    match kind:
        case "github":
            return HmacCheck(Keys(secrets), header="X-Hub-Signature-256", prefix="sha256=")
        case "stripe":
            return StripeCheck(Keys(secrets), settings["tolerance"])
        case "hmac":
            return HmacCheck(
                Keys(secrets),
                header=settings["signatureHeader"],
                prefix=settings["signaturePrefix"],
                algorithm=settings["algorithm"],
                base64=settings["encoding"] == "base64",
                id=id_header,
            )
        case "bearer":
            return BearerCheck(Keys(secrets), id_header)
    return NoCheck(id_header)


def _open(setup: Setup) -> WebhookBinding:
    settings = setup.settings
    for path in settings["path"]:
        if not path.startswith("/"):
            raise settings.fault("path", f"must begin with / (got '{path}')")
    return WebhookBinding(setup, _check(settings))


SPEC = ComponentSpec(
    type="bindings.webhook",
    title="Webhook",
    about=(
        "Takes what other systems post, at a port of its own: nothing else of the sidecar can be reached there. A "
        "request is answered 202 once its body is stored, so that it survives an app, and a sidecar, that is down; "
        "one that cannot be stored gets 503 and comes again. Signatures are checked over the body as it came. A "
        "delivery that was seen before is answered 202 and not stored again. Senders that ask for permission "
        "(CloudEvents WebHook) get it. Use `direction: input` to listen while the app is down."
    ),
    open=_open,
    fields=(
        Field("port", "The port to listen at.", Kind.INTEGER, required=True, minimum=1, maximum=65535),
        Field("address", "The address to listen at; `0.0.0.0` for all.", default="127.0.0.1"),
        Field("path", "The paths that are taken; all others are answered 404.", Kind.LIST, default=("/",)),
        Field(
            "signature",
            "What proves who has sent a request: `github` (`X-Hub-Signature-256`), `stripe` (`Stripe-Signature`), "
            "`hmac` (the HMAC of the body in another header), `bearer` (a token), or `none`: everybody who reaches the "
            "port may post.",
            Kind.CHOICE,
            choices=("github", "stripe", "hmac", "bearer", "none"),
            required=True,
        ),
        Field("secret", "The secret of the signatures, or the token.", secret=True, default=""),
        Field("previousSecret", "One that holds as well, while it is being replaced.", secret=True, default=""),
        Field("signatureHeader", "The header of `hmac`.", default="X-Signature"),
        Field("signaturePrefix", "What stands before the signature in it, such as `sha256=`.", default=""),
        Field("algorithm", "The hash of `hmac`.", Kind.CHOICE, choices=("sha256", "sha512"), default="sha256"),
        Field("encoding", "How `hmac` is written.", Kind.CHOICE, choices=("hex", "base64"), default="hex"),
        Field(
            "tolerance",
            "How far the timestamp of `stripe` may be from the time here.",
            Kind.DURATION,
            default=300.0,
            minimum=1,
        ),
        Field(
            "idHeader",
            "The header that identifies a delivery, for `hmac`, `bearer` and `none`. It is not signed: without it, the "
            "signature of `hmac` identifies the delivery, and two with the same body are one.",
            default="",
        ),
        Field(
            "replayWindow",
            "How long deliveries are remembered, to know one that comes again.",
            Kind.DURATION,
            default=86_400.0,
            minimum=1,
        ),
        Field(
            "headers",
            "Headers of the request that the app gets; `*` at the end stands for any ending.",
            Kind.LIST,
            default=("x-*", "ce-*"),
        ),
        Field("maxBodySize", "The largest body that is taken.", Kind.SIZE, default=1 << 20, minimum=1, maximum=1 << 30),
        Field(
            "allowedOrigins",
            "The senders that get permission when they ask, as they name themselves; `*` is everybody.",
            Kind.LIST,
            default=("*",),
        ),
        Field(
            "rate",
            "Requests a minute; further ones are answered 429. 0 is no limit.",
            Kind.INTEGER,
            default=0,
            minimum=0,
        ),
    ),
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: github
spec:
  type: bindings.webhook
  version: v1
  metadata:
  - name: port
    value: "8090"
  - name: signature
    value: github
  - name: secret
    secretKeyRef:
      name: github
      key: secret
  - name: direction
    value: input
auth:
  secretStore: secrets
""",
)
