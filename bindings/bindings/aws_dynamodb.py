"""`bindings.aws.dynamodb`: puts items into a table of DynamoDB."""

from __future__ import annotations

from decimal import Decimal, DecimalException, localcontext
from typing import Any

import msgspec

from bindings import aws
from bindings.aws import Client, translated
from bindings.invocations import check_metadata, check_size
from mesh.components import ComponentSpec, Field, Setup
from mesh.errors import clip
from mesh.ports.bindings import InvalidOperation, Invocation, Result

OPERATIONS = ("create",)
SERVICE = "DynamoDB"
MAX_ITEM = 400 << 10
"""Bytes; DynamoDB counts a little otherwise, and refuses what passes here wrongly."""
DEPTH = 32
"""How deep an item may be nested (DynamoDB)."""
DIGITS = 38
"""Of a number (DynamoDB)."""

_decode = msgspec.json.Decoder(float_hook=Decimal).decode


class DynamoBinding:
    """An `OutputBinding`."""

    operations = OPERATIONS

    def __init__(self, client: Client, table: str) -> None:
        self._client = client
        self._table = table

    async def start(self) -> None:
        await self._client.start()

    async def ping(self) -> None:
        """The client sends nothing before an app does: the right to put items may be the only one."""
        _ = self._client.api

    async def close(self) -> None:
        await self._client.close()

    async def invoke(self, invocation: Invocation) -> Result:
        check_metadata(invocation, ())
        check_size(invocation.data, MAX_ITEM)
        try:
            item = _decode(invocation.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, DecimalException) as error:
            raise InvalidOperation(f"the data is no JSON: {clip(str(error))}") from None
        if not isinstance(item, dict) or not item:
            raise InvalidOperation("the data must be a JSON object, the item")
        attributes = {name: _attribute(value, 1) for name, value in item.items()}
        with translated(SERVICE):
            try:
                await self._client.api.put_item(TableName=self._table, Item=attributes)
            except self._client.api.exceptions.ClientError as error:
                if aws.code(error) == "ValidationException":
                    raise InvalidOperation(f"{SERVICE}: {aws.message(error)}") from error
                raise
        return Result()


def _attribute(value: Any, depth: int) -> dict[str, Any]:
    """As Go's library makes it of JSON, which Dapr uses; but a number keeps all its digits."""
    if depth > DEPTH:
        raise InvalidOperation(f"the item is nested deeper than {DEPTH} levels")
    match value:
        case None:
            return {"NULL": True}
        case bool():
            return {"BOOL": value}
        case str():
            return {"S": value}
        case int() | Decimal():
            return {"N": _number(Decimal(value))}
        case list():
            return {"L": [_attribute(element, depth + 1) for element in value]}
        case _:
            return {"M": {name: _attribute(member, depth + 1) for name, member in value.items()}}


def _number(value: Decimal) -> str:
    with localcontext() as context:
        context.prec = 10_000
        digits = value.normalize()
    if len(digits.as_tuple().digits) > DIGITS or not -130 <= digits.adjusted() <= 125:
        raise InvalidOperation(f"{SERVICE} has no such number: {clip(str(value))}")
    return str(digits)


def _open(setup: Setup) -> DynamoBinding:
    return DynamoBinding(Client(setup.settings, "dynamodb"), setup.settings["table"])


SPEC = ComponentSpec(
    type="bindings.aws.dynamodb",
    title="DynamoDB",
    about=(
        "Output: items in a table of AWS DynamoDB. `create` puts the JSON object that is its data, in place of an item "
        "of the same key; it has the attributes of the table's key. A JSON object becomes a map, an array a list, a "
        "number a number of up to 38 digits."
    ),
    open=_open,
    fields=(*aws.FIELDS, Field("table", "The name of the table.", required=True)),
    needs="aws",
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: archive
spec:
  type: bindings.aws.dynamodb
  version: v1
  metadata:
    - name: table
      value: orders
    - name: region
      value: eu-central-1
""",
)
