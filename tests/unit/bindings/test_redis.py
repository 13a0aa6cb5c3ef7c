"""The settings that components on Redis share, as far as they can be judged without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bindings.redis import Server, fields
from mesh.components import read_settings
from mesh.errors import ConfigurationError
from mesh.resources import Component, Metadata


def server(**metadata: str) -> Server:
    component = Component(name="test", type="lock.redis", metadata=Metadata(metadata), origin="test.yaml:1")
    return Server(read_settings(component, fields()))


def connection(**metadata: str) -> dict[str, Any]:
    kwargs: dict[str, Any] = server(redisHost="r", **metadata).client.connection_pool.connection_kwargs
    return kwargs


@pytest.mark.parametrize(
    ("metadata", "address"),
    [
        ({"redisHost": "r"}, ("r", 6379)),
        ({"redisHost": "r:1234"}, ("r", 1234)),
        ({"redisHost": "r", "redisPort": "1234"}, ("r", 1234)),
        ({"redisHost": "r:1234", "redisPort": "1234"}, ("r", 1234)),
        ({"redisHost": "[::1]:1234"}, ("::1", 1234)),
        ({"redisHost": "::1"}, ("::1", 6379)),
    ],
)
def test_addresses(metadata: dict[str, str], address: tuple[str, int]) -> None:
    kwargs = server(**metadata).client.connection_pool.connection_kwargs
    assert (kwargs["host"], kwargs["port"]) == address


@pytest.mark.parametrize(
    ("metadata", "fault"),
    [
        ({}, "redisHost"),
        ({"redisHost": "r:1", "redisPort": "2"}, "redisPort: redisHost has the port 1"),
        ({"redisHost": "r:x"}, "redisHost: 'x' is no port"),
        ({"redisHost": ":1"}, "redisHost: there is no host in it"),
        ({"redisHost": "a,b"}, "redisHost: several hosts"),
        ({"redisHost": "r", "redisDB": "-1"}, "redisDB"),
        ({"redisHost": "r", "redisType": "star"}, "redisType: must be one of node, cluster"),
        ({"redisHost": "r", "redisType": "cluster", "redisDB": "1"}, "redisDB: a cluster"),
        ({"redisHost": "r", "redisType": "cluster", "failover": "true"}, "failover: a cluster"),
        ({"redisHost": "r", "failover": "true"}, "sentinelMasterName: failover needs it"),
        ({"redisHost": "r", "failover": "yes"}, "failover: must be true or false"),
        ({"redisHost": "r", "enableTLS": "on"}, "enableTLS: must be true or false"),
        ({"redisHost": "r", "clientCert": "x", "clientKey": "y"}, "clientCert: it needs enableTLS"),
        ({"redisHost": "r", "enableTLS": "true", "clientCert": "x"}, "clientCert and clientKey need each other"),
        ({"redisHost": "r", "dialTimeout": "soon"}, "dialTimeout: must be a duration"),
        ({"redisHost": "r", "readTimeout": "0"}, "readTimeout: must be at least"),
        ({"redisHost": "r", "idleTimeout": "1m"}, "idleTimeout: connections are opened when they are needed"),
        ({"redisHost": "r", "useEntraID": "true"}, "useEntraID: signing in"),
        ({"redisHost": "r", "redisMaxRetries": "3", "maxRetries": "3"}, "redisMaxRetries is the same setting"),
    ],
)
def test_settings_that_cannot_be_obeyed(metadata: dict[str, str], fault: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        server(**metadata)
    assert fault in str(raised.value)
    assert "test.yaml:1" in str(raised.value)


def test_durations_without_a_unit_count_milliseconds() -> None:
    kwargs = connection(dialTimeout="1500", readTimeout="250ms", writeTimeout="2s")
    assert kwargs["socket_connect_timeout"] == 1.5
    assert kwargs["socket_timeout"] == 2.0


def test_defaults() -> None:
    kwargs = connection()
    assert (kwargs["socket_connect_timeout"], kwargs["socket_timeout"], kwargs["db"]) == (5.0, 3.0, 0)
    pool = server(redisHost="r", poolSize="7").client.connection_pool
    assert (pool.max_connections, pool.timeout) == (7, 4.0)


@pytest.mark.parametrize(("text", "retries"), [("3", 3), ("-1", 0), ("0", 0)])
def test_retries(text: str, retries: int) -> None:
    assert connection(redisMaxRetries=text)["retry"].get_retries() == retries


@pytest.mark.parametrize("word", ["1", "t", "T", "true", "TRUE", "True"])
def test_booleans_are_those_of_go(word: str) -> None:
    assert server(redisHost="r", failover=word, sentinelMasterName="m").client.connection_pool.is_master


def test_keys_lie_in_a_file_of_this_user_as_long_as_the_client_lives() -> None:
    made = server(redisHost="r", enableTLS="true", clientCert="CERT", clientKey="KEY")
    kwargs = made.client.connection_pool.connection_kwargs
    path = Path(kwargs["ssl_keyfile"])
    assert path.read_text() == "KEY"
    assert path.stat().st_mode & 0o077 == 0


def test_passwords_are_not_shown() -> None:
    made = server(redisHost="r", redisPassword="open sesame")
    assert "open sesame" not in repr(made.settings)
