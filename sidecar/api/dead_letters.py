"""The dead letters of the app: `/mesh/v1/dead-letters`, and `/mesh/v1/redrives` (docs/dead-letters.md)."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from mesh import inbound
from mesh.codec import header
from mesh.codec import json as json_codec
from mesh.dead_letters.inbox import Inbox, InvalidCursor, InvalidLetterId, Shown
from mesh.dead_letters.redrive import LEAST_RATE, MOST_RATE, RATE, Destination, Redrive, Redrives
from mesh.dead_letters.selection import Filter
from mesh.dead_letters.store import Kept
from mesh.delivery import Reason
from mesh.errors import ApiError, BrokerError, Code, MeshError, clip
from mesh.ports import Message, Mode, Topic
from mesh.ports.tables import InvalidKey
from mesh.runs import Run, TooManyRuns
from sidecar.api.state import send_json
from sidecar.api.strict import invalid, moment, order, query, shown_time, whole
from sidecar.http.responses import send_response
from sidecar.http.routing import Router

DEFAULT_LIMIT, MOST = 100, 1000
"""Letters of a page."""


class _Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """A filter, as a request gives it."""

    pubsubname: str | None = None
    topic: str | None = None
    position: str | None = None
    reason: str | None = None
    status: int | None = None
    after: str | None = None
    before: str | None = None
    type: str | None = None
    source: str | None = None
    id: str | None = None
    text: str | None = None

    def filter(self) -> Filter:
        """Raises `ApiError`."""
        given = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}
        for name in ("after", "before"):
            if name in given:
                given[name] = moment(given[name], name)
        if self.reason is not None:
            try:
                given["reason"] = Reason(self.reason)
            except ValueError:
                known = ", ".join(reason.value for reason in Reason)
                raise invalid(f"reason must be one of {known} (got '{clip(self.reason)}')") from None
        return Filter(**given)


_NAMES = _Wanted.__struct_fields__


class _Purge(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    filter: _Wanted
    """Required, if empty: nothing is purged by an empty request."""
    dry_run: bool = False


class _Redrive(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    filter: _Wanted
    to: Destination | None = None
    everyone: bool = False
    rate: float = RATE
    dry_run: bool = False


class DeadLettersApi:
    def __init__(self, app_id: str, inbox: Inbox, redrives: Redrives) -> None:
        self._app_id = app_id
        self._inbox = inbox
        self._redrives = redrives

    def add_to(self, router: Router) -> None:
        group, root = "mesh/dead-letters", "/mesh/v1/dead-letters"
        for method, template, app in (
            ("GET", root, self.list_letters),
            ("GET", f"{root}:count", self.count),
            ("POST", f"{root}:purge", self.purge),
            ("POST", f"{root}:redrive", self.redrive),
            ("GET", f"{root}/{{letter:path}}", self.show),
            ("DELETE", f"{root}/{{letter:path}}", self.remove),
            ("GET", "/mesh/v1/redrives", self.list_redrives),
            ("GET", "/mesh/v1/redrives/{id}", self.show_redrive),
            ("DELETE", "/mesh/v1/redrives/{id}", self.cancel),
        ):
            router.add((method,), template, _answered(app), group=group)

    async def list_letters(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = query(scope, *_NAMES, "order", "limit", "cursor")
        newest = asked.get("order", "newest")
        if newest not in ("newest", "oldest"):
            raise invalid(f"order must be newest or oldest (got '{clip(newest)}')")
        page = await self._inbox.page(
            _wanted(asked).filter(),
            newest=newest == "newest",
            limit=whole(asked, "limit", DEFAULT_LIMIT, MOST),
            cursor=asked.get("cursor"),
        )
        content: dict[str, Any] = {"deadLetters": [_row(shown) for shown in page.letters]}
        await send_json(send, content | ({"cursor": page.cursor} if page.cursor else {}))

    async def count(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, _counts(await self._inbox.count(_wanted(query(scope, *_NAMES)).filter())))

    async def show(self, scope: Scope, receive: Receive, send: Send) -> None:
        """All of a letter; with `raw=true` the payload as it was stored, and the attributes as headers."""
        raw = query(scope, "raw").get("raw", "false")
        if raw not in ("true", "false"):
            raise invalid(f"raw must be true or false (got '{clip(raw)}')")
        kept = await self._inbox.get(letter_id := scope["path_params"]["letter"])
        if kept is None:
            raise _not_found(letter_id)
        if raw == "true":
            await _send_raw(send, kept.letter.message)
        else:
            await send_json(send, _whole(self._inbox.id_of(kept), self._inbox.named(kept), kept))

    async def remove(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not await self._inbox.remove(letter_id := scope["path_params"]["letter"]):
            raise _not_found(letter_id)
        await send_response(send, 204, [], b"")

    async def purge(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = await order(scope, receive, _Purge)
        wanted = asked.filter.filter()
        if asked.dry_run:
            await send_json(send, _counts(await self._inbox.count(wanted)))
        else:
            await send_json(send, {"purged": await self._inbox.purge(wanted)})

    async def redrive(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = await order(scope, receive, _Redrive)
        wanted = asked.filter.filter()
        if not LEAST_RATE <= asked.rate <= MOST_RATE:
            raise invalid(f"rate must be from {LEAST_RATE:g} to {MOST_RATE:g} events per second (got {asked.rate:g})")
        if asked.everyone and asked.to is not None:
            raise invalid("everyone has no meaning with to: whoever subscribes to that topic gets the events")
        if asked.dry_run:
            counts = await self._redrives.check(wanted, asked.to, asked.everyone)
            await send_json(send, _counts(counts))
        else:
            run = await self._redrives.start(wanted, to=asked.to, everyone=asked.everyone, rate=asked.rate)
            await send_run(send, run_content(run), status=202)

    async def list_redrives(self, scope: Scope, receive: Receive, send: Send) -> None:
        query(scope)
        runs = await self._redrives.runs.all(self._app_id)
        await send_json(send, {"redrives": [run_content(run) for run in runs]})

    async def show_redrive(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._send_found(scope, send, await self._redrives.runs.get(self._app_id, scope["path_params"]["id"]))

    async def cancel(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._send_found(scope, send, await self._redrives.runs.cancel(self._app_id, scope["path_params"]["id"]))

    async def _send_found(self, scope: Scope, send: Send, run: Redrive | None) -> None:
        if run is None:
            raise run_not_found("redrive", scope["path_params"]["id"])
        await send_run(send, run_content(run))


def run_content(run: Run) -> dict[str, Any]:
    """A run as the API shows it: its record, with times that people can read."""
    content: dict[str, Any] = msgspec.to_builtins(run)
    content = {"id": run.id, "state": run.state.value} | content
    for name in ("created", "finished"):
        if content.get(name) is not None:
            content[name] = shown_time(content[name])
    wanted = content.get("filter", {})
    for name in ("after", "before"):
        if name in wanted:
            wanted[name] = shown_time(wanted[name])
    return content


async def send_run(send: Send, content: Mapping[str, Any], *, status: int = 200) -> None:
    body = msgspec.json.encode(content)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send_response(send, status, headers, body)


def run_not_found(kind: str, run_id: str) -> ApiError:
    return ApiError(Code.RUN_NOT_FOUND, f"there is no {kind} '{clip(run_id)}'; runs are forgotten after a week")


def _answered(app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> ASGIApp:
    """With the errors of the inbox as the API has them."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except (InvalidCursor, InvalidLetterId, InvalidKey) as error:
            raise invalid(str(error)) from None
        except TooManyRuns as error:
            raise ApiError(Code.RUN_LIMIT, str(error)) from None
        except BrokerError as error:
            raise ApiError(Code.DEAD_LETTERS, f"the dead letters cannot be had right now: {error}") from error

    return answer


def _wanted(asked: Mapping[str, str]) -> _Wanted:
    given = {name: value for name, value in asked.items() if name in _NAMES}
    try:
        return msgspec.convert(given, _Wanted, strict=False)
    except msgspec.ValidationError:
        raise invalid(f"status must be an integer (got '{clip(asked['status'])}')") from None


def _not_found(letter_id: str) -> ApiError:
    message = f"there is no dead letter '{clip(letter_id)}': it was removed or sent again, or has been forgotten"
    return ApiError(Code.DEAD_LETTER_NOT_FOUND, message)


def _counts(counts: Mapping[Topic, int]) -> dict[str, Any]:
    return {
        "matching": sum(counts.values()),
        "subscriptions": [{"pubsubname": pubsub, "topic": name, "count": n} for (pubsub, name), n in counts.items()],
    }


def _row(shown: Shown) -> dict[str, Any]:
    row = shown.row
    event = {"id": row.id, "source": row.source, "type": row.type}
    return {
        "id": shown.id,
        "pubsubname": shown.subscription.pubsub,
        "topic": shown.subscription.name,
        "reason": row.reason.value,
        "text": row.text,
        **({} if row.status is None else {"status": row.status}),
        "attempts": row.attempts,
        "firstFailure": shown_time(row.first_failure),
        "lastFailure": shown_time(row.died),
        "expires": shown_time(row.expires),
        "size": row.size,
        **({"event": event} if row.id else {}),
        **({"redrive": row.redriven} if row.redriven else {}),
    }


def _whole(letter_id: str, subscription: Topic, kept: Kept) -> dict[str, Any]:
    letter = kept.letter
    message = letter.message
    return {
        "id": letter_id,
        "pubsubname": subscription.pubsub,
        "topic": subscription.name,
        "reason": letter.reason.value,
        "text": letter.text,
        **({} if letter.status is None else {"status": letter.status}),
        "excerpt": _text_or_base64(letter.excerpt),
        "destination": letter.destination,
        "attempts": letter.attempts,
        "firstFailure": shown_time(letter.first_failure),
        "lastFailure": shown_time(letter.last_failure),
        "expires": shown_time(kept.expires),
        "stored": {
            "pubsubname": letter.topic.pubsub,
            "topic": letter.topic.name,
            "position": letter.position,
            "time": shown_time(letter.stored),
        },
        "headers": dict(message.headers),
        **message_content(message),
    }


def message_content(message: Message) -> dict[str, Any]:
    """The event in the JSON format; what is none as bytes."""
    payload = message.payload or b""
    try:
        if message.mode is Mode.BINARY:
            event = inbound.in_json_form(message.attributes, message.payload)
            return {"event": msgspec.Raw(json_codec.encode_event(event))}
        if message.mode is Mode.STRUCTURED:
            json_codec.members(payload)
            return {"event": msgspec.Raw(payload)}
    except MeshError:
        pass
    return {"data": _text_or_base64(payload), "contentType": message.content_type or "application/octet-stream"}


def _text_or_base64(data: bytes) -> str | dict[str, str]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


async def _send_raw(send: Send, message: Message) -> None:
    payload = message.payload or b""
    attributes = dict(message.attributes)
    media_type = {
        Mode.STRUCTURED: "application/cloudevents+json",
        Mode.BINARY: str(attributes.pop("datacontenttype", "") or "application/octet-stream"),
        Mode.RAW: message.content_type or "application/octet-stream",
    }[message.mode]
    headers = [(f"ce-{name}".encode(), text.encode()) for name, text in header.encode_all(attributes).items()]
    headers += [(b"content-type", media_type.encode("ascii", "replace")), (b"x-content-type-options", b"nosniff")]
    await send_response(send, 200, [*headers, (b"content-length", b"%d" % len(payload))], payload)
