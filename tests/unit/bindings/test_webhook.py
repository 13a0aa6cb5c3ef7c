"""The webhook binding, request by request: who may post, what is a repeat, what the app gets."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

import pytest

from bindings.bindings.webhook import SPEC, WebhookBinding
from bindings.http_listener import Request, Response
from mesh.errors import BrokerUnavailable, ConfigurationError, MessageTooLarge
from mesh.ports.bindings import Item
from tests.opened import opened
from tests.virtual_clock import VirtualClock

SECRET = "whsec"


class Hook:
    """One binding, and what it has had stored."""

    def __init__(self, **metadata: str) -> None:
        self.clock = VirtualClock()
        self.binding: WebhookBinding = opened(SPEC, self.clock, **{"port": "1", **metadata})
        self.items: list[Item] = []
        self.error: Exception | None = None

    async def accept(self, item: Item) -> None:
        if self.error is not None:
            raise self.error
        self.items.append(item)

    async def ask(
        self,
        body: bytes = b"",
        headers: Mapping[str, str] = {},
        *,
        method: str = "POST",
        path: str = "/",
        query: Mapping[str, str] = {},
    ) -> Response:
        return await self.binding._handle(Request(method, path, query, headers, body), self.accept)

    async def status(self, body: bytes = b"", headers: Mapping[str, str] = {}, **more: Any) -> int:
        return (await self.ask(body, headers, **more)).status


def signed(body: bytes, secret: str = SECRET, algorithm: str = "sha256") -> bytes:
    return hmac.new(secret.encode(), body, algorithm).digest()


def github(body: bytes, secret: str = SECRET) -> dict[str, str]:
    return {"x-hub-signature-256": f"sha256={signed(body, secret).hex()}"}


def stripe(body: bytes, moment: float, secret: str = SECRET, also: str = "") -> dict[str, str]:
    signature = signed(f"{int(moment)}.".encode() + body, secret).hex()
    return {"stripe-signature": f"t={int(moment)},{also}v1={signature},v0=6ffbb59b"}


async def test_github_by_its_own_example() -> None:
    """The values of GitHub's documentation, "Validating webhook deliveries"."""
    hook = Hook(signature="github", secret="It's a Secret to Everybody")
    right = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert await hook.status(b"Hello, World!", {"x-hub-signature-256": right}) == 202
    assert await hook.status(b"Hello, World?", {"x-hub-signature-256": right}) == 401
    assert [item.data for item in hook.items] == [b"Hello, World!"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-hub-signature-256": ""},
        {"x-hub-signature-256": "sha256="},
        {"x-hub-signature-256": "sha256=zz"},
        {"x-hub-signature-256": f"sha1={signed(b'1').hex()}"},
        {"x-hub-signature-256": signed(b"1").hex()},
        {"x-hub-signature-256": f"sha256={signed(b'1').hex()[:32]}"},
        {"x-hub-signature": f"sha256={signed(b'1').hex()}"},
        github(b"1", "guessed"),
        github(b"1", ""),
    ],
)
async def test_what_is_forged_is_refused(headers: dict[str, str]) -> None:
    hook = Hook(signature="github", secret=SECRET)
    assert await hook.status(b"1", headers) == 401
    assert hook.items == []


async def test_a_secret_that_is_being_replaced() -> None:
    hook = Hook(signature="github", secret="new", previousSecret="old")
    for number, secret in enumerate(("new", "old", "older")):
        body = b"%d" % number
        assert await hook.status(body, github(body, secret)) == (401 if secret == "older" else 202)


async def test_what_is_replayed_is_stored_once() -> None:
    """Also under another delivery id, which is not signed; and after a restart."""
    hook = Hook(signature="github", secret=SECRET, replayWindow="1h")
    assert await hook.status(b"1", github(b"1") | {"x-github-delivery": "a"}) == 202
    assert await hook.status(b"1", github(b"1") | {"x-github-delivery": "b"}) == 202
    hook.binding._seen.clear()
    assert await hook.status(b"1", github(b"1")) == 202
    assert len(hook.items) == 1
    await hook.clock.advance(3601)
    assert await hook.status(b"1", github(b"1")) == 202
    assert len(hook.items) == 2
    assert hook.items[0].id == hook.items[1].id


@pytest.mark.parametrize(("error", "status"), [(BrokerUnavailable("gone"), 503), (MessageTooLarge(9, 8), 413)])
async def test_what_could_not_be_stored_was_not_seen(error: Exception, status: int) -> None:
    hook = Hook(signature="github", secret=SECRET)
    hook.error = error
    assert await hook.status(b"1", github(b"1")) == status
    hook.error = None
    assert await hook.status(b"1", github(b"1")) == 202
    assert len(hook.items) == 1


async def test_stripe() -> None:
    hook = Hook(signature="stripe", secret=SECRET, tolerance="300s")
    now = hook.clock.now()
    assert await hook.status(b"{}", stripe(b"{}", now)) == 202
    assert await hook.status(b"{}", stripe(b"{}", now)) == 202  # the same delivery
    assert await hook.status(b"{}", stripe(b"{}", now - 299, also="v1=00,")) == 202  # another one
    assert len(hook.items) == 2


@pytest.mark.parametrize(
    ("shift", "headers"),
    [
        (0, {}),
        (0, {"stripe-signature": "t=1,t=2,v1=00"}),
        (0, {"stripe-signature": "t=x,v1=00"}),
        (0, {"stripe-signature": "v1=00"}),
        (0, {"stripe-signature": "t=1"}),
        (-302, None),
        (302, None),
        (-1e9, None),
    ],
)
async def test_stripe_that_is_stale_or_broken(shift: float, headers: dict[str, str] | None) -> None:
    hook = Hook(signature="stripe", secret=SECRET)
    given = stripe(b"{}", hook.clock.now() + shift) if headers is None else headers
    assert await hook.status(b"{}", given) == 401
    assert hook.items == []


async def test_a_timestamp_is_part_of_what_stripe_signs() -> None:
    hook = Hook(signature="stripe", secret=SECRET)
    now = hook.clock.now()
    await hook.status(b"{}", stripe(b"{}", now))
    fresh = stripe(b"{}", now)["stripe-signature"].replace(str(int(now)), str(int(now) + 1))
    assert await hook.status(b"{}", {"stripe-signature": fresh}) == 401


async def test_any_hmac() -> None:
    hook = Hook(
        signature="hmac",
        secret=SECRET,
        signatureHeader="X-Sign",
        algorithm="sha512",
        encoding="base64",
        idHeader="X-Id",
    )
    headers = {"x-sign": base64.b64encode(signed(b"1", algorithm="sha512")).decode()}
    assert await hook.status(b"1", headers | {"x-id": "a"}) == 202
    assert await hook.status(b"1", headers | {"x-id": "b"}) == 202
    assert await hook.status(b"1", headers | {"x-id": "a"}) == 202
    assert await hook.status(b"1", headers) == 202  # what has no id is no repeat
    assert await hook.status(b"1", {"x-sign": base64.b64encode(signed(b"1")).decode()}) == 401
    assert len(hook.items) == 3


@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [
        ({"authorization": "Bearer whsec"}, {}, 202),
        ({"authorization": "bearer  whsec"}, {}, 202),
        ({}, {"access_token": "whsec"}, 202),
        ({}, {}, 401),
        ({"authorization": "Basic whsec"}, {}, 401),
        ({"authorization": "Bearer whse"}, {}, 401),
        ({"authorization": "Bearer \xff"}, {}, 401),
    ],
)
async def test_a_bearer_token(headers: dict[str, str], query: dict[str, str], status: int) -> None:
    assert await Hook(signature="bearer", secret=SECRET).status(b"1", headers, query=query) == status


async def test_a_cloudevent_is_known_by_source_and_id() -> None:
    hook = Hook(signature="none")
    for source, event in (("/a", "1"), ("/a", "1"), ("/b", "1")):
        await hook.status(b"1", {"ce-source": source, "ce-id": event})
    assert len(hook.items) == 2


async def test_what_the_app_gets() -> None:
    hook = Hook(signature="bearer", secret=SECRET, headers="X-Keep, ce-*, authorization")
    headers = {
        "authorization": f"Bearer {SECRET}",
        "content-type": "text/xml",
        "x-keep": "1",
        "x-other": "2",
        "ce-type": "t",
        "cookie": "c",
    }
    assert await hook.status(b"<a/>", headers) == 202
    assert hook.items == [Item(data=b"<a/>", metadata={"x-keep": "1", "ce-type": "t"}, content_type="text/xml")]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/b", 202), ("POST", "/", 404), ("POST", "/a/b", 404), ("GET", "/a", 405), ("PUT", "/a", 405)],
)
async def test_paths_and_methods(method: str, path: str, status: int) -> None:
    assert await Hook(signature="none", path="/a, /b").status(b"1", method=method, path=path) == status


@pytest.mark.parametrize(
    ("settings", "headers", "granted"),
    [
        ({}, {"webhook-request-origin": "a.example"}, {"webhook-allowed-origin": "*", "webhook-allowed-rate": "*"}),
        (
            {"allowedOrigins": "a.example, b.example", "rate": "120"},
            {"webhook-request-origin": "B.example", "webhook-request-rate": "1000"},
            {"webhook-allowed-origin": "B.example", "webhook-allowed-rate": "120"},
        ),
        ({"allowedOrigins": "a.example"}, {"webhook-request-origin": "evil.example"}, {}),
        ({}, {}, {}),
    ],
)
async def test_permission(settings: dict[str, str], headers: dict[str, str], granted: dict[str, str]) -> None:
    """CloudEvents WebHook 4: who gets none gets no `WebHook-Allowed-Origin`."""
    answer = await Hook(signature="none", **settings).ask(headers=headers, method="OPTIONS")
    assert dict(answer.headers) == {"allow": "POST, OPTIONS"} | granted
    assert answer.status == (200 if granted else 403)


async def test_an_origin_without_permission_may_not_post() -> None:
    hook = Hook(signature="none", allowedOrigins="a.example")
    assert await hook.status(b"1", {"webhook-request-origin": "evil.example"}) == 403
    assert await hook.status(b"1", {"webhook-request-origin": "a.example"}) == 202


async def test_a_rate() -> None:
    hook = Hook(signature="none", rate="60")
    assert [await hook.status(b"1") for _ in range(61)] == [202] * 60 + [429]
    assert dict((await hook.ask(b"1")).headers) == {"retry-after": "1"}
    await hook.clock.advance(1)
    assert [await hook.status(b"1") for _ in range(2)] == [202, 429]


async def test_signatures_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def note(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("bindings.bindings.webhook.hmac.compare_digest", note)
    hook = Hook(signature="github", secret=SECRET)
    await hook.status(b"1", github(b"1", "wrong"))
    assert compared == [(signed(b"1"), signed(b"1", "wrong"))]


@pytest.mark.parametrize(
    ("metadata", "rule"),
    [
        ({}, r"metadata\.signature: a component of type bindings\.webhook needs it"),
        ({"signature": "github"}, r"metadata\.secret: the signature github needs it"),
        ({"signature": "none", "secret": "s"}, r"metadata\.secret: signature is none"),
        ({"signature": "github", "secret": "s", "idHeader": "x"}, r"metadata\.idHeader: .* identifies"),
        ({"signature": "github", "secret": "s", "encoding": "hex"}, r"metadata\.encoding: is for the signature hmac"),
        ({"signature": "none", "tolerance": "1m"}, r"metadata\.tolerance: is for the signature stripe"),
        ({"signature": "none", "path": "hook"}, r"metadata\.path: must begin with /"),
        ({"signature": "none", "port": "0"}, r"metadata\.port: must be at least 1"),
    ],
)
def test_settings_that_cannot_be_obeyed(metadata: dict[str, str], rule: str) -> None:
    with pytest.raises(ConfigurationError, match=rule):
        Hook(**metadata)


def test_identical_requests_at_once_have_one_id() -> None:
    """The broker stores one of them: neither knows of the other yet."""

    async def both() -> list[Item]:
        hook = Hook(signature="github", secret=SECRET)
        await asyncio.gather(*(hook.status(b"1", github(b"1")) for _ in range(2)))
        return hook.items

    items = asyncio.run(both())
    assert len({item.id for item in items}) == 1
    assert hashlib.sha256(signed(b"1").hex().encode()).hexdigest() == items[0].id
