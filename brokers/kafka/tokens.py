"""Tokens for OAUTHBEARER (RFC 7628): where aiokafka takes one for each connection that it opens."""

from __future__ import annotations

import asyncio
import base64
import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote, urlencode

import aiokafka.errors as errors
from aiokafka.abc import AbstractTokenProvider

from brokers.kafka.secret_file import read_secret
from mesh.errors import clip

ENDPOINT_LIMIT = 4.0
"""Seconds that an endpoint may take; a client waits 5 for its connection."""
LONGEST_ANSWER = 256 * 1024
SHARE_OF_LIFE = 0.8
"""A token is used again for so much of the time that it is good for."""


class FromFile(AbstractTokenProvider):  # type: ignore[misc]
    """The content of a file that somebody else keeps fresh, such as a projected token of Kubernetes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def token(self) -> str:
        """Raises `KafkaConnectionError` for a file that is not there or holds no token: it may come."""
        try:
            return await asyncio.to_thread(read_secret, self._path)
        except OSError as error:
            raise errors.KafkaConnectionError(f"{self._path}: {error.strerror}") from None
        except ValueError as error:
            raise errors.KafkaConnectionError(f"{self._path}: {error}") from None


class FromEndpoint(AbstractTokenProvider):  # type: ignore[misc]
    """Asks for a token with the client's own credentials (RFC 6749, 4.4), and again before it ends."""

    def __init__(self, url: str, client_id: str, secret: str, *, scope: str | None = None) -> None:
        self._request = urllib.request.Request(  # noqa: S310 - the settings take no other scheme than http and https
            url,
            urlencode({"grant_type": "client_credentials"} | ({"scope": scope} if scope else {})).encode(),
            {
                "authorization": "Basic "
                + base64.b64encode(f"{quote(client_id, safe='')}:{quote(secret, safe='')}".encode()).decode(),
                "content-type": "application/x-www-form-urlencoded",
                "accept": "application/json",
            },
        )
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._token = ""
        self._good_until = 0.0
        self._asking = asyncio.Lock()

    async def token(self) -> str:
        """Raises `AuthenticationFailedError` when the endpoint refuses us, `KafkaConnectionError` when it fails."""
        async with self._asking:
            if time.monotonic() >= self._good_until:
                begun = time.monotonic()
                self._token, life = await asyncio.to_thread(self._ask)
                self._good_until = begun + SHARE_OF_LIFE * life
            return self._token

    def _ask(self) -> tuple[str, float]:
        host = self._request.host
        try:
            with self._opener.open(self._request, timeout=ENDPOINT_LIMIT) as answer:
                told = json.loads(answer.read(LONGEST_ANSWER))
            token, life = told["access_token"], float(told.get("expires_in", 0))
        except urllib.error.HTTPError as error:
            with error:
                text = f"the token endpoint at {host} answers {error.code}"
                if error.code in (400, 401, 403):
                    raise errors.AuthenticationFailedError(f"{text}: {_reason(error.read(LONGEST_ANSWER))}") from None
            raise errors.KafkaConnectionError(text) from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise errors.KafkaConnectionError(f"the token endpoint at {host}: {reason}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise errors.KafkaConnectionError(f"the token endpoint at {host} gives no access_token") from None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise errors.KafkaConnectionError(f"the token endpoint at {host} gives no access_token")
        return token, life


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Else the client's secret would go wherever the answer says."""

    def redirect_request(self, *_: object) -> None:
        return None


def _reason(body: bytes) -> str:
    try:
        return clip(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return "the client is refused"
