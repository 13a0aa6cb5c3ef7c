"""`bindings.aws.s3`: objects in a bucket of S3, or of a server that speaks as S3 does."""

from __future__ import annotations

import asyncio
import base64
import re
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit, urlunsplit

import msgspec

from bindings import aws
from bindings.aws import Client, translated
from bindings.invocations import check_metadata, check_size, decoded, flag, payload, required, unquoted
from mesh import quantities
from mesh.components import ComponentSpec, Field, Kind, Settings, Setup
from mesh.errors import clip
from mesh.ports.bindings import BindingError, InvalidOperation, Invocation, Result
from mesh.ports.stores import StoreError

T = TypeVar("T")

SERVICE = "S3"
OPERATIONS = ("create", "get", "delete", "list", "presign", "bulkGet", "bulkCreate", "bulkDelete")
MAX_SIZE = 100 << 20
"""Bytes of an object, or of all those of one answer."""
PIECE = 1 << 20
"""Bytes that are read at a time."""
LISTED = 1000
"""Objects in a list, unless fewer are asked for; S3 gives no more."""
DELETED_AT_ONCE = 1000
AT_ONCE = 10
"""Transfers of a bulk operation that run at the same time, unless `concurrency` says otherwise (Dapr)."""
MAX_AT_ONCE = 50
MAX_BULK = 10_000
"""Objects of a bulk operation."""
TRANSFER = 300.0
"""Seconds for one object."""
MAX_PRESIGNED = 7 * 24 * 3600.0
"""Seconds for which a URL can be signed (S3)."""

_CREATE = ("key", "Content-Type", "tags", "storageClass", "presignTTL", "decodeBase64", "filePath")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_NO_FILES = "filePath is not supported: an app cannot have the sidecar read and write files; use the data"


class Listing(msgspec.Struct):
    marker: str = ""
    prefix: str = ""
    maxResults: int = LISTED
    delimiter: str = ""


class Wanted(msgspec.Struct):
    key: str
    filePath: str | None = None


class BulkGet(msgspec.Struct):
    items: list[Wanted]
    concurrency: int = AT_ONCE


class Given(msgspec.Struct):
    key: str
    data: str | None = None
    contentType: str | None = None
    filePath: str | None = None


class BulkCreate(msgspec.Struct):
    items: list[Given]
    concurrency: int = AT_ONCE


class BulkDelete(msgspec.Struct):
    keys: list[str]


class Outcome(msgspec.Struct, omit_defaults=True):
    """What became of one object of a bulk operation."""

    key: str
    data: str = ""
    location: str = ""
    error: str = ""


class Room:
    """What an answer still has room for."""

    def __init__(self) -> None:
        self._left = MAX_SIZE

    def check(self, key: str, size: int) -> None:
        """Raises `BindingError`."""
        if size > self._left:
            raise BindingError(f"the object {clip(key)} has {size} bytes: there is room for {self._left}")

    def take(self, key: str, size: int) -> None:
        self.check(key, size)
        self._left -= size


class S3Binding:
    """An `OutputBinding`."""

    operations = OPERATIONS

    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self._bucket: str = settings["bucket"]
        self._settings = settings
        self._do: dict[str, Callable[[Invocation], Awaitable[Result]]] = {
            "create": self._create,
            "get": self._get,
            "delete": self._delete,
            "list": self._list,
            "presign": self._presign,
            "bulkGet": self._bulk_get,
            "bulkCreate": self._bulk_create,
            "bulkDelete": self._bulk_delete,
        }

    async def start(self) -> None:
        await self._client.start()

    async def ping(self) -> None:
        """The client sends nothing before an app does: the right to put objects may be the only one."""
        _ = self._client.api

    async def close(self) -> None:
        await self._client.close()

    async def invoke(self, invocation: Invocation) -> Result:
        if invocation.text("filePath"):
            raise InvalidOperation(_NO_FILES)
        with translated(SERVICE):
            return await self._do[invocation.operation](invocation)

    async def _create(self, invocation: Invocation) -> Result:
        check_metadata(invocation, _CREATE)
        check_size(invocation.data, MAX_SIZE)
        key = _checked(invocation.text("key") or str(uuid.uuid4()))
        data = unquoted(invocation.data)
        if flag(invocation, "decodeBase64", self._settings["decodeBase64"]):
            data = decoded(data)
        options = {
            "ContentType": _header("Content-Type", invocation.text("Content-Type")),
            "Tagging": _tagging(invocation.text("tags")),
            "StorageClass": _header("storageClass", invocation.text("storageClass")) or self._settings["storageClass"],
        }
        ttl = _seconds(invocation.text("presignTTL")) if invocation.text("presignTTL") else None
        version = await self._put(key, data, **options)
        answer = {"location": await self._location(key), "versionID": version}
        if ttl is not None:
            answer["presignURL"] = await self._signed(key, ttl)
        return Result(data=msgspec.json.encode(answer), metadata={"key": key})

    async def _get(self, invocation: Invocation) -> Result:
        check_metadata(invocation, ("key", "encodeBase64"))
        data = await self._read(_checked(required(invocation, "key")), Room())
        if flag(invocation, "encodeBase64", self._settings["encodeBase64"]):
            data = base64.b64encode(data)
        return Result(data=data)

    async def _delete(self, invocation: Invocation) -> Result:
        check_metadata(invocation, ("key",))
        await self._client.api.delete_object(Bucket=self._bucket, Key=_checked(required(invocation, "key")))
        return Result()

    async def _list(self, invocation: Invocation) -> Result:
        check_metadata(invocation, ())
        wanted = payload(invocation, Listing) if invocation.data.strip() not in (b"", b"null") else Listing()
        answer = await self._client.api.list_objects(
            Bucket=self._bucket,
            MaxKeys=min(wanted.maxResults, LISTED) if wanted.maxResults > 0 else LISTED,
            Marker=wanted.marker,
            Prefix=wanted.prefix,
            Delimiter=wanted.delimiter,
        )
        answer.pop("ResponseMetadata", None)
        return Result(data=msgspec.json.encode({"Contents": None, "CommonPrefixes": None} | answer))

    async def _presign(self, invocation: Invocation) -> Result:
        check_metadata(invocation, ("key", "presignTTL"))
        key, ttl = _checked(required(invocation, "key")), _seconds(required(invocation, "presignTTL"))
        return Result(data=msgspec.json.encode({"presignURL": await self._signed(key, ttl)}))

    async def _bulk_get(self, invocation: Invocation) -> Result:
        check_metadata(invocation, ())
        wanted = payload(invocation, BulkGet)
        room = Room()

        async def get(item: Wanted) -> Outcome:
            if item.filePath is not None:
                return Outcome(item.key, error=_NO_FILES)
            data = await self._read(_checked(item.key), room)
            return Outcome(item.key, data=base64.b64encode(data).decode())

        return await _bulk(wanted.items, get, wanted.concurrency)

    async def _bulk_create(self, invocation: Invocation) -> Result:
        check_metadata(invocation, ("decodeBase64",))
        check_size(invocation.data, MAX_SIZE)
        given = payload(invocation, BulkCreate)
        decode = flag(invocation, "decodeBase64", self._settings["decodeBase64"])

        async def create(item: Given) -> Outcome:
            if item.filePath is not None or item.data is None:
                return Outcome(item.key, error=_NO_FILES if item.filePath is not None else "data is required")
            data = decoded(item.data.encode()) if decode else item.data.encode()
            options = {
                "ContentType": _header("contentType", item.contentType or ""),
                "StorageClass": self._settings["storageClass"],
            }
            await self._put(_checked(item.key), data, **options)
            return Outcome(item.key, location=await self._location(item.key))

        return await _bulk(given.items, create, given.concurrency)

    async def _bulk_delete(self, invocation: Invocation) -> Result:
        check_metadata(invocation, ())
        keys = payload(invocation, BulkDelete).keys
        _check_number(keys)
        failed = {key: wrong for key in keys if (wrong := _wrong(key))}
        good = list(dict.fromkeys(key for key in keys if key not in failed))
        for first in range(0, len(good), DELETED_AT_ONCE):
            batch = good[first : first + DELETED_AT_ONCE]
            try:
                with translated(SERVICE):
                    answer = await self._client.api.delete_objects(
                        Bucket=self._bucket, Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True}
                    )
                failed |= {fault["Key"]: str(fault.get("Message", "")) for fault in answer.get("Errors", ())}
            except StoreError as error:
                failed |= dict.fromkeys(batch, str(error))
        return Result(data=msgspec.json.encode([Outcome(key, error=failed.get(key, "")) for key in keys]))

    async def _put(self, key: str, data: bytes, **options: str) -> str | None:
        given = {name: value for name, value in options.items() if value}
        async with asyncio.timeout(TRANSFER):
            answer = await self._client.api.put_object(Bucket=self._bucket, Key=key, Body=data, **given)
        version: str | None = answer.get("VersionId")
        return version

    async def _read(self, key: str, room: Room) -> bytes:
        data = bytearray()
        async with asyncio.timeout(TRANSFER):
            try:
                answer = await self._client.api.get_object(Bucket=self._bucket, Key=key)
            except self._client.api.exceptions.NoSuchKey:
                raise BindingError("object not found") from None
            async with answer["Body"] as stream:
                room.check(key, answer.get("ContentLength") or 0)
                while piece := await stream.read(PIECE):
                    room.take(key, len(piece))
                    data += piece
        return bytes(data)

    async def _location(self, key: str) -> str:
        """Where the object is: the address that is signed for reading it, without the signature."""
        return urlunsplit(urlsplit(await self._signed(key, 60))._replace(query=""))

    async def _signed(self, key: str, ttl: float) -> str:
        url: str = await self._client.api.generate_presigned_url(
            "get_object", Params={"Bucket": self._bucket, "Key": key}, ExpiresIn=int(ttl)
        )
        return url


async def _bulk(items: Sequence[T], do: Callable[[T], Awaitable[Outcome]], concurrency: int) -> Result:
    """Each by itself: what fails for one does not keep the others (Dapr)."""
    _check_number(items)
    if not 1 <= concurrency <= MAX_AT_ONCE:
        raise InvalidOperation(f"concurrency must be from 1 to {MAX_AT_ONCE} (got {concurrency})")
    slots = asyncio.Semaphore(concurrency)

    async def one(item: Any) -> Outcome:
        async with slots:
            try:
                with translated(SERVICE):
                    return await do(item)
            except StoreError as error:
                return Outcome(item.key, error=str(error))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(item)) for item in items]
    return Result(data=msgspec.json.encode([task.result() for task in tasks]))


def _check_number(items: Sequence[Any]) -> None:
    if not 1 <= len(items) <= MAX_BULK:
        raise InvalidOperation(f"a bulk operation has from 1 to {MAX_BULK} objects (got {len(items)})")


def _checked(key: str) -> str:
    if wrong := _wrong(key):
        raise InvalidOperation(wrong)
    return key


def _wrong(key: str) -> str:
    """What keeps a key from being one; empty for a good one."""
    if not key.strip():
        return "key is required"
    if len(key.encode(errors="replace")) > 1024:
        return "a key has at most 1024 bytes"
    if _CONTROL.search(key):
        return "a key with control characters cannot be used"
    if {".", ".."} & set(key.split("/")):  # in a URL they could lead to another bucket
        return "a key with a segment '.' or '..' cannot be used"
    return ""


def _header(name: str, value: str) -> str:
    if not value.isascii() or _CONTROL.search(value):
        raise InvalidOperation(f"the metadata {name} has characters that no header can have")
    return value.strip()


def _tagging(text: str) -> str:
    """From `a=b,c=d` (Dapr) as S3 has it."""
    pairs = []
    for entry in text.split(",") if text else ():
        name, _, value = (part.strip() for part in entry.partition("="))
        if not name or not value:
            raise InvalidOperation(f"the metadata tags must be name=value,… (got '{clip(entry)}')")
        pairs.append((name, value))
    return urlencode(pairs)


def _seconds(text: str) -> float:
    try:
        seconds = quantities.duration(text)
    except ValueError as error:
        raise InvalidOperation(f"the metadata presignTTL {error}") from None
    if not 1 <= seconds <= MAX_PRESIGNED:
        raise InvalidOperation("the metadata presignTTL must be from 1s to 168h")
    return seconds


def _open(setup: Setup) -> S3Binding:
    settings = setup.settings
    if settings["disableSSL"] and (settings["endpoint"] or "").startswith("https:"):
        raise settings.fault("disableSSL", "the endpoint is one with https:")
    options: dict[str, Any] = {
        "s3": {"addressing_style": "path" if settings["forcePathStyle"] else "auto"},
        "signature_version": "s3v4",
        "use_ssl": not settings["disableSSL"],
    }
    if settings["insecureSSL"]:
        options["verify"] = False
    return S3Binding(Client(settings, "s3", **options), settings)


SPEC = ComponentSpec(
    type="bindings.aws.s3",
    title="S3",
    about=(
        "Output: objects in a bucket of AWS S3, or of a server that speaks as it does. `create` stores the data, a "
        "JSON string without its quotes, under the metadata `key`, or one that it makes, with `Content-Type`, `tags` "
        "(`a=b,c=d`), `storageClass`; with `presignTTL` the answer has a `presignURL` beside `location` and "
        "`versionID`. `get` and `delete` take a `key`, `presign` also a `presignTTL`. `list` takes `marker`, `prefix`, "
        "`maxResults`, `delimiter` in its data. `bulkGet`, `bulkCreate` take `items` and `concurrency`, `bulkDelete` "
        "takes `keys`; they answer with a `key` and an `error`, if there is one, for each. An object has at most "
        "100 MiB. Dapr's `filePath` is refused: it would let the app read and write the sidecar's files. For an input, "
        "have the bucket send its notifications to a queue, and read that by `bindings.aws.sqs`."
    ),
    open=_open,
    fields=(
        *aws.FIELDS,
        Field("bucket", "The name of the bucket.", required=True),
        Field("forcePathStyle", "Name the bucket in the path of the URL instead of its host.", Kind.BOOL, False),
        Field("decodeBase64", "The data of `create` is base64, and decoded before it is stored.", Kind.BOOL, False),
        Field("encodeBase64", "`get` answers in base64.", Kind.BOOL, False),
        Field("disableSSL", "Speak http to an endpoint that does not say which.", Kind.BOOL, False),
        Field("insecureSSL", "Accept any certificate of the endpoint. Not for production.", Kind.BOOL, False),
        Field("storageClass", "The storage class of new objects, as `STANDARD_IA`.", default=""),
    ),
    needs="aws",
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: reports
spec:
  type: bindings.aws.s3
  version: v1
  metadata:
    - name: bucket
      value: reports
    - name: region
      value: eu-central-1
""",
)
