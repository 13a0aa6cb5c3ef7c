"""`bindings.smtp`: sends mail."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, make_msgid
from ipaddress import ip_address
from typing import Any

from bindings.invocations import check_metadata, check_size, unquoted
from mesh import quantities
from mesh.components import ComponentSpec, Field, Kind, Settings, Setup
from mesh.errors import clip
from mesh.ports.bindings import BindingError, InvalidOperation, Invocation, Result
from mesh.ports.stores import StoreUnavailable

OPERATIONS = ("create",)
TIME_LIMIT = 30.0
"""Seconds for all that is said to the server."""
MAX_BODY = 25 << 20
"""Bytes."""
MAX_RECIPIENTS = 100
AT_ONCE = 8
"""Connections to the server."""
GOODBYE = 2.0
"""Seconds for the end of the dialogue, once the mail is the server's."""
TLS_PORT = 465
"""Where the server speaks TLS from the first byte on; elsewhere STARTTLS begins it."""

_PER_MAIL = ("emailFrom", "emailTo", "emailCC", "emailBCC", "subject", "priority")


class SmtpBinding:
    """An `OutputBinding`. Each mail has a connection of its own."""

    operations = OPERATIONS

    def __init__(self, settings: Settings) -> None:
        """Raises `ConfigurationError`, `ImportError`."""
        import aiosmtplib

        self._library = aiosmtplib
        self._settings = settings
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._tls: ssl.SSLContext | None = None
        if bool(settings["user"]) != bool(settings["password"]):
            raise settings.fault("user", "user and password need each other")
        for name in _PER_MAIL[:4]:
            try:
                _addresses(name, settings[name])
            except InvalidOperation as error:
                raise settings.fault(name, str(error)) from None

    async def start(self) -> None:
        """Sends nothing: a server that is away for a while is no reason not to start."""
        self._tls = await asyncio.to_thread(_tls, self._settings["skipTLSVerify"])

    async def ping(self) -> None:
        """Nothing is known of the server before a mail is sent."""

    async def close(self) -> None:
        self._tls = None

    async def invoke(self, invocation: Invocation) -> Result:
        check_metadata(invocation, _PER_MAIL)
        check_size(invocation.data, MAX_BODY)
        given = {name: invocation.text(name) or self._settings[name] for name in _PER_MAIL}
        # In a thread, since it takes a while for a large text.
        message, sender, recipients = await asyncio.to_thread(_composed, given, invocation.data)
        if self._tls is None:
            raise StoreUnavailable("the binding is closed")
        try:
            async with asyncio.timeout(TIME_LIMIT):
                await self._slots.acquire()
        except TimeoutError:
            raise StoreUnavailable(f"other mails are not done with after {TIME_LIMIT:g} s") from None
        try:
            await self._send(message, sender, recipients, self._tls)
        finally:
            self._slots.release()
        return Result()

    async def _send(
        self, message: EmailMessage, sender: str, recipients: Sequence[str], context: ssl.SSLContext
    ) -> None:
        """Raises `BindingError` for what the server refused for good, else `StoreUnavailable`."""
        library, settings = self._library, self._settings
        tls = settings["port"] == TLS_PORT
        # A password is told to nobody who could be anybody.
        start_tls = None if tls or not settings["user"] or _is_local(settings["host"]) else True
        server = library.SMTP(
            hostname=settings["host"],
            port=settings["port"],
            username=settings["user"] or None,
            password=settings["password"] or None,
            use_tls=tls,
            start_tls=False if tls else start_tls,
            tls_context=context,
            timeout=TIME_LIMIT,
        )
        try:
            async with asyncio.timeout(TIME_LIMIT):
                await server.connect()
                refused, _ = await server.send_message(message, sender=sender, recipients=list(recipients))
            with contextlib.suppress(library.SMTPException, OSError):  # whatever it says now, it has the mail
                async with asyncio.timeout(GOODBYE):
                    await server.quit()
        except library.SMTPRecipientsRefused as error:
            raise _judged(max(refusal.code for refusal in error.recipients), "all recipients were refused") from None
        except library.SMTPAuthenticationError as error:
            raise _judged(error.code, "the server refused user and password") from None
        except library.SMTPResponseException as error:
            raise _judged(error.code, f"the server refused: {_line(error.message)}") from None
        except TimeoutError:
            raise StoreUnavailable(f"the mail server did not answer within {TIME_LIMIT:g} s") from None
        except (library.SMTPConnectError, library.SMTPServerDisconnected, OSError) as error:
            raise StoreUnavailable(f"the mail server cannot be reached: {_line(error)}") from None
        except library.SMTPException as error:
            raise BindingError(f"the mail server cannot do what is needed: {_line(error)}") from None
        finally:
            server.close()
        if refused:
            names = ", ".join(map(clip, refused))
            raise BindingError(f"the mail was sent, but not to these recipients, who were refused: {names}")


def _judged(code: int, text: str) -> BindingError | StoreUnavailable:
    """RFC 5321, 4.2.1: a code of 4xx may pass."""
    told = f"mail: {text} ({code})"
    return StoreUnavailable(told) if 400 <= code < 500 else BindingError(told)


def _composed(given: Mapping[str, Any], data: bytes) -> tuple[EmailMessage, str, list[str]]:
    """The mail, its sender, and whom it goes to. Raises `InvalidOperation`."""
    for name in ("emailFrom", "emailTo", "subject"):
        if not given[name]:
            raise InvalidOperation(f"neither the metadata nor the component has '{name}'")
    message = EmailMessage(policy=SMTP)
    senders = _addresses("emailFrom", given["emailFrom"])
    if len(senders) != 1:
        raise InvalidOperation("emailFrom must be one address")
    recipients: dict[str, None] = {}
    for name, header in (("emailTo", "To"), ("emailCC", "Cc"), ("emailBCC", "")):
        found = _addresses(name, given[name])
        recipients |= dict.fromkeys(address.addr_spec for address in found)
        if found and header:
            message[header] = found
    if not 1 <= len(recipients) <= MAX_RECIPIENTS:
        raise InvalidOperation(f"a mail has from 1 to {MAX_RECIPIENTS} recipients (got {len(recipients)})")
    if len(given["subject"].splitlines()) > 1 or any(unicodedata.category(c) in ("Cc", "Cs") for c in given["subject"]):
        raise InvalidOperation("the subject has control characters")
    message["From"] = senders[0]
    message["Subject"] = given["subject"]
    message["X-Priority"] = str(_priority(given["priority"]))
    message["Date"] = format_datetime(datetime.now(UTC))
    message["Message-ID"] = make_msgid(domain=senders[0].domain if senders[0].domain.isascii() else "localhost")
    try:
        message.set_content(unquoted(data).decode(), subtype="html")
    except UnicodeDecodeError:
        raise InvalidOperation("the data must be Unicode text") from None
    return message, senders[0].addr_spec, list(recipients)


def _addresses(name: str, text: str) -> list[Address]:
    """Those between semicolons. Raises `InvalidOperation`; nothing else than addresses gets into the mail."""
    found = []
    for part in (part.strip() for part in text.split(";")):
        if not part:
            continue
        plain = part.rpartition("<")[2].removesuffix(">").strip() if part.endswith(">") else part
        shown = part.rpartition("<")[0].strip().strip('"') if part.endswith(">") else ""
        try:
            if not all(character.isprintable() for character in part) or " " in plain or plain.count("@") != 1:
                raise ValueError
            address = Address(display_name=shown, addr_spec=plain)
            if not address.username or not address.domain:
                raise ValueError
        except (ValueError, IndexError, MessageError):
            raise InvalidOperation(f"{name}: '{clip(part)}' is no address (several have ; between them)") from None
        found.append(address)
    return found


def _priority(value: Any) -> int:
    try:
        number = quantities.integer(value) if isinstance(value, str) else int(value)
    except ValueError:
        number = 0
    if not 1 <= number <= 5:
        raise InvalidOperation(f"the priority must be from 1, the highest, to 5 (got '{clip(value)}')")
    return number


def _tls(skip_verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _line(said: object) -> str:
    return (" ".join(str(said).split()) or type(said).__name__)[:300]


def _open(setup: Setup) -> SmtpBinding:
    return SmtpBinding(setup.settings)


SPEC = ComponentSpec(
    type="bindings.smtp",
    title="SMTP",
    about=(
        "Output: `create` sends its data, a JSON string, as a mail in HTML. A request's metadata stands for the "
        "settings of the same names. TLS is used from the start on port 465, and elsewhere where the server offers it; "
        "with `user` and `password` there must be TLS, unless the server is on the same machine. Addresses and "
        "subjects with control characters are refused, so that no text of a customer's adds a header or a recipient."
    ),
    open=_open,
    fields=(
        Field("host", "The mail server.", required=True),
        Field("port", "Its port.", Kind.INTEGER, required=True, minimum=1, maximum=65535),
        Field("user", "The user to log in as, if that is needed.", default=""),
        Field("password", "The user's password.", secret=True, default=""),
        Field("skipTLSVerify", "Accept any certificate of the server. Not for production.", Kind.BOOL, False),
        Field("emailFrom", "The sender, as `orders@example.com` or `Orders <orders@example.com>`.", default=""),
        Field("emailTo", "The recipients, with `;` between them.", default=""),
        Field("emailCC", "Those who get a copy, with `;` between them.", default=""),
        Field("emailBCC", "Those who get a copy that the others do not know of, with `;` between them.", default=""),
        Field("subject", "The subject.", default=""),
        Field("priority", "From 1, the highest, to 5.", Kind.INTEGER, 3, minimum=1, maximum=5),
    ),
    needs="smtp",
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: mail
spec:
  type: bindings.smtp
  version: v1
  metadata:
    - name: host
      value: mail.example.com
    - name: port
      value: "587"
    - name: user
      value: orders
    - name: password
      secretKeyRef:
        name: mail
        key: password
    - name: emailFrom
      value: orders@example.com
    - name: subject
      value: Your order
auth:
  secretStore: secrets
""",
)
