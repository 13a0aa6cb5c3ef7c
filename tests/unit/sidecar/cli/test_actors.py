"""`meshwire actors` shows what the sidecar tells of hosts."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from sidecar.cli import main
from sidecar.cli.actors import ranges
from tests.unit.sidecar.cli.conftest import Api

pytestmark = pytest.mark.usefixtures("folder")

TOLD = {
    "types": [
        {
            "type": "Cart",
            "hosts": [{"appID": "shop", "instance": "0123456789abcdef", "partitions": [0, 1, 2, 7], "active": 3}],
        },
        {"type": "Lamp", "hosts": [{"appID": "home", "instance": "fedcba9876543210", "partitions": [], "active": 0}]},
    ]
}


@pytest.fixture
def sidecar(api: Api, running: Callable[..., object]) -> Api:
    running("shop", http_port=api.port)
    api.status = 200
    api.body = json.dumps(TOLD).encode()
    return api


def test_a_row_for_each_host(sidecar: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["actors"]) == 0
    head, cart, lamp = capsys.readouterr().out.splitlines()
    assert head.split() == ["TYPE", "APP", "ID", "INSTANCE", "ACTIVE", "PARTITIONS", "WHICH"]
    assert cart.split() == ["Cart", "shop", "01234567", "3", "4", "0-2", "7"]
    assert lamp.split() == ["Lamp", "home", "fedcba98", "0", "0"]


def test_one_type_as_json(sidecar: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["actors", "Lamp", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == TOLD["types"][1:]


def test_no_actors(sidecar: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["actors", "None"]) == 0
    assert capsys.readouterr().err == "No actors.\n"


def test_ranges() -> None:
    assert ranges([]) == ""
    assert ranges([3]) == "3"
    assert ranges([0, 1, 3, 5, 6, 7]) == "0-1 3 5-7"
