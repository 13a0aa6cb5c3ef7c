import json

from bindings import registry
from sidecar import cli


def test_every_type_is_listed(capsys):
    assert cli.main(["components"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[1:-2]} == set(registry.BUILT_IN)
    [row] = [line for line in lines if line.startswith("secretstores.local.file ")]
    assert row.split(maxsplit=2)[1:] == ["v1", "secretsFile*, nestedSeparator, multiValued"]


def test_one_type_with_all_that_is_known(capsys):
    assert cli.main(["components", "state.sqlite3"]) == 0
    told = capsys.readouterr().out
    for piece in ("state.sqlite v1: SQLite", "connectionString (required)", "keyPrefix", "text, appid if not given"):
        assert piece in told
    assert "  type: state.sqlite\n" in told


def test_as_json(capsys):
    assert cli.main(["components", "--output", "json"]) == 0
    types = {one["type"]: one for one in json.loads(capsys.readouterr().out)}
    assert types.keys() == registry.BUILT_IN.keys()
    [prefix] = types["secretstores.local.env"]["settings"]
    assert (prefix["name"], prefix["kind"]) == ("prefix", "text")
    file = next(one for one in types["secretstores.local.file"]["settings"] if one["name"] == "secretsFile")
    assert file["required"] is True


def test_a_type_that_there_is_not(capsys):
    assert cli.main(["components", "state.sqlit"]) == 1
    assert "there is no type state.sqlit, did you mean 'state.sqlite'?" in capsys.readouterr().err


def test_a_type_that_cannot_be_loaded_hides_no_other(capsys, monkeypatch):
    monkeypatch.setattr(registry, "BUILT_IN", {**registry.BUILT_IN, "state.broken": "no_such_module_x"})
    assert cli.main(["components"]) == 1
    told = capsys.readouterr()
    assert "state.sqlite" in told.out
    assert "state.broken needs a library that is not installed" in told.err
