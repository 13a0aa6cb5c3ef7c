"""The table of component types is whole and true, and so is what is made from it."""

import importlib
import importlib.util
import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from bindings import registry
from mesh import resources
from mesh.components import Kind, read_settings
from mesh.errors import ConfigurationError
from sidecar.cli.components import settings_of

ROOT = Path(__file__).parents[3]
SPECS = [(type_, spec) for type_ in registry.BUILT_IN for spec in registry.specs(type_)]
EACH = pytest.mark.parametrize("spec", [spec for _, spec in SPECS], ids=lambda spec: f"{spec.type}/{spec.versions[0]}")


def test_no_component_is_forgotten() -> None:
    """Whatever module of ours declares a spec is in the table."""
    declared = set()
    for package in ("bindings", "mesh"):
        for path in (ROOT / package).rglob("*.py"):
            if re.search(r"^SPECS?\b", path.read_text(), re.MULTILINE):
                declared.add(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert declared == set(registry.BUILT_IN.values())


@EACH
def test_specs_say_what_they_are(spec) -> None:
    assert spec.category in registry.CATEGORIES
    assert spec.type in registry.BUILT_IN
    assert spec.type == spec.type.lower()
    assert all(re.fullmatch(r"v[1-9]", version) for version in spec.versions)
    assert spec.title
    assert spec.about.endswith((".", "`"))
    fields = settings_of(spec)
    names = [name.lower() for field in fields for name in (field.name, *field.aliases)]
    assert len(names) == len(set(names))
    for field in fields:
        assert field.about.endswith((".", ")", "`"))
        assert (field.kind is Kind.CHOICE) == bool(field.choices)
        assert not (field.required and field.default is not None)
        if text := field.default_text():
            assert field.read(text) == field.default, field.name


@EACH
def test_examples_are_right(spec, tmp_path) -> None:
    (tmp_path / "example.yaml").write_text(spec.example)
    loaded = resources.load([tmp_path], app_id="app", namespace="", environ={})
    assert loaded.warnings == ()
    component = next(one for one in loaded.components if one.type == spec.type)
    assert registry.find(component.type, component.version) is spec
    filled = component.metadata.filled(dict.fromkeys(component.references, "secret"))
    read_settings(resources.Component(name="c", type=spec.type, metadata=filled), settings_of(spec))


def test_versions_of_a_type_do_not_overlap() -> None:
    for type_ in registry.BUILT_IN:
        versions = [version for spec in registry.specs(type_) for version in spec.versions]
        assert len(versions) == len(set(versions)) > 0


def test_aliases_lead_somewhere() -> None:
    assert set(registry.ALIASES.values()) <= set(registry.BUILT_IN)
    assert registry.find("state.sqlite3", "v1").type == "state.sqlite"


def test_the_pages_are_not_behind() -> None:
    folder = ROOT / "docs" / "components"
    spec = importlib.util.spec_from_file_location("generate", folder / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = {path.name: path.read_text() for path in folder.glob("*.md")}
    assert written == module.pages(), "run `python -P docs/components/generate.py`"


# Packages of others

GOOD = registry.find("secretstores.local.env", "v1")


def brings(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    points = [EntryPoint(name, value, registry.GROUP)]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == registry.GROUP else [])


def test_a_type_of_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(__name__)
    monkeypatch.setattr(
        module, "THEIRS", [registry.ComponentSpec(type="state.theirs", title="", about="", open=print)], raising=False
    )
    brings(monkeypatch, "state.theirs", f"{__name__}:THEIRS")
    assert registry.find("state.theirs", "v1").type == "state.theirs"
    assert "state.theirs" in registry.names()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (f"{__name__}:GOOD", r"must be a ComponentSpec of type state\.theirs"),
        (f"{__name__}:ROOT", r"must be a ComponentSpec of type state\.theirs"),
        (f"{__name__}:NOTHING", r"cannot be loaded: AttributeError"),
        ("no_such_module_x:SPEC", r"needs a library that is not installed: install what it needs \(No module"),
    ],
)
def test_a_package_that_brings_something_else(monkeypatch: pytest.MonkeyPatch, value: str, message: str) -> None:
    brings(monkeypatch, "state.theirs", value)
    with pytest.raises(ConfigurationError, match=rf"state\.theirs, which the package .* brings as .* {message}"):
        registry.find("state.theirs", "v1")


CRYPTO = registry.ComponentSpec(type="crypto.theirs", title="", about="", open=print)
SAME = registry.ComponentSpec(type="state.theirs", title="", about="", open=print)


@pytest.mark.parametrize(
    ("type_", "message"),
    [
        ("state.rediss", r"type state\.rediss, did you mean 'state\.redis'\? \(there are: state\.aws"),
        ("state.inmemory", r"did you mean 'state\.in-memory'\?"),
        ("state.etcd", r"type state\.etcd \(there are: state\.aws"),
        ("stat.redis", r"type stat\.redis; the category stat is not there yet"),
    ],
)
def test_a_type_that_there_is_not(type_: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        registry.find(type_, "v1")


def test_a_category_that_is_not_there_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    brings(monkeypatch, "crypto.theirs", f"{__name__}:CRYPTO")
    with pytest.raises(ConfigurationError, match="crypto is not there yet"):
        registry.find("crypto.theirs", "v1")


def test_two_packages_that_bring_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of them is used must not depend on the order of a folder."""
    points = [EntryPoint("state.theirs", f"{__name__}:SAME", registry.GROUP)] * 2
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    with pytest.raises(ConfigurationError, match=r"2 packages bring components of type state\.theirs, v1"):
        registry.find("state.theirs", "v1")


def test_ours_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    brings(monkeypatch, "secretstores.local.env", "no_such_module_x:SPEC")
    assert registry.find("secretstores.local.env", "v1") is GOOD


def test_a_missing_library_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> None:
        raise ImportError("No module named 'psycopg.sql'", name="psycopg.sql")

    monkeypatch.setattr(registry.importlib, "import_module", import_module)
    with pytest.raises(ConfigurationError, match=r'pip install "meshwire\[postgresql\]" \(No module named'):
        registry.find("secretstores.local.env", "v1")
