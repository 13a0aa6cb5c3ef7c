"""The CloudEvent as it travels inside Meshwire: attributes parsed, data untouched."""

from __future__ import annotations

from enum import Enum

import msgspec

AttributeValue = str | int | bool
Attributes = dict[str, AttributeValue]


class DataForm(Enum):
    """How `data` stands in the JSON format (CloudEvents JSON format 3.1)."""

    JSON = "json"
    """The bytes are a JSON value, in place as `data`."""
    TEXT = "text"
    """The bytes are UTF-8 text, a JSON string as `data`."""
    BINARY = "binary"
    """Any bytes, base64 in `data_base64`."""


class CloudEvent(msgspec.Struct, frozen=True, gc=False):
    """One event. Made by the codecs in `mesh/codec/`, which guarantee that it is valid.

    `attributes` holds all of them by lower-case name, `specversion` and `datacontenttype` included. `data` is
    exactly what the producer sent; `None` is no data at all, which `b""` is not.
    """

    attributes: Attributes
    data: bytes | None = None
    form: DataForm = DataForm.BINARY

    @property
    def id(self) -> str:
        return str(self.attributes["id"])

    @property
    def source(self) -> str:
        return str(self.attributes["source"])

    @property
    def type(self) -> str:
        return str(self.attributes["type"])
