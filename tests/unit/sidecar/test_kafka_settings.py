"""What the environment says about Kafka."""

import subprocess
import sys
from pathlib import Path

import pytest

from brokers.kafka.security import Security, options
from mesh.errors import ConfigurationError
from sidecar.flags import SidecarFlags
from sidecar.settings import BrokerAddress, Settings

SECRET = "S3CRET"
ROOT = Path(__file__).parents[3]


def settings(broker: str = "kafka://h", **environ: str) -> Settings:
    own = {name if name == "MESHWIRE_REQUESTS" else f"MESHWIRE_KAFKA_{name}": value for name, value in environ.items()}
    return Settings.from_environment(SidecarFlags(app_id="app"), {"MESHWIRE_BROKER": broker} | own)


def security(broker: str = "kafka://h", **environ: str) -> Security:
    return settings(broker, **environ).broker.security


@pytest.mark.parametrize(
    ("text", "servers", "shown"),
    [
        ("kafka://a", ("a:9092",), "kafka://a:9092"),
        ("kafka://a, [::1]:2/", ("a:9092", "[::1]:2"), "kafka://a:9092,[::1]:2"),
        ("KAFKA+TLS://u:p@a:1,b", ("a:1", "b:9092"), "kafka+tls://a:1,b:9092"),
        ("kafka+ssl://a:1,kafka+ssl://b:2", ("a:1", "b:2"), "kafka+tls://a:1,b:2"),
    ],
)
def test_servers(text: str, servers: tuple[str, ...], shown: str) -> None:
    broker = settings(text).broker
    assert (broker.kind, broker.servers, str(broker)) == ("kafka", servers, shown)


def test_nothing_else_said() -> None:
    assert settings().broker == BrokerAddress(kind="kafka", servers=("h:9092",), security=Security(), partitions=16)
    assert settings(PARTITIONS="1").broker.partitions == 1


@pytest.mark.parametrize(
    "text",
    [
        "kafka://",
        "kafka://a b",
        "kafka://a:9092/x",
        "kafka://a:0",
        "kafka://a:99999",
        "kafka://a,,b",
        "kafka://a,nats://b",
    ],
)
def test_bad_servers(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^MESHWIRE_BROKER: must be kafka://\[user:password@\]host:port,"):
        settings(text)


@pytest.mark.parametrize(
    "text",
    [
        f"kafka://user:{SECRET}@a,user:{SECRET}@b",
        f"kafka://user:x@{SECRET}@a",
        f"kafka://user:x,{SECRET}@a",
        f"kafka://{SECRET}@a",
        f"kafka://:{SECRET}@a",
        f"kafka://user:{SECRET}@a b",
        f"kafka://user:x/{SECRET}@a:bad",
    ],
)
def test_no_message_shows_credentials(text: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        settings(text)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("credentials", ["u:%ff", "u:100%", "u:%zz", "u%00x:p", "u:p%0A"])
def test_credentials_that_cannot_be_meant(credentials: str) -> None:
    with pytest.raises(ConfigurationError, match=r"user and password are percent-encoded UTF-8 .* '%' is '%25'"):
        settings(f"kafka://{credentials}@a")


def test_no_repr_shows_secrets() -> None:
    told = settings(f"kafka://user:{SECRET}@a")
    assert told.broker.security.password == SECRET
    assert SECRET not in repr(told) + repr(told.broker.security) + str(told.broker) + str(told.warnings)


@pytest.mark.parametrize(
    ("broker", "environ", "expected"),
    [
        ("kafka://a%40b:p%2Cq@h", {}, Security(mechanism="PLAIN", user="a@b", password="p,q")),
        ("kafka://u:p@h", {"SASL": "scram-sha-512"}, Security(mechanism="SCRAM-SHA-512", user="u", password="p")),
        (
            "kafka+tls://h",
            {"USER": "u", "PASSWORD_FILE": "/p", "TLS_CA": "/ca", "TLS_CERT": "/c", "TLS_KEY": "/k"},
            Security(
                tls=True,
                ca=Path("/ca"),
                certificate=Path("/c"),
                key=Path("/k"),
                mechanism="PLAIN",
                user="u",
                password_file=Path("/p"),
            ),
        ),
        (
            "kafka+tls://h",
            {"SASL": "OAUTHBEARER", "TOKEN_FILE": "/t"},
            Security(tls=True, mechanism="OAUTHBEARER", token_file=Path("/t")),
        ),
        (
            "kafka+tls://id:secret@h",
            {"SASL": "OAUTHBEARER", "TOKEN_URL": "https://idp/token", "TOKEN_SCOPE": "kafka"},
            Security(
                tls=True,
                mechanism="OAUTHBEARER",
                user="id",
                password="secret",
                token_url="https://idp/token",
                token_scope="kafka",
            ),
        ),
    ],
)
def test_security(broker: str, environ: dict[str, str], expected: Security) -> None:
    assert security(broker, **environ) == expected


@pytest.mark.parametrize(
    ("broker", "environ", "message"),
    [
        ("nats://h", {"SASL": "PLAIN"}, "MESHWIRE_KAFKA_SASL: has no use unless MESHWIRE_BROKER is kafka://"),
        ("memory", {"PARTITIONS": "3"}, "MESHWIRE_KAFKA_PARTITIONS: has no use unless MESHWIRE_BROKER is kafka://"),
        ("kafka://h", {"PARTITIONS": "0"}, r"MESHWIRE_KAFKA_PARTITIONS: must be a number from 1 to 10000 \(got '0'\)"),
        ("kafka://h", {"PARTITIONS": "many"}, "MESHWIRE_KAFKA_PARTITIONS: must be a number"),
        ("kafka://h", {"TLS_CA": "/ca"}, r"MESHWIRE_KAFKA_TLS_CA: has no use without TLS: say kafka\+tls://"),
        ("kafka+tls://h", {"TLS_KEY": "/k"}, "MESHWIRE_KAFKA_TLS_KEY: needs MESHWIRE_KAFKA_TLS_CERT"),
        ("kafka://h", {"SASL": "GSSAPI"}, r"MESHWIRE_KAFKA_SASL: must be PLAIN, .* \(got 'GSSAPI'\)"),
        ("kafka://h", {"SASL": "PLAIN"}, "MESHWIRE_KAFKA_USER: PLAIN needs a user and a password"),
        ("kafka://h", {"USER": "u"}, "MESHWIRE_KAFKA_PASSWORD_FILE: PLAIN needs a user and a password"),
        ("kafka://u:p@h", {"USER": "u"}, "MESHWIRE_KAFKA_USER: MESHWIRE_BROKER holds credentials, too"),
        ("kafka://u:p@h", {"PASSWORD_FILE": "/p"}, "MESHWIRE_KAFKA_PASSWORD_FILE: MESHWIRE_BROKER holds"),
        (
            "kafka://h",
            {"TOKEN_FILE": "/t"},
            "MESHWIRE_KAFKA_TOKEN_FILE: has no use unless MESHWIRE_KAFKA_SASL is O",
        ),
        ("kafka://h", {"SASL": "OAUTHBEARER"}, "MESHWIRE_KAFKA_SASL: OAUTHBEARER needs either"),
        (
            "kafka://h",
            {"SASL": "OAUTHBEARER", "TOKEN_FILE": "/t", "TOKEN_URL": "https://x"},
            "MESHWIRE_KAFKA_SASL: OAUTHBEARER needs either",
        ),
        (
            "kafka://h",
            {"SASL": "OAUTHBEARER", "TOKEN_FILE": "/t", "USER": "u"},
            "MESHWIRE_KAFKA_USER: has no use beside MESHWIRE_KAFKA_TOKEN_FILE",
        ),
        (
            "kafka://u:p@h",
            {"SASL": "OAUTHBEARER", "TOKEN_FILE": "/t"},
            "MESHWIRE_BROKER: credentials have no use beside MESHWIRE_KAFKA_TOKEN_FILE",
        ),
        (
            "kafka://h",
            {"SASL": "OAUTHBEARER", "TOKEN_URL": "https://x"},
            "MESHWIRE_KAFKA_USER: MESHWIRE_KAFKA_TOKEN_URL needs the client's id",
        ),
        (
            "kafka://u:p@h",
            {"SASL": "OAUTHBEARER", "TOKEN_URL": "http://idp/token"},
            "MESHWIRE_KAFKA_TOKEN_URL: must be https://",
        ),
        (
            "kafka://u:p@h",
            {"SASL": "OAUTHBEARER", "TOKEN_URL": f"https://me:{SECRET}@idp/token"},
            "MESHWIRE_KAFKA_TOKEN_URL: must be https://",
        ),
        (
            "nats://h",
            {"MESHWIRE_REQUESTS": "nats://h"},
            "MESHWIRE_REQUESTS: has no use unless MESHWIRE_BROKER is ",
        ),
        ("kafka://h", {"MESHWIRE_REQUESTS": "kafka://h"}, "MESHWIRE_REQUESTS: must be nats://host:port or tls://"),
        (
            "kafka://h",
            {"MESHWIRE_REQUESTS": f"nats://u:{SECRET}@h/x"},
            "MESHWIRE_REQUESTS: must end after host and port",
        ),
    ],
)
def test_bad_variables(broker: str, environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{message}") as refused:
        settings(broker, **environ)
    assert SECRET not in str(refused.value)


def test_calls_may_go_elsewhere() -> None:
    told = settings(MESHWIRE_REQUESTS="nats://u:p@a, tls://b")
    assert told.requests == BrokerAddress(kind="nats", servers=("nats://u:p@a", "tls://b"))
    assert settings().requests is None


@pytest.mark.parametrize(
    ("broker", "warned"), [("kafka://u:p@h", True), ("kafka+tls://u:p@h", False), ("kafka://h", False)]
)
def test_a_password_in_the_clear_is_warned_of(broker: str, warned: bool) -> None:
    assert [line for line in settings(broker).warnings if "no TLS: PLAIN" in line] == (
        [f"{settings(broker).broker} has no TLS: PLAIN shows what we sign in with to whoever can listen"] * warned
    )


def test_what_the_client_is_told(tmp_path: Path) -> None:
    assert options(security()) == {}
    secret = tmp_path / "password"
    secret.write_text(f"{SECRET}\n")
    assert options(security(USER="u", PASSWORD_FILE=str(secret), SASL="SCRAM-SHA-256")) == {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-256",
        "sasl_plain_username": "u",
        "sasl_plain_password": SECRET,
    }
    encrypted = options(security("kafka+tls://u:p@h"))
    assert encrypted["security_protocol"] == "SASL_SSL"
    assert encrypted["ssl_context"].check_hostname
    assert options(security("kafka+tls://h"))["security_protocol"] == "SSL"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b"", "one line of text"), (b"a\nb", "one line of text"), (b"\xff", "is no text")],
)
def test_a_password_file_that_is_of_no_use(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"^{path}: .*{message}"):
        options(Security(mechanism="PLAIN", user="u", password_file=path))


def test_certificates_that_are_of_no_use(tmp_path: Path) -> None:
    path = tmp_path / "x.pem"
    with pytest.raises(ConfigurationError, match=f"^{path}: No such file.*: must be certificates in PEM form"):
        options(Security(tls=True, ca=path))
    path.write_text("no certificate")
    with pytest.raises(ConfigurationError, match=f"^{path}: .*: must be certificates in PEM form"):
        options(Security(tls=True, ca=path))
    with pytest.raises(ConfigurationError, match=f"^{path}: .*: must be a certificate and its private key"):
        options(Security(tls=True, certificate=path))


def test_who_uses_another_broker_needs_no_client_of_kafka() -> None:
    script = """if True:
        import asyncio, sys
        sys.modules["aiokafka"] = None  # importing it fails
        import sidecar.assembly, sidecar.doctor
        from mesh.ports import Peer
        from sidecar.backbone import open_backbone
        from sidecar.settings import parse_broker
        async def main():
            backbone = open_backbone(parse_broker("nats://127.0.0.1:1", {}), Peer("n", "a"), prefix="p")
            await backbone.close()
        asyncio.run(main())
    """
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_library_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiokafka", None)
    with pytest.raises(
        ConfigurationError, match=r"^MESHWIRE_BROKER: Kafka needs a library: pip install 'meshwire\[kafka\]'$"
    ):
        settings()
