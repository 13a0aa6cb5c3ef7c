from collections.abc import Callable
from pathlib import Path
from textwrap import dedent, indent

import pytest

from mesh.errors import ConfigurationError
from mesh.http_endpoint import ClientTls, HttpEndpoint
from mesh.resources import Resources, load

HEAD = "apiVersion: dapr.io/v1alpha1\nkind: HTTPEndpoint\nmetadata: {name: shop}\n"
PEM = "-----BEGIN CERTIFICATE-----\\nxx\\n-----END CERTIFICATE-----\\n"
KEY = "-----BEGIN PRIVATE KEY-----\\nsecret\\n-----END PRIVATE KEY-----\\n"
Loads = Callable[..., Resources]


@pytest.fixture
def loads(tmp_path: Path) -> Loads:
    def loads(*specs: str, head: str = HEAD, environ: dict[str, str] | None = None) -> Resources:
        for number, spec in enumerate(specs):
            (tmp_path / f"{number}.yaml").write_text(f"{head}spec:\n{indent(dedent(spec), '  ')}")
        return load([tmp_path], app_id="app", namespace="default", environ=environ or {})

    return loads


def test_a_full_endpoint(loads: Loads, tmp_path: Path) -> None:
    [shop] = loads(
        f"""\
        baseUrl: https://shop.example:8443/api/
        headers:
        - {{name: Accept-Language, value: en}}
        - {{name: X-Key, envRef: SHOP_KEY}}
        - {{name: X-Key, value: ""}}
        clientTLS:
          rootCA: {{value: "{PEM}"}}
          certificate: {{value: "{PEM}"}}
          privateKey: {{value: "{KEY}"}}
          renegotiation: FreelyAsClient
        """,
        environ={"SHOP_KEY": "s3cret"},
    ).http_endpoints
    assert shop == HttpEndpoint(
        name="shop",
        base_url="https://shop.example:8443/api",
        headers=(("Accept-Language", "en"), ("X-Key", "s3cret"), ("X-Key", "")),
        tls=ClientTls(
            root_ca=PEM.replace("\\n", "\n"),
            certificate=PEM.replace("\\n", "\n"),
            private_key=KEY.replace("\\n", "\n"),
            may_renegotiate=True,
        ),
        origin=f"{tmp_path}/0.yaml:1",
    )
    assert "s3cret" not in repr(shop)
    assert "secret" not in repr(shop)


def test_an_endpoint_needs_a_base_url_only(loads: Loads) -> None:
    assert [e.base_url for e in loads("baseUrl: http://[::1]:80").http_endpoints] == ["http://[::1]:80"]


@pytest.mark.parametrize(
    ("head", "loaded"),
    [
        (HEAD, 1),
        (HEAD + "scopes: [other]\n", 0),
        (HEAD + "scopes: [app]\nauth: {secretStore: vault}\n", 1),
        (HEAD.replace("name: shop", "name: shop, namespace: elsewhere"), 0),
        (HEAD.replace("shop", "sh/op"), 0),
    ],
)
def test_filters(loads: Loads, head: str, loaded: int) -> None:
    resources = loads("baseUrl: http://x", head=head, environ={"NAMESPACE": "here"})
    assert len(resources.http_endpoints) == loaded


def test_a_name_is_taken_once(loads: Loads, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"1\.yaml:3: metadata\.name: 'shop' is taken by {tmp_path}/0\.yaml:1"
    ):
        loads("baseUrl: http://x", "baseUrl: http://y")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{}", r"spec\.baseUrl: must be http\(s\)://"),
        ("baseUrl: shop.example", r"0\.yaml:5: spec\.baseUrl: must be .* \(got 'shop\.example'\)"),
        ("baseUrl: ftp://x", r"spec\.baseUrl"),
        ("baseUrl: http://", r"spec\.baseUrl"),
        ("baseUrl: http://x:70000", r"spec\.baseUrl"),
        ("baseUrl: http://x:0", r"spec\.baseUrl"),
        ("baseUrl: 'http://x/a?b'", r"spec\.baseUrl"),
        ("baseUrl: 'http://x/a#b'", r"spec\.baseUrl"),
        ("baseUrl: 'http://x/a b'", r"spec\.baseUrl"),
        ("baseUrl: \"http://x/a\\r\\nb\"", r"spec\.baseUrl"),
        ("baseURL: {a: b}", r"spec\.baseUrl: must be text"),
        ("url: http://x", r"spec\.url: unknown field"),
        ("baseUrl: http://x\nheaders: [{name: 'a b', value: c}]", r"headers\[0\]\.name: must be the name of an HTTP"),
        ("baseUrl: http://x\nheaders: [{value: c}]", r"headers\[0\]\.name: must be the name of an HTTP header"),
        ("baseUrl: http://x\nheaders: [{name: a, value: \"b\\r\\nc: d\"}]", r"headers\[0\]\.value: the header 'a'"),
        ("baseUrl: http://x\nheaders: [{name: a, valu: c}]", r"valu: unknown field, did you mean 'value'"),
        ("baseUrl: http://x\nheaders: [{name: a, secretKeyRef: {name: s}}]", r"secretKeyRef: say with auth"),
        ("baseUrl: https://x\nclientTLS: {rootCA: {secretKeyRef: {name: s}}}", r"rootCA\.secretKeyRef: say with auth"),
        ("baseUrl: https://x\nclientTLS: {rootCA: {value: /etc/ca.pem}}", r"clientTLS\.rootCA: must be a PEM text"),
        ("baseUrl: https://x\nclientTLS: {rootCA: /etc/ca.pem}", r"clientTLS\.rootCA: must be a mapping"),
        (f"baseUrl: https://x\nclientTLS: {{certificate: {{value: '{PEM}'}}}}", r"certificate: needs privateKey"),
        (f"baseUrl: https://x\nclientTLS: {{privateKey: {{value: '{KEY}'}}}}", r"privateKey: needs certificate"),
        ("baseUrl: https://x\nclientTLS: {renegotiation: OnceAsClient}", r"must be Never or FreelyAsClient"),
        (f"baseUrl: http://x\nclientTLS: {{rootCA: {{value: '{PEM}'}}}}", r"spec\.clientTLS: has no effect"),
    ],
)  # fmt: skip
def test_bad_endpoints(loads: Loads, spec: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        loads(spec)


def test_a_password_in_the_url_is_not_repeated(loads: Loads) -> None:
    with pytest.raises(ConfigurationError, match=r"without user, query or fragment$"):
        loads("baseUrl: http://user:pass@x")


def test_an_endpoint_that_lacks_its_secrets(loads: Loads) -> None:
    spec = """\
        baseUrl: https://shop
        headers: [{name: X-Key, secretKeyRef: {name: shop, key: token}}, {name: a, value: b}]
        clientTLS: {rootCA: {secretKeyRef: {name: ca}}, renegotiation: Never}
        """
    resources = loads(spec, head=HEAD + "auth: {secretStore: vault}\n")
    assert resources.http_endpoints == ()
    [shop] = resources.endpoints_to_complete
    assert [(one.store, one.name, one.key) for one in shop.references] == [
        ("vault", "shop", "token"),
        ("vault", "ca", "ca"),
    ]
    token, ca = shop.references
    pem = PEM.replace("\\n", "\n")
    complete = shop.complete({token: "s3cret", ca: pem})
    assert complete.headers == (("X-Key", "s3cret"), ("a", "b"))
    assert complete.tls == ClientTls(root_ca=pem)
    with pytest.raises(ConfigurationError, match=r"clientTLS\.rootCA: must be a PEM text"):
        shop.complete({token: "s3cret", ca: "no certificate"})
    with pytest.raises(ConfigurationError, match=r"header 'X-Key' must not have control characters"):
        shop.complete({token: "a\r\nb: c", ca: pem})


def test_the_name_of_an_endpoint_that_lacks_its_secrets_is_taken(loads: Loads) -> None:
    spec = "baseUrl: https://shop\nheaders: [{name: X-Key, secretKeyRef: {name: shop}}]"
    with pytest.raises(ConfigurationError, match=r"'shop' is taken by .*0\.yaml:1"):
        loads(spec, spec, head=HEAD + "auth: {secretStore: vault}\n")
