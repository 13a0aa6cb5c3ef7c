from __future__ import annotations

from typing import Any

import msgspec
import pytest

from bindings.bindings.postgresql_values import parameter, value


@pytest.mark.parametrize(
    ("type_", "text", "expected"),
    [
        (16, "t", True),
        (16, "f", False),
        (20, "-9223372036854775808", -9223372036854775808),
        (701, "1e-05", 1e-05),
        (701, "NaN", "NaN"),
        (701, "-Infinity", "-Infinity"),
        (1700, "12345678901234567890.123", 12345678901234567890.123),
        (17, "\\x00ff", "AP8="),
        (3802, '{"a": [1, null]}', {"a": [1, None]}),
        (114, "null", None),
        (1082, "2026-01-31", "2026-01-31T00:00:00Z"),
        (1082, "infinity", "infinity"),
        (1114, "2026-01-31 01:02:03.5", "2026-01-31T01:02:03.5Z"),
        (1184, "2026-01-31 01:02:03+00", "2026-01-31T01:02:03Z"),
        (1184, "2026-01-31 01:02:03-05:30", "2026-01-31T01:02:03-05:30"),
        (1184, "0044-03-15 12:00:00+00 BC", "0044-03-15 12:00:00+00 BC"),
        (1007, "{1,NULL,3}", [1, None, 3]),
        (1007, "{}", []),
        (1007, "[0:1]={4,5}", [4, 5]),
        (1007, "{{1,2},{3,4}}", [[1, 2], [3, 4]]),
        (1009, r'{plain,"a, \"b\" \\ {c}","NULL",""}', ["plain", 'a, "b" \\ {c}', "NULL", ""]),
        (3807, r'{"{\"a\": 1}"}', [{"a": 1}]),
        (1000, "{t,f}", [True, False]),
        (99999, "(1,2)", "(1,2)"),
    ],
)
def test_from_text_to_json(type_: int, text: str, expected: Any) -> None:
    assert msgspec.json.decode(msgspec.json.encode(value(text, type_))) == expected


@pytest.mark.parametrize(
    ("given", "type_", "expected"),
    [
        (None, None, None),
        (True, None, "true"),
        (7, None, "7"),
        (7.0, None, "7"),
        (7.5, None, "7.5"),
        (1e300, None, f"{1e300:.0f}"),
        ("it's", None, "it's"),
        ({"a": 1}, None, '{"a":1}'),
        ([1, None, 'a"b\\'], 1009, '{"1",NULL,"a\\"b\\\\"}'),
        ([[1], [2]], 1007, '{{"1"},{"2"}}'),
        ([], 1007, "{}"),
        ([1, {"a": None}], 3802, '[1,{"a":null}]'),
    ],
)
def test_from_json_to_text(given: Any, type_: int | None, expected: str | None) -> None:
    assert parameter(given, type_) == expected
