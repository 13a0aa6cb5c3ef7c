from pathlib import Path

import pytest

from mesh.errors import ConfigurationError
from sidecar.flags import SidecarFlags
from sidecar.settings import BrokerAddress, Settings, redacted

FLAGS = SidecarFlags(app_id="app")


def settings(**environ: str) -> Settings:
    return Settings.from_environment(FLAGS, {"MESHWIRE_BROKER": "memory"} | environ)


def test_defaults() -> None:
    assert settings() == Settings(
        flags=FLAGS,
        broker=BrokerAddress(kind="memory"),
        prefix="mesh",
        replicas=1,
        namespace="default",
        api_token=None,
        app_token=None,
        allowed_hosts=frozenset(),
        environ={"MESHWIRE_BROKER": "memory"},
    )


def test_everything_set() -> None:
    told = settings(
        MESHWIRE_PREFIX="other",
        MESHWIRE_REPLICAS="3",
        MESHWIRE_ALLOWED_HOSTS="Sidecar.local, [::1]",
        NAMESPACE="prod",
        DAPR_API_TOKEN="in",
        APP_API_TOKEN="out",
    )
    assert (told.prefix, told.replicas, told.namespace) == ("other", 3, "prod")
    assert (told.api_token, told.app_token) == ("in", "out")
    assert told.allowed_hosts == {"sidecar.local", "[::1]"}


def test_empty_variables_count_as_unset() -> None:
    told = settings(MESHWIRE_PREFIX="", MESHWIRE_REPLICAS="", NAMESPACE="", DAPR_API_TOKEN="", MESHWIRE_REQUESTS="")
    assert (told.prefix, told.replicas, told.namespace, told.api_token) == ("mesh", 1, "default", None)


@pytest.mark.parametrize(
    ("text", "address", "shown"),
    [
        ("nats://h", BrokerAddress(kind="nats", servers=("nats://h",)), "nats://h"),
        ("tls://u:p@h:4222", BrokerAddress(kind="nats", servers=("tls://u:p@h:4222",)), "tls://***@h:4222"),
        (
            "nats://a:1, nats://t@[::1]:2",
            BrokerAddress(kind="nats", servers=("nats://a:1", "nats://t@[::1]:2")),
            "nats://a:1,nats://***@[::1]:2",
        ),
        ("nats://u:a,b@h", BrokerAddress(kind="nats", servers=("nats://u:a,b@h",)), "nats://***@h"),
        ("kafka://a, [::1]:2", BrokerAddress(kind="kafka", servers=("a:9092", "[::1]:2")), "kafka://a:9092,[::1]:2"),
        ("memory://", BrokerAddress(kind="memory"), "memory"),
        ("embedded:/x/y", BrokerAddress(kind="embedded", folder=Path("/x/y")), "embedded:/x/y"),
    ],
)
def test_brokers(text: str, address: BrokerAddress, shown: str) -> None:
    broker = settings(MESHWIRE_BROKER=text).broker
    assert broker == address
    assert str(broker) == shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"MESHWIRE_BROKER is not set: say where .*nats://localhost:4222"),
        ("kafkas://h", "must be nats://host:port, tls://host:port, kafka://host:port"),
        ("wss://h", "wss:// is not there yet"),
        ("embedded:", "needs a folder"),
        ("localhost:4222", "must be nats://"),
        ("nats://", "must have one host"),
        ("nats://h:99999", "must have a host and a port"),
        ("nats://h:x", "must have a host and a port"),
        ("nats://[::1", "must have a host and a port"),
        ("nats://a,b", "must have one host"),
        ("nats://a b", "no blanks"),
        ("nats://h/path", "must end after host and port"),
        ("nats://a,http://b", "must be nats://"),
    ],
)
def test_bad_brokers(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"MESHWIRE_BROKER.*{message}|{message}"):
        settings(MESHWIRE_BROKER=text)


@pytest.mark.parametrize(
    "text",
    [
        "nats://user:S3CRET@h:bad",
        "nats://user:x@S3CRET@h",
        "nats://user:x/S3CRET@h",
        "nats://user:x?S3CRET@h",
        "nats://user:x,S3CRET@h:bad",
        "user:S3CRET@h",
        "http://S3CRET@h",
        "nats://user: S3CRET@h",
        "nats://h?token=S3CRET",
        "nats://h#S3CRET",
    ],
)
def test_no_message_shows_credentials(text: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        settings(MESHWIRE_BROKER=text)
    assert "S3CRET" not in str(refused.value)
    assert "S3CRET" not in redacted(text)


def test_no_repr_shows_secrets() -> None:
    told = settings(MESHWIRE_BROKER="nats://u:S3CRET@h", DAPR_API_TOKEN="S3CRET", APP_API_TOKEN="S3CRET")
    assert "S3CRET" not in repr(told)
    assert "S3CRET" not in str(told.broker)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("NAMESPACE", "a.b", r"NAMESPACE: must be 1 to 64 .* \(got 'a\.b'\)"),
        ("NAMESPACE", "a" * 65, "NAMESPACE: must be"),
        ("MESHWIRE_PREFIX", "a.>", "MESHWIRE_PREFIX: must be"),
        ("MESHWIRE_PREFIX", "mesh\n", "MESHWIRE_PREFIX: must be"),
        ("MESHWIRE_REPLICAS", "0", "MESHWIRE_REPLICAS: must be a number from 1 to 5"),
        ("MESHWIRE_REPLICAS", "6", "MESHWIRE_REPLICAS: must be"),
        ("MESHWIRE_DEAD_LETTERS_KEPT", "59s", "MESHWIRE_DEAD_LETTERS_KEPT: must be from 1m to 87600h"),
        ("MESHWIRE_DEAD_LETTERS_KEPT", "87601h", "MESHWIRE_DEAD_LETTERS_KEPT: must be from 1m"),
        ("MESHWIRE_DEAD_LETTERS_KEPT", "a month", "MESHWIRE_DEAD_LETTERS_KEPT: must be a duration such as 30s"),
        ("MESHWIRE_REPLICAS", "many", "MESHWIRE_REPLICAS: must be"),
        ("MESHWIRE_ALLOWED_HOSTS", "http://x", "MESHWIRE_ALLOWED_HOSTS: must be host names"),
        ("MESHWIRE_ALLOWED_HOSTS", "x:80", "MESHWIRE_ALLOWED_HOSTS: must be host names"),
        ("MESHWIRE_REQUESTS", "nats://u:tok@h", "MESHWIRE_REQUESTS: has no use unless MESHWIRE_BROKER is Kafka"),
        ("DAPR_API_TOKEN", "tok\r\nen", "DAPR_API_TOKEN: must be visible ASCII"),
        ("APP_API_TOKEN", "tok ", "APP_API_TOKEN: must be visible ASCII"),
    ],
)
def test_bad_variables(variable: str, value: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{message}") as refused:
        settings(**{variable: value})
    assert "tok" not in str(refused.value)


def test_misspelt_variables_are_reported() -> None:
    [warning] = settings(MESHWIRE_REPLICA="3").warnings
    assert warning.startswith("MESHWIRE_REPLICA has no meaning here; known are MESHWIRE_BROKER")
