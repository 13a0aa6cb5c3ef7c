"""`state.aws.dynamodb`: items in a table of DynamoDB, in Dapr's attributes, so that either can go on with the other's.

An item has the key, `value` (a string; binary for what is no text), `etag` and, where the component names an attribute
for it, the second in which it expires. DynamoDB removes expired items within days: until then they count as gone.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from bindings import aws
from bindings.aws import Client
from mesh.components import ComponentSpec, Field, Setup
from mesh.errors import clip
from mesh.ports import Clock
from mesh.ports.stores import (
    DeleteState,
    EtagMismatch,
    InvalidStoreKey,
    SetState,
    StateChange,
    StateFeature,
    StateItem,
    StoreError,
    StoreUnavailable,
    ValueTooLarge,
)

T = TypeVar("T")

FEATURES = frozenset({StateFeature.ETAG, StateFeature.TRANSACTIONAL})

SERVICE = "DynamoDB"
MAX_TRANSACTION = 100
MAX_KEY = 2048
MAX_ITEM = 400 * 1024
MAX_TRANSACTION_SIZE = 4 * 1024 * 1024
"""Bytes. The names of attributes count too."""
KEYS_AT_ONCE = 100
"""Keys in one BatchGetItem."""
ATTEMPTS = 8
"""At a write that meets another's transaction, or at keys that a batch leaves out for lack of throughput."""
FIRST_PAUSE = 0.025
"""Seconds, at random up to this, before the second attempt; up to twice as many before each further one."""
SETTLED = 60.0
"""Seconds after which a read that need not be consistent sees a write: usually one is enough."""
MAX_RECENT = 10_000
"""Keys of which it is known when they were written."""


class _Meets(Exception):
    """Another's transaction on the same items. Nothing was changed."""


class DynamoStateStore:
    """A `StateStore` in a table that exists."""

    max_transaction = MAX_TRANSACTION

    def __init__(
        self, client: Client, clock: Clock, *, table: str, key_attribute: str = "key", ttl_attribute: str = ""
    ) -> None:
        self._client = client
        self._clock = clock
        self._table = table
        self._key_attribute = key_attribute
        self._ttl_attribute = ttl_attribute
        self._recent: OrderedDict[str, float] = OrderedDict()  # key, and when it was written
        self.features = FEATURES | {StateFeature.TTL} if ttl_attribute else FEATURES

    async def start(self) -> None:
        await self._client.start()
        try:
            await self.ping()
        except StoreError as error:
            cause = aws.code(error.__cause__) if hasattr(error.__cause__, "response") else ""
            if cause == "ResourceNotFoundException":
                raise StoreError(f"{SERVICE}: there is no table '{clip(self._table)}'") from error
            if cause == "ValidationException":
                name, key = clip(self._table), clip(self._key_attribute)
                raise StoreError(
                    f"{SERVICE}: the key of the table '{name}' must be the string '{key}' alone (partitionKey): {error}"
                ) from error
            raise

    async def ping(self) -> None:
        """Reads an item that there is not, as Dapr does: no other right is needed."""
        with _translated():
            await self._client.api.get_item(TableName=self._table, Key=self._id("meshwire-ping"))

    async def close(self) -> None:
        await self._client.close()

    async def get(self, key: str, *, strong: bool = False, metadata: Mapping[str, str] = {}) -> StateItem | None:
        self._check_key(key)
        with _translated():
            answer = await self._client.api.get_item(
                TableName=self._table, Key=self._id(key), ConsistentRead=strong or self._is_recent(key)
            )
        return self._item(key, answer["Item"]) if answer.get("Item") else None

    async def get_many(
        self, keys: Sequence[str], *, strong: bool = False, metadata: Mapping[str, str] = {}
    ) -> list[StateItem | StoreError | None]:
        found: dict[str, StateItem | StoreError | None] = {}
        good: list[str] = []
        for key in dict.fromkeys(keys):
            try:
                self._check_key(key)
            except InvalidStoreKey as error:
                found[key] = error
            else:
                good.append(key)
        consistent = strong or any(self._is_recent(key) for key in good)
        batches = [good[first : first + KEYS_AT_ONCE] for first in range(0, len(good), KEYS_AT_ONCE)]
        for batch in batches:
            for stored in await self._get_batch(batch, consistent, found):
                key = stored[self._key_attribute]["S"]
                try:
                    found[key] = self._item(key, stored)
                except StoreError as error:
                    found[key] = error
        return [found.get(key) for key in keys]

    async def change(self, change: StateChange) -> None:
        request = self._request(change)
        if (size := _size(request)) > MAX_ITEM:
            raise _too_large("item", MAX_ITEM, size)
        if "ConditionExpression" in request:
            request["ReturnValuesOnConditionCheckFailure"] = "ALL_OLD"
        name = "put_item" if isinstance(change, SetState) else "delete_item"

        async def send() -> None:
            with _translated():
                try:
                    await getattr(self._client.api, name)(**request)
                except self._client.api.exceptions.ConditionalCheckFailedException as error:
                    _judge_mismatch(change, request, error.response)

        try:
            await self._until_alone(send)
        finally:
            self._note([change])

    async def transact(self, changes: Sequence[StateChange], metadata: Mapping[str, str] = {}) -> None:
        requests = []
        for condition, last in self._merged(changes):
            request = self._request(last, condition)
            if (size := _size(request)) > MAX_ITEM:
                raise _too_large("item", MAX_ITEM, size)
            requests.append((condition, {"Put" if isinstance(last, SetState) else "Delete": request}))
        size = sum(_size(next(iter(request.values()))) for _, request in requests)
        if size > MAX_TRANSACTION_SIZE:
            raise _too_large("transaction", MAX_TRANSACTION_SIZE, size)
        # By the token a transaction that was made, and whose answer was lost, is not made again.
        token = f"{random.getrandbits(128):032x}"

        async def send() -> None:
            with _translated():
                try:
                    await self._client.api.transact_write_items(
                        TransactItems=[request for _, request in requests], ClientRequestToken=token
                    )
                except self._client.api.exceptions.TransactionCanceledException as error:
                    _check_size(str(error.response))
                    reasons = [reason.get("Code") for reason in error.response.get("CancellationReasons", ())]
                    if "ConditionalCheckFailed" in reasons:
                        raise _mismatch(requests[reasons.index("ConditionalCheckFailed")][0]) from None
                    if {"TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"} & {*reasons}:
                        raise _Meets from error
                    raise

        try:
            await self._until_alone(send)
        finally:
            self._note(changes)

    def _merged(self, changes: Sequence[StateChange]) -> Iterator[tuple[StateChange, StateChange]]:
        """For each key the change whose condition counts, and the one that is made: DynamoDB takes one for each key.

        Done one after the other, the condition of the first is for the item in the table, those of the rest are for
        what the one before made of it.
        """
        first: dict[str, StateChange] = {}
        last: dict[str, StateChange] = {}
        for change in changes:
            before = last.get(change.key)
            if before is not None:
                exists = isinstance(before, SetState)
                if change.etag or (change.first_write and exists):  # nobody can know the new ETag yet
                    raise _mismatch(change)
            first.setdefault(change.key, change)
            last[change.key] = change
        for key, change in first.items():
            yield change, last[key]

    def _request(self, change: StateChange, condition: StateChange | None = None) -> dict[str, Any]:
        """The parameters of a PutItem or DeleteItem, on the condition of `change`, or of another change."""
        self._check_key(change.key)
        request: dict[str, Any] = {"TableName": self._table, **self._condition(condition or change)}
        if isinstance(change, DeleteState):
            return request | {"Key": self._id(change.key)}
        item = self._id(change.key)
        item["value"] = _encode(change.value)
        item["etag"] = {"S": f"{random.getrandbits(64):x}"}
        if change.ttl is not None and change.ttl > 0:
            item[self._ttl_attribute] = {"N": str(math.ceil(self._clock.now() + change.ttl))}
        return request | {"Item": item}

    def _condition(self, change: StateChange) -> dict[str, Any]:
        if not change.etag and not change.first_write:
            return {}
        names, values = {}, {}
        if change.etag:
            names["#etag"], values[":etag"] = "etag", {"S": change.etag}
            text, alive = "#etag = :etag", " AND (attribute_not_exists(#ttl) OR #ttl > :now)"
        else:
            names["#key"] = self._key_attribute
            text, alive = "attribute_not_exists(#key)", " OR #ttl <= :now"
        if self._ttl_attribute:
            names["#ttl"], values[":now"] = self._ttl_attribute, {"N": str(int(self._clock.now()))}
            text += alive
        condition: dict[str, Any] = {"ConditionExpression": text, "ExpressionAttributeNames": names}
        return condition | {"ExpressionAttributeValues": values} if values else condition

    async def _get_batch(
        self, keys: Sequence[str], consistent: bool, errors: dict[str, StateItem | StoreError | None]
    ) -> Sequence[Mapping[str, Any]]:
        """What is stored under those that DynamoDB answers for; `errors` gets the others, if there are any at all."""
        stored: list[Mapping[str, Any]] = []
        wanted: dict[str, Any] = {self._table: {"Keys": [self._id(key) for key in keys], "ConsistentRead": consistent}}

        async def ask() -> None:
            nonlocal wanted
            with _translated():
                answer = await self._client.api.batch_get_item(RequestItems=wanted)
            stored.extend(answer.get("Responses", {}).get(self._table, ()))
            wanted = answer.get("UnprocessedKeys")
            if wanted:
                raise _Meets

        try:
            await self._until_alone(ask)
        except StoreUnavailable as error:
            if not stored:
                raise
            errors.update((key[self._key_attribute]["S"], error) for key in wanted[self._table]["Keys"])
        return stored

    async def _until_alone(self, attempt: Callable[[], Awaitable[T]]) -> T:
        pause = FIRST_PAUSE
        for _ in range(ATTEMPTS - 1):
            try:
                return await attempt()
            except _Meets:
                pass
            except StoreUnavailable as error:
                if not hasattr(error.__cause__, "response") or aws.code(error.__cause__) not in (
                    "TransactionConflictException",
                    "TransactionInProgressException",
                ):
                    raise
            await self._clock.sleep(random.uniform(0, pause))  # noqa: S311
            pause *= 2
        try:
            return await attempt()
        except _Meets:
            raise StoreUnavailable(f"{SERVICE} is too busy with these items; try again") from None

    def _item(self, key: str, stored: Mapping[str, Any]) -> StateItem | None:
        expires = None
        if self._ttl_attribute and (lifetime := stored.get(self._ttl_attribute)):
            try:
                expires = float(lifetime["N"])
            except (KeyError, ValueError):
                raise StoreError(f"the item {clip(key)} is damaged: its {self._ttl_attribute} is no number") from None
            if expires <= self._clock.now():
                return None
        value = stored.get("value") or {"B": b""}
        if "S" in value:
            data = value["S"].encode()
        elif "B" in value:
            data = value["B"]
        else:
            raise StoreError(f"the item {clip(key)} is damaged: its value is neither a string nor binary")
        etag = stored.get("etag", {}).get("S")
        return StateItem(key=key, value=data, etag=etag, expires=expires)

    def _id(self, key: str) -> dict[str, Any]:
        return {self._key_attribute: {"S": key}}

    def _note(self, changes: Sequence[StateChange]) -> None:
        """Also of changes that may have failed: they may be made later."""
        now = self._clock.now()
        for change in changes:
            self._recent[change.key] = now
            self._recent.move_to_end(change.key)
        while len(self._recent) > MAX_RECENT:
            self._recent.popitem(last=False)

    def _is_recent(self, key: str) -> bool:
        """This process wrote the item, and would miss that if it asked any of the copies."""
        written = self._recent.get(key)
        return written is not None and self._clock.now() < written + SETTLED

    def _check_key(self, key: str) -> None:
        if not key:
            raise InvalidStoreKey("the key is empty")
        try:
            size = len(key.encode())
        except UnicodeEncodeError:
            raise InvalidStoreKey(f"the key '{clip(key)}' is no Unicode text") from None
        if size > MAX_KEY:
            raise InvalidStoreKey(f"{SERVICE} takes no key of over {MAX_KEY} bytes (got {size})")


def _encode(value: bytes) -> dict[str, Any]:
    try:
        return {"S": value.decode()}
    except UnicodeDecodeError:
        return {"B": value}


def _size(request: Mapping[str, Any]) -> int:
    """Bytes of the item, as DynamoDB counts them; a number is counted as its text, which is no less."""
    size = 0
    for name, value in (request.get("Item") or request["Key"]).items():
        [content] = value.values()
        size += len(name.encode()) + len(content if isinstance(content, bytes) else content.encode())
    return size


def _too_large(what: str, limit: int, size: int) -> ValueTooLarge:
    return ValueTooLarge(f"{SERVICE} takes no {what} of over {limit} bytes (got {size})")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        with aws.translated(SERVICE):
            yield
    except StoreError as error:
        _check_size(str(error))
        raise


def _check_size(refusal: str) -> None:
    """Raises `ValueTooLarge` where the service counted more than we did."""
    if "size has exceeded" in refusal:
        raise ValueTooLarge(f"{SERVICE} takes no item of over {MAX_ITEM} bytes")


def _mismatch(change: StateChange) -> EtagMismatch:
    return EtagMismatch(
        "the item was changed meanwhile, or does not exist" if change.etag else "the item exists already"
    )


def _judge_mismatch(change: StateChange, request: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    """The library sends a request again when an answer was lost: then the item may be what we made it ourselves.

    Raises `EtagMismatch`, or `StoreUnavailable` when that cannot be known.
    """
    there = answer.get("Item")
    if isinstance(change, SetState):
        if there and there.get("etag") == request["Item"]["etag"]:
            return
    elif not there and answer.get("ResponseMetadata", {}).get("RetryAttempts"):
        raise StoreUnavailable(f"{SERVICE}: the item is gone; whether by this request is not known")
    raise _mismatch(change)


def _open(setup: Setup) -> DynamoStateStore:
    settings = setup.settings
    attributes = [settings["partitionKey"], "value", "etag", settings["ttlAttributeName"]]
    for name in ("partitionKey", "ttlAttributeName"):
        if attributes.count(settings[name]) > 1:
            raise settings.fault(name, f"there is another attribute of the name {clip(settings[name])}")
    return DynamoStateStore(
        Client(settings, "dynamodb"),
        setup.clock,
        table=settings["table"],
        key_attribute=settings["partitionKey"],
        ttl_attribute=settings["ttlAttributeName"],
    )


SPEC = ComponentSpec(
    type="state.aws.dynamodb",
    title="DynamoDB",
    about=(
        "State in a table of AWS DynamoDB, in Dapr's attributes: either can go on with the other's. The table exists "
        "already, with the string `key` (or `partitionKey`) as its only key. Items have at most 400 KiB, transactions "
        "at most 100 operations and 4 MiB. Items can expire where `ttlAttributeName` is set; switch TTL on for that "
        "attribute, so that DynamoDB removes them. A strong read is a consistent one. Lists are not offered: DynamoDB "
        "would read, and charge for, the whole table."
    ),
    open=_open,
    fields=(
        *aws.FIELDS,
        Field("table", "The name of the table.", required=True),
        Field("ttlAttributeName", "The attribute that says when an item expires, in seconds of Unix time.", default=""),
        Field("partitionKey", "The attribute that is the key of the table.", default="key"),
    ),
    needs="aws",
    features=sorted(feature.value for feature in FEATURES | {StateFeature.TTL}),
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: statestore
spec:
  type: state.aws.dynamodb
  version: v1
  metadata:
    - name: table
      value: orders
    - name: region
      value: eu-central-1
    - name: ttlAttributeName
      value: expires
""",
)
