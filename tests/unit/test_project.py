"""What the documents say about the project is true: links, commands, flags, variables, error codes, examples."""

import dataclasses
import re
import shlex
import unicodedata
from pathlib import Path

import pytest
import yaml

from brokers.kafka.connection import Access
from brokers.kafka.connection import Connection as KafkaConnection
from brokers.kafka.event_log import KafkaEventLog
from brokers.kafka.probe import Offered
from brokers.kafka.tables import KafkaTables
from brokers.memory import MemoryEventLog
from brokers.memory_tables import MemoryTables
from brokers.nats.connection import Connection, Lookup
from brokers.nats.event_log import NatsEventLog
from brokers.nats.tables import NatsTables
from mesh import configuration, resources, subscriptions
from mesh.errors import Code
from mesh.ports import Feature
from mesh.ports.stores import StateFeature
from mesh.ports.tables import TableFeature
from sidecar import cli, flags, kafka_settings, offers
from sidecar.cli import run_file

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
OURS = ("mesh", "brokers", "bindings", "sidecar", "tests", "examples", "benchmarks", "docs", ".ci")
EACH = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def text_of(document):
    return document.read_text(encoding="utf-8")


def blocks(document, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(document), re.MULTILINE | re.DOTALL)


def prose(document):
    return re.sub(r"^```.*?^```", "", text_of(document), flags=re.MULTILINE | re.DOTALL)


def anchors(document):
    """The anchors of a document's headings, as GitHub makes them."""
    for heading in re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE):
        kept = (
            char for char in heading.lower() if char in " -_" or not unicodedata.category(char).startswith(("P", "S"))
        )
        yield "".join(kept).replace(" ", "-")


@EACH
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        found = (document.parent / path).resolve() if path else document
        assert found.exists(), f"{document.name} links to {target}"
        assert not anchor or anchor in anchors(found), f"{document.name} links to {target}"


def test_every_page_is_in_the_index():
    listed = set(re.findall(r"\]\(([^)#\s]+)\)", text_of(ROOT / "docs" / "index.md")))
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").glob("**/*.md")}
    assert pages - listed == {"index.md"}


def commands(document):
    """The words of each command in the document's console blocks, variables in front left out."""
    for block in [*blocks(document, "console"), *blocks(document, "sh")]:
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ ") or not block.startswith("$ "):
                words = shlex.split(line.removeprefix("$ "), comments=True)
                while words and re.match(r"[A-Z_]+=", words[0]):
                    del words[0]
                if words:
                    yield words


@EACH
def test_commands_are_there(document, capsys):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for program, *words in commands(document):
        if program == "make":
            assert set(words) <= targets
        elif program == "meshwire":
            name, *given = words[: words.index("--")] if "--" in words else words
            assert name in cli.COMMANDS
            assert cli.main([name, "--help"]) == 0
            known = capsys.readouterr().out
            for flag in given:
                assert not flag.startswith("-") or re.search(rf"{flag}\b", known), f"meshwire {name} has no {flag}"


@EACH
def test_yaml_can_be_used(document, tmp_path):
    """Each manifest that a document shows is loaded as an app's own, without an error or a warning."""
    for number, block in enumerate(blocks(document, "yaml")):
        shown = yaml.safe_load(block)
        kind = shown.get("kind")
        (folder := tmp_path / str(number)).mkdir()
        (folder / "shown.yaml").write_text(block)
        if "apps" in shown:
            for app in shown["apps"]:
                (folder / app["appDirPath"]).mkdir()
            assert not run_file.load(str(folder / "shown.yaml")).without_meaning
            continue
        if kind == "Configuration":
            found = configuration.load_configuration([folder / "shown.yaml"], {})
        else:
            found = resources.load([folder], app_id="warehouse", namespace="", environ={})
            assert found.components or found.subscriptions or found.resiliency or found.http_endpoints
            assert subscriptions.from_manifests(found.subscriptions).refused == []
        assert found.warnings == ()


def test_json_can_be_used():
    shown = blocks(ROOT / "docs" / "pubsub.md", "json")
    assert len(shown) == 1
    parsed = subscriptions.parse_programmatic(200, shown[0].encode(), default_pubsub="pubsub")
    assert (len(parsed.specs), parsed.refused, parsed.warnings) == (2, [], [])


def test_flags_that_have_an_effect_are_documented():
    page = text_of(ROOT / "docs" / "configuration.md")
    table = page[page.index("## Flags") : page.index("## Environment")]
    documented = set(re.findall(r"`--([a-z-]+)`", table))
    told = re.findall(r"^  --(\S+) +(.*)$", flags.usage(), re.MULTILINE)
    effective = {name for name, help_ in told if not help_.startswith(("without effect", "deprecated"))}
    only_one_value = {"mode"}
    assert documented == effective - only_one_value - {"dapr-grpc-port"}


def test_variables_are_documented():
    """Those that any module reads, by our names."""
    page = text_of(ROOT / "docs" / "configuration.md")
    documented = set(re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE))
    read = set(kafka_settings.VARIABLES)
    for package in ("mesh", "brokers", "bindings", "sidecar"):
        for module in (ROOT / package).rglob("*.py"):
            read |= set(re.findall(r'"(MESHWIRE_[A-Z_]+)"', module.read_text()))
    not_for_users = {"MESHWIRE_LIFELINE_FD"}
    no_variables = {code.reason for code in Code} | {feature.value for feature in StateFeature}
    assert {name for name in documented if name.startswith("MESHWIRE_")} == read - not_for_users - no_variables


def test_error_codes_are_those_of_the_catalogue():
    catalogue = {(code.error_code, code.status) for code in Code} | {("ERR_EVENT_NOT_STORED", 502)}
    rows = re.findall(r"^\| (\d+) \| `(ERR_\w+)` \|", text_of(ROOT / "docs" / "pubsub.md"), re.MULTILINE)
    assert len(rows) >= 10
    assert {(name, int(status)) for status, name in rows} <= catalogue


async def test_brokers_offer_what_the_page_says():
    """Each table of docs/brokers.md beside the code: the rows, their texts, and the ticks of each broker."""
    whole, bare = (Offered(**{each.name: can for each in dataclasses.fields(Offered)}) for can in (True, False))
    nats, kafka = Connection(Lookup(lambda: None), name="x"), [kafka_that_offers(whole), kafka_that_offers(bare)]
    logs = [
        MemoryEventLog(),
        NatsEventLog(nats, tables=NatsTables(nats, namespace="x")),
        *(KafkaEventLog(connection) for connection in kafka),
    ]
    tables = [
        MemoryTables(),
        NatsTables(nats, namespace="x"),
        *(KafkaTables(connection, namespace="x", prefix="x") for connection in kafka),
    ]
    shown = re.findall(r"^\| `(\w+)`: (.*?) \| (.*) \| (.*) \|$", text_of(ROOT / "docs" / "brokers.md"), re.MULTILINE)
    expected = [
        *expected_rows(Feature, [log.features for log in logs]),
        *expected_rows(TableFeature, [each.table("x").features for each in tables]),
        *((name, means, ["✓", "–"], without) for name, (means, without) in offers.SERVERS.items()),
    ]
    assert [
        (name, means, [tick.strip(" ¹²") for tick in ticks.split("|")], without)
        for name, means, ticks, without in shown
    ] == expected


def kafka_that_offers(offered):
    connection = KafkaConnection(Access(servers=()), name="x")
    connection._offered = offered
    return connection


def expected_rows(features, declared):
    for feature in features:
        ticks = ["✓" if feature in each else "–" for each in declared]
        yield feature.name, feature.value, ticks, offers.WITHOUT[feature]


def files():
    for folder in OURS:
        yield from (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    yield from (path for path in ROOT.iterdir() if path.is_file() and not path.name.startswith(".coverage"))


def test_nothing_of_one_machine_is_in_the_tree():
    """No path of a developer's machine, no registry of packages other than the usual one, no merge left undone."""
    # In pieces, so that this file is not found itself.
    parts = [
        "/" + r"root/\.",
        "/" + "work/",
        r"(?<![^\s\"'=(])/" + r"home/(?!nonroot)\w",
        "index" + "-url",
        "^<" + "<<<<<< ",
    ]
    forbidden = re.compile("|".join(parts), re.MULTILINE)
    for path in files():
        try:
            text = text_of(path)
        except UnicodeDecodeError:
            continue
        found = forbidden.search(text)
        assert found is None, f"{path.relative_to(ROOT)}: {found and found[0]}"
