import pytest

from mesh.components import Field, Kind, Settings, read_settings
from mesh.errors import ConfigurationError
from mesh.resources import Component, Metadata, SecretReference

FIELDS = (
    Field("host", "Where.", required=True, aliases=("server",)),
    Field("timeout", "How long.", Kind.DURATION, 5.0, bare_unit=0.001, minimum=0.01),
    Field("retries", "How often.", Kind.INTEGER, 3, minimum=0, maximum=10),
    Field("mode", "How.", Kind.CHOICE, "fast", choices=("fast", "safe")),
    Field("tls", "Whether.", Kind.BOOL, False),
    Field("size", "How much.", Kind.SIZE, 0),
    Field("tags", "Which.", Kind.LIST, ()),
    Field("pin", "What nobody must see.", Kind.INTEGER, secret=True),
    Field("cluster", "Not there.", Kind.BOOL, False, refused="a cluster is not there yet"),
)


def settings(references: dict[str, SecretReference] | None = None, **metadata: str) -> Settings:
    lines = {key: number for number, key in enumerate(metadata, 10)}
    component = Component(
        name="c", type="state.x", metadata=Metadata(metadata, lines), references=references or {}, origin="f.yaml:1"
    )
    return read_settings(component, FIELDS)


def test_values_and_defaults() -> None:
    assert dict(settings(HOST="h", timeout="1500", tls="YES", size="4Ki", tags="a, b", mode="SAFE", retries="")) == {
        "host": "h",
        "timeout": 1.5,
        "retries": 3,
        "mode": "safe",
        "tls": True,
        "size": 4096,
        "tags": ("a", "b"),
        "pin": None,
        "cluster": False,
    }
    assert dict(settings(host="h", cluster="false"))["cluster"] is False


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, r"f\.yaml:1: metadata\.host: a component of type state\.x needs it"),
        ({"host": ""}, r"f\.yaml:10: metadata\.host: a component of type state\.x needs it"),
        ({"host": "h", "timout": "1s"}, r"f\.yaml:11: metadata\.timout: .* no such setting, did you mean 'timeout'"),
        ({"host": "h", "server": "i"}, r"f\.yaml:11: metadata\.server: host is the same setting, and is given too"),
        ({"host": "h", "timeout": "soon"}, r"f\.yaml:11: metadata\.timeout: must be a duration .*\(got 'soon'\)"),
        ({"host": "h", "timeout": "1ms"}, r"metadata\.timeout: must be at least 0\.01"),
        ({"host": "h", "retries": "11"}, r"metadata\.retries: must be at most 10 \(got 11\)"),
        ({"host": "h", "mode": "slow"}, r"metadata\.mode: must be one of fast, safe \(got 'slow'\)"),
        ({"host": "h", "cluster": "true"}, r"f\.yaml:11: metadata\.cluster: a cluster is not there yet"),
    ],
)
def test_what_cannot_be_obeyed(metadata: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        settings(**metadata)


def test_every_unknown_setting_is_told_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"metadata\.one: .*; .*metadata\.two: "):
        settings(host="h", one="1", two="2")


def test_secrets_are_not_shown() -> None:
    with pytest.raises(ConfigurationError) as raised:
        settings(host="h", pin="hunter2")
    assert str(raised.value) == "f.yaml:11: metadata.pin: must be an integer"
    reference = SecretReference("vault", "limits", "retries", "f.yaml:11")
    with pytest.raises(ConfigurationError) as raised:
        settings({"retries": reference}, host="h", retries="hunter2")
    assert "hunter2" not in str(raised.value)
    assert "4711" not in repr(settings(host="h", pin="4711"))


def test_a_setting_by_another_name() -> None:
    found = settings({"server": SecretReference("vault", "db", "host", "f.yaml:10")}, server="h")
    assert (found["host"], found.given("host"), found.given("timeout")) == ("h", True, False)
    assert (found.reference("host"), found.reference("timeout")) == ("db", None)
    assert str(found.fault("host", "is wrong")) == "f.yaml:10: metadata.server: is wrong"
