"""AWS: the settings that its components share, and clients of its services.

The library is imported when a component is opened, not before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mesh.components import Field, Settings
from mesh.errors import clip
from mesh.ports.stores import StoreError, StoreUnavailable

if TYPE_CHECKING:
    from aiobotocore.session import AioSession

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 10.0
"""Seconds without a sign from the service."""
ATTEMPTS = 3
"""At a request that a service throttles, or that fails; pauses of up to 1 s, then 2 s, lie between them."""
CONNECTIONS = 50
MAX_REASON = 300
"""Characters of what went wrong that are told."""

_NO_ANYWHERE = "IAM Roles Anywhere is not supported: use accessKey and secretKey, or assumeRoleArn"

FIELDS: Sequence[Field] = (
    Field(
        "region",
        "The region, as `eu-central-1`; else that of the environment or of the profile (AWS_REGION, ~/.aws/config).",
        aliases=("awsRegion",),
    ),
    Field("endpoint", "The URL of the service, for one that is not AWS's, as `http://localhost:4566`."),
    Field(
        "accessKey",
        "The id of the access key. Without it, credentials come from where AWS's tools take them: the environment, the "
        "profile, the container, the machine.",
    ),
    Field("secretKey", "The secret of the access key.", secret=True),
    Field("sessionToken", "The session token that belongs to a temporary access key.", secret=True),
    Field("assumeRoleArn", "The role to take with these credentials."),
    Field(
        "sessionName", "What the session of assumeRoleArn is called in AWS's logs.", aliases=("assumeRoleSessionName",)
    ),
    Field("trustAnchorArn", "Part of IAM Roles Anywhere.", refused=_NO_ANYWHERE),
    Field("trustProfileArn", "Part of IAM Roles Anywhere.", refused=_NO_ANYWHERE),
)
"""The settings that all components on AWS share."""

_UNAVAILABLE = frozenset(
    {
        *("ThrottlingException", "Throttling", "ThrottledException", "RequestThrottled", "TooManyRequestsException"),
        *("ProvisionedThroughputExceededException", "RequestLimitExceeded", "SlowDown", "LimitExceededException"),
        *("TransactionInProgressException", "TransactionConflictException", "RequestTimeout", "InternalFailure"),
    }
)
"""Codes of errors that may pass; all with a status of 500 or more may, too."""


class Client:
    """A client of one service. No I/O before `start`."""

    def __init__(self, settings: Settings, service: str, **options: Any) -> None:
        """`service` as the library calls it, as `dynamodb`; `options` are those of the library's `AioConfig`, and
        `verify`, `use_ssl` of its `create_client`. Raises `ConfigurationError`, `ImportError`."""
        import aiobotocore.session  # noqa: F401

        _check(settings)
        self._settings = settings
        self._service = service
        self._options = options
        self._open = AsyncExitStack()
        self._client: Any = None

    @property
    def api(self) -> Any:
        """The library's client; use it within `translated`. Raises `StoreUnavailable` when it is closed."""
        if self._client is None:
            raise StoreUnavailable("AWS: the client is closed")
        return self._client

    async def start(self) -> None:
        """Sends nothing to the service. Raises `ConfigurationError`, `StoreError`."""
        from aiobotocore.session import get_session
        from botocore.exceptions import NoRegionError

        settings = self._settings
        session = get_session()
        session.register_component("data_loader", await asyncio.to_thread(_descriptions, self._service))
        keys = {
            "aws_access_key_id": settings["accessKey"],
            "aws_secret_access_key": settings["secretKey"],
            "aws_session_token": settings["sessionToken"],
        }
        with translated("AWS"):
            if settings["assumeRoleArn"]:
                await self._take_role(session, keys)
                keys = {}
            try:
                self._client = await self._open.enter_async_context(
                    session.create_client(self._service, **self._where(), **keys)
                )
            except NoRegionError:
                raise settings.fault("region", "it is needed: neither the environment nor a profile has one") from None

    async def close(self) -> None:
        self._client = None
        await self._open.aclose()

    def _where(self) -> dict[str, Any]:
        from aiobotocore.config import AioConfig

        config = dict(self._options)
        connection: dict[str, Any] = {name: config.pop(name) for name in ("verify", "use_ssl") if name in config}
        return {
            **connection,
            "region_name": self._settings["region"],
            "endpoint_url": self._settings["endpoint"],
            "config": AioConfig(
                connect_timeout=CONNECT_TIMEOUT,
                read_timeout=READ_TIMEOUT,
                max_pool_connections=CONNECTIONS,
                retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                user_agent_extra="meshwire",
                **config,
            ),
        }

    async def _take_role(self, session: AioSession, keys: dict[str, Any]) -> None:
        """Has `session` sign with credentials of the role, which are renewed before they expire."""
        from aiobotocore.credentials import (
            AioAssumeRoleCredentialFetcher,
            AioCredentials,
            AioDeferredRefreshableCredentials,
        )
        from aiobotocore.session import get_session

        own = get_session()
        source: Any = None
        if keys["aws_access_key_id"]:
            source = AioCredentials(*keys.values())
        else:
            source = await own.get_credentials()
        if source is None:
            raise StoreError("AWS: there are no credentials to take the role with")

        def client(service: str, **credentials: Any) -> Any:
            return own.create_client(service, **self._where(), **credentials)

        fetcher = AioAssumeRoleCredentialFetcher(
            client,
            source,
            self._settings["assumeRoleArn"],
            extra_args={"RoleSessionName": self._settings["sessionName"] or "meshwire"},
        )

        class Provider:
            METHOD = CANONICAL_NAME = "meshwire-role"

            async def load(self) -> Any:
                return AioDeferredRefreshableCredentials(fetcher.fetch_credentials, self.METHOD)

        session.get_component("credential_provider").providers.insert(0, Provider())


@cache
def _descriptions(service: str) -> Any:
    """What the library reads, some megabytes of JSON, before it makes a client; other things can go on meanwhile."""
    from botocore.loaders import create_loader

    loader = create_loader()
    loader.load_data("endpoints")
    for name in ("service-2", "endpoint-rule-set-1"):
        loader.load_service_model(service, name)
    return loader


def _check(settings: Settings) -> None:
    """Settings that do not go together."""
    if bool(settings["accessKey"]) != bool(settings["secretKey"]):
        raise settings.fault("accessKey", "accessKey and secretKey need each other")
    if settings["sessionToken"] and not settings["accessKey"]:
        raise settings.fault("sessionToken", "it needs accessKey and secretKey")
    if settings["sessionName"] and not settings["assumeRoleArn"]:
        raise settings.fault("sessionName", "it needs assumeRoleArn")
    if endpoint := settings["endpoint"]:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise settings.fault("endpoint", "it must be of the form https://host or http://host:port")


@contextmanager
def translated(service: str) -> Iterator[None]:
    """Errors of the library within become those of stores; `service` is the name that people know."""
    from aiohttp import ClientError
    from botocore import exceptions as errors

    try:
        yield
    except errors.ClientError as error:
        raise _told(service, error) from error
    except (errors.HTTPClientError, errors.ConnectionError) as error:
        raise StoreUnavailable(f"{service} cannot be reached: {_line(error)}") from error
    except errors.BotoCoreError as error:
        raise StoreError(f"{service}: {_line(error)}") from error
    except (OSError, ClientError) as error:  # such as a timeout, or a body that breaks off
        raise StoreUnavailable(f"{service} cannot be reached: {_line(error)}") from error


def code(error: Any) -> str:
    """Of a `botocore.exceptions.ClientError`."""
    return str(error.response.get("Error", {}).get("Code", ""))


def message(error: Any) -> str:
    """What a `botocore.exceptions.ClientError` says, in one line; nothing where it could repeat credentials.

    The services repeat the request, with its session token, to one who signed it wrongly.
    """
    said = "" if "Signature" in code(error) else str(error.response.get("Error", {}).get("Message") or "")
    return _line(said) if said else ""


def _told(service: str, error: Any) -> StoreError:
    name, said = code(error), message(error)
    text = f"{service}: {clip(name)}" + (f": {said}" if said else "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return StoreUnavailable(text) if name in _UNAVAILABLE or status >= 500 else StoreError(text)


def _line(said: object) -> str:
    return (" ".join(str(said).split()) or type(said).__name__)[:MAX_REASON]
