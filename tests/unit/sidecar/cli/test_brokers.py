"""`meshwire brokers` in memory, on real servers of NATS and Kafka, and where nobody answers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from brokers.kafka.probe import Offered
from mesh.ports import Feature
from mesh.ports.tables import TableFeature
from sidecar import offers
from sidecar.cli import main
from tests.contract.nats_server import NatsServer
from tests.ports import free_port
from tests.servers import kafka_jars
from tests.servers.apache_kafka import ApacheKafka
from tests.servers.kafka import BINARY, KafkaServer

Show = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def without_a_broker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MESHWIRE_REQUESTS", raising=False)


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Show:
    def offer(*words: str) -> dict[str, Any]:
        assert main(["brokers", "-o", "json", *words]) == 0
        shown: dict[str, Any] = json.loads(capsys.readouterr().out)
        return shown

    return offer


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def tansu() -> Iterator[KafkaServer]:
    if BINARY is None:
        pytest.skip("tansu is not installed")
    server = KafkaServer()
    server.start()
    yield server
    server.remove()


def lacking(rows: list[dict[str, Any]]) -> set[str]:
    """What is not offered; each of it tells what is done instead, and nothing else does."""
    assert all(row["offered"] == ("instead" not in row) for row in rows)
    return {row["name"] for row in rows if not row["offered"]}


def told(facts: list[dict[str, str]]) -> dict[str, str]:
    return {fact["name"]: fact["told"] for fact in facts}


def test_every_lack_is_explained() -> None:
    assert set(offers.WITHOUT) == {*Feature, *TableFeature}
    assert set(offers.SERVERS) == {member.name for member in dataclasses.fields(Offered)}


def test_in_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["brokers", "--broker", "memory"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["memory", ""]
    assert "  no   DURABLE       keeps events and groups over a restart of the broker" in lines
    assert "                     → its end is the end of all events and groups: for tests" in lines
    assert "  yes  DEDUPE        drops repeats of a caller's id within a window" in lines
    assert "SERVERS OF KAFKA" not in lines
    assert "  calls             this process: other sidecars are not reached" in lines


def test_both_ways_to_ask_for_json(capsys: pytest.CaptureFixture[str], show: Show) -> None:
    assert main(["brokers", "--broker", "memory", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == show("--broker", "memory")


def test_nats(nats: NatsServer, show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHWIRE_BROKER", nats.url)
    offer = show()
    assert (offer["broker"], offer["kind"]) == (nats.url, "nats")
    assert lacking(offer["events"]) == lacking(offer["tables"]) == set()
    assert offer["servers"] == []
    assert told(offer["limits"])["an event, or a change of a table"] == "1048576 bytes, headers included (max_payload)"


def test_the_embedded_broker_is_started(show: Show) -> None:
    offer = show()
    assert offer["kind"] == "embedded"
    assert lacking(offer["events"]) == set()


def test_a_lesser_server_of_kafka(tansu: KafkaServer, nats: NatsServer, show: Show, monkeypatch: Any) -> None:
    kafka = ("--broker", f"kafka://{tansu.address}")
    offer = show(*kafka)
    assert lacking(offer["events"]) == {"DEDUPE", "STRICT_ORDER", "READ", "WILDCARDS", "ANY_MEMBER"}
    assert lacking(offer["servers"]) == set(offers.SERVERS)
    assert told(offer["limits"])["a call"] == "bodies of 67108864 bytes"
    monkeypatch.setenv("MESHWIRE_KAFKA_PARTITIONS", "1")
    monkeypatch.setenv("MESHWIRE_REQUESTS", nats.url)
    offer = show(*kafka)
    assert "STRICT_ORDER" not in lacking(offer["events"])
    assert told(offer["limits"])["a call"] == "none: bodies are streamed"
    assert told(offer["foundations"])["calls"] == f"NATS at {nats.url}"


@pytest.mark.servers
def test_apache_kafka(show: Show, capsys: pytest.CaptureFixture[str]) -> None:
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    server = ApacheKafka()
    try:
        server.start()
        offer = show("--broker", server.url)
        assert lacking(offer["events"]) == {"DEDUPE", "STRICT_ORDER", "WILDCARDS", "ANY_MEMBER"}
        assert lacking(offer["tables"]) == lacking(offer["servers"]) == set()
        assert main(["brokers", "--broker", server.url]) == 0
        assert "\nSERVERS OF KAFKA\n  yes  idempotence" in capsys.readouterr().out
    finally:
        server.remove()


@pytest.mark.parametrize("scheme", ["nats", "kafka"])
def test_nobody_answers(scheme: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offers, "LIMIT", 0.5)
    broker = f"{scheme}://127.0.0.1:{free_port()}"
    assert main(["brokers", "--broker", broker]) == 1
    shown, error = capsys.readouterr()
    assert shown == ""
    assert error.startswith(f"meshwire brokers: {broker} did not answer within 0.5 s: ")
    assert "Connect call failed" in error


def test_a_server_without_jetstream(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = NatsServer(tmp_path, jetstream=False)
    server.start()
    try:
        assert main(["brokers", "--broker", server.url]) == 1
        assert "JetStream" in capsys.readouterr().err
    finally:
        server.kill()


def test_an_address_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["brokers", "--broker", "kafka://"]) == 1
    assert capsys.readouterr().err.startswith("meshwire brokers: MESHWIRE_BROKER: must be kafka://")
    assert main(["brokers", "kafka://host"]) == 2
