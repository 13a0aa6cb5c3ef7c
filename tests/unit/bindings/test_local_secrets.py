"""Secrets in the environment and in a file."""

import json
from pathlib import Path
from typing import Any

import pytest

from bindings.secretstores.local_env import EnvironmentSecrets
from bindings.secretstores.local_file import FileSecrets
from mesh.errors import ConfigurationError
from mesh.ports.stores import StoreError

HIDDEN = {"DAPR_API_TOKEN": "t", "APP_API_TOKEN": "t", "MESHWIRE_BROKER": "nats://u:p@h", "dapr_x": "t"}


async def test_environment() -> None:
    store = EnvironmentSecrets({"A": "1", "B": "", **HIDDEN})
    assert await store.get("A") == {"A": "1"}
    assert await store.get("missing") == {"missing": ""}
    assert [await store.get(name) for name in HIDDEN] == [{name: ""} for name in HIDDEN]
    assert await store.get_all() == {"A": {"A": "1"}, "B": {"B": ""}}


async def test_environment_with_a_prefix() -> None:
    store = EnvironmentSecrets({"SHOP_A": "1", "SHOP_": "2", "A": "3", **HIDDEN}, "SHOP_")
    assert await store.get("A") == {"A": "1"}
    assert await store.get_all() == {"A": {"A": "1"}}
    assert await EnvironmentSecrets(HIDDEN, "DAPR_").get("API_TOKEN") == {"API_TOKEN": ""}
    assert await EnvironmentSecrets(HIDDEN, "DAPR_").get_all() == {}


async def secrets(tmp_path: Path, content: Any, **more: Any) -> FileSecrets:
    path = tmp_path / "secrets.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    store = FileSecrets(path, more.get("separator", ":"), more.get("multi_valued", False), "f.yaml:3")
    await store.start()
    return store


CONTENT = {
    "plain": "p",
    "db": {"password": "s", "ports": [1, 2.5], "tls": {"on": True, "none": None}},
    "number": 5,
    "list": ["x", {"y": "z"}],
    "empty": {},
}


async def test_nested_names_are_joined(tmp_path: Path) -> None:
    store = await secrets(tmp_path, CONTENT)
    flat = {
        "plain": "p",
        "db:password": "s",
        "db:ports:0": "1",
        "db:ports:1": "2.5",
        "db:tls:on": "true",
        "db:tls:none": "null",
        "number": "5",
        "list:0": "x",
        "list:1:y": "z",
    }
    assert await store.get_all() == {name: {name: value} for name, value in flat.items()}
    assert await store.get("db:password") == {"db:password": "s"}
    other = await secrets(tmp_path, CONTENT, separator=".")
    assert await other.get("db.tls.on") == {"db.tls.on": "true"}


async def test_secrets_of_several_values(tmp_path: Path) -> None:
    store = await secrets(tmp_path, CONTENT, multi_valued=True)
    assert await store.get_all() == {
        "plain": {"plain": "p"},
        "db": {"password": "s", "ports:0": "1", "ports:1": "2.5", "tls:on": "true", "tls:none": "null"},
        "empty": {},
    }


async def test_a_secret_that_is_not_there(tmp_path: Path) -> None:
    store = await secrets(tmp_path, CONTENT)
    for name in ("db", "other", ""):
        with pytest.raises(StoreError, match="not found"):
            await store.get(name)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ('{"a": "hunter2",\n "b"}', "is no JSON: Expecting ':' delimiter in line 2"),
        ("[]", "must be a JSON object"),
        ('{"a":' * 100_000, "is no JSON in UTF-8"),
    ],
)
async def test_a_file_that_is_none(tmp_path: Path, content: str, rule: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        await secrets(tmp_path, content)
    assert str(raised.value) == f"f.yaml:3: metadata.secretsFile: {tmp_path}/secrets.json {rule}"
    assert "hunter2" not in str(raised.value)


async def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"secretsFile: .*none\.json cannot be read: No such file"):
        await FileSecrets(tmp_path / "none.json", ":", False, "f.yaml:3").start()


async def test_what_is_no_text_does_not_spoil_the_rest(tmp_path: Path) -> None:
    """All secrets are one answer in JSON."""
    environment = EnvironmentSecrets({"A": "caf\udce9", "B\udcff": "é"})
    assert await environment.get("A") == {"A": "caf\ufffd"}
    assert await environment.get_all() == {"A": {"A": "caf\ufffd"}, "B\ufffd": {"B\ufffd": "é"}}
    content = r'{"a": {"b\ud800": ["\udfffx", "é"]}, "c": "\ud800"}'
    for multi_valued, expected in (
        (False, {"a:b\ufffd:0": "\ufffdx", "a:b\ufffd:1": "é", "c": "\ufffd"}),
        (True, {"b\ufffd:0": "\ufffdx", "b\ufffd:1": "é", "c": "\ufffd"}),
    ):
        store = await secrets(tmp_path, content, multi_valued=multi_valued)
        found = await store.get_all()
        assert {name: value for values in found.values() for name, value in values.items()} == expected
        json.dumps(found, ensure_ascii=False).encode()
