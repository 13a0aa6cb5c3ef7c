from collections.abc import Callable
from pathlib import Path
from textwrap import dedent, indent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.access import AccessPolicy, AppPolicy, Operation, _Node
from mesh.configuration import load_configuration
from mesh.errors import ConfigurationError
from mesh.ports import Peer

CALLER = Peer("default", "caller")
Reads = Callable[..., AccessPolicy]


@pytest.fixture
def reads(tmp_path: Path) -> Reads:
    def reads(*sections: str) -> AccessPolicy:
        paths = []
        for number, section in enumerate(sections):
            paths.append(tmp_path / f"{number}.yaml")
            body = indent(dedent(section), "    ")
            paths[-1].write_text(
                f"apiVersion: dapr.io/v1alpha1\nkind: Configuration\nspec:\n  accessControl:\n{body}"
            )  # fmt: skip
        access = load_configuration(paths, {}).access
        assert access is not None
        return access

    return reads


def policy(*operations: str, default: str = "deny") -> str:
    """`/name VERB,VERB action` each, for `CALLER`; the global default allows."""
    lines = ["policies:", "- appId: caller", "  trustDomain: public", "  namespace: default"]
    lines += [f"  defaultAction: {default}", "  operations:"]
    for name, verbs, action in (operation.rsplit(" ", 2) for operation in operations):
        quoted = ", ".join(f"'{verb}'" for verb in verbs.split(","))
        lines.append(f"  - {{name: '{name}', httpVerb: [{quoted}], action: {action}}}")
    return "\n".join(lines)


def allows(access: AccessPolicy, path: str, verb: str = "GET", *, http: bool = True) -> bool:
    return access.permits(CALLER, True, path, verb, http=http).allowed


@pytest.mark.parametrize(
    ("name", "fits", "fits_not"),
    [
        ("/orders", ["/orders", "/orders/1", "/orders/1/2", "/ORDERS", "/orders/", "//orders", "/orders?x=/y"],
         ["/", "/order", "/orders1", "/x/orders"]),
        ("orders", ["/orders", "/orders/1"], ["/"]),
        ("/Orders", ["/orders", "/ORDERS/1"], ["/"]),
        ("/orders/", ["/orders", "/orders/1"], ["/"]),
        ("/orders/new", ["/orders/new", "/orders/new/1", "/orders%2Fnew", "/%6frders/new"], ["/orders", "/orders/x"]),
        ("/orders/*", ["/orders", "/orders/1"], ["/orders/1/2", "/", "/orderss/1"]),
        ("/orders/**", ["/orders", "/orders/1", "/orders/1/2/3"], ["/", "/orderss/1"]),
        ("/*", ["/", "/a"], ["/a/b"]),
        ("/**", ["/", "/a", "/a/b/c"], []),
        ("/", ["/", "//", "/?a"], ["/a"]),
        ("/a*", ["/a", "/ab", "/ab/c"], ["/", "/b", "/ba"]),
        ("/*b", ["/b", "/ab", "/ab/c"], ["/ba"]),
        ("/a*c/x", ["/ac/x", "/abc/x", "/abcc/x/y"], ["/ab/x", "/abc", "/abc/y", "/a/c/x"]),
        ("/a*b*c", ["/abc", "/aXbYc", "/abbc"], ["/acb", "/ac", "/abcd"]),
        ("/aa*aa", ["/aaaa", "/aaaaa"], ["/aaa"]),
        ("/x/**/z", ["/x/y/z", "/x/y/z/1"], ["/x/z", "/x/y/y/z", "/x/y"]),
        ("/ü b", ["/%C3%BC%20b", "/%c3%9c%20B"], ["/u%20b"]),
    ],
)  # fmt: skip
def test_which_paths_a_name_fits(reads: Reads, name: str, fits: list[str], fits_not: list[str]) -> None:
    for action, default in (("allow", "deny"), ("deny", "allow")):
        access = reads(policy(f"{name} * {action}", default=default))
        assert [path for path in fits + fits_not if allows(access, path) == (action == "allow")] == fits


@pytest.mark.parametrize(
    ("operations", "allowed", "denied"),
    [
        # The first listed that fits a segment, not the most specific one.
        (["/orders/new * deny", "/orders/* * allow"], ["/orders/1", "/orders"], ["/orders/new", "/orders/new/x"]),
        (["/a*/x * allow", "/ab* * deny"], ["/ab/x", "/ac/x"], ["/ab", "/ab/y", "/ac/y"]),
        # An entry takes the place of the first one with which it shares a segment.
        (["/a*/x * deny", "/ab/* * allow", "/a*/y * deny"], ["/ab/z"], ["/ab/x", "/ab/y", "/ac/y"]),
        # A branch that leads to nothing is left again.
        (["/a*/x * allow", "/ab/y * allow"], ["/ab/y", "/ab/x", "/ac/x"], ["/ac/y"]),
    ],
)  # fmt: skip
def test_which_entry_counts(reads: Reads, operations: list[str], allowed: list[str], denied: list[str]) -> None:
    access = reads(policy(*operations))
    assert [path for path in allowed + denied if allows(access, path)] == allowed


def test_verbs(reads: Reads) -> None:
    access = reads(policy("/a GET,POST allow", "/b * allow", "/c PUT deny", default="deny"))
    assert [verb for verb in ("GET", "POST", "PUT", "get", "NONE") if allows(access, "/a", verb)] == [
        "GET",
        "POST",
        "get",
    ]
    assert allows(access, "/b", "PURGE")
    assert not allows(access, "/c", "PUT")
    access = reads(policy("/c PUT deny", default="allow"))
    assert [verb for verb in ("GET", "PUT", "put") if allows(access, "/c", verb)] == ["GET"]


def test_grpc_minds_the_case_and_no_verb(reads: Reads) -> None:
    access = reads(policy("/shop.Orders/Get GET allow"))
    assert allows(access, "/shop.Orders/Get", "POST", http=False)
    assert not allows(access, "/shop.orders/get", "POST", http=False)
    assert allows(access, "/shop.orders/get", "GET")


@pytest.mark.parametrize(
    "path",
    ["/orders/../admin", "/orders/%2e%2e/admin", "/orders%2F..%2Fadmin", "/orders/.", "/orders/%2E", "/..",
     "orders", "", "*", "http://x/orders", "/orders/%ff", "/orders/\udcff"],
)  # fmt: skip
def test_paths_without_one_meaning_are_denied_to_who_has_a_policy(reads: Reads, path: str) -> None:
    access = reads(policy("/** * allow", default="allow"))
    assert not allows(access, path)
    assert access.permits(Peer("default", "other"), True, path, "GET").allowed


def test_escapes_are_decoded_once(reads: Reads) -> None:
    access = reads(policy("/orders * allow"))
    assert allows(access, "/orders/%252e%252e/x")
    assert not allows(access, "/%256frders")


@pytest.mark.parametrize(
    ("section", "own", "other"),
    [
        ("defaultAction: allow", True, True),
        ("defaultAction: DENY", False, False),
        ("trustDomain: x", True, True),
        ("defaultAction: ''", True, True),
        ("policies: [{appId: caller, trustDomain: public, namespace: default}]", True, True),
        ("policies: [{appId: caller, trustDomain: public, namespace: default, defaultAction: deny}]", False, True),
        ("defaultAction:\npolicies: [{appId: caller, trustDomain: public, namespace: default}]", True, True),
        ("defaultAction: ''\npolicies: [{appId: caller, trustDomain: public, namespace: default}]", False, False),
        (
            "defaultAction: deny\n"
            "policies: [{appId: caller, trustDomain: public, namespace: default, defaultAction: Allow}]",
            True, False,
        ),
    ],
)  # fmt: skip
def test_defaults(reads: Reads, section: str, own: bool, other: bool) -> None:
    access = reads(section)
    assert access.permits(CALLER, True, "/x", "GET").allowed is own
    for stranger in (Peer("default", "other"), Peer("elsewhere", "caller")):
        assert access.permits(stranger, True, "/x", "GET").allowed is other
    for verified, caller in ((False, CALLER), (True, None), (False, None)):
        assert access.permits(caller, verified, "/x", "GET").allowed is other


def test_the_words_of_a_denial_and_who_decided(reads: Reads) -> None:
    access = reads("defaultAction: deny\n" + policy("/a * allow", default="''"))
    assert access.permits(CALLER, True, "/a/1?token=x", "GET") == (True, True, "")
    denied = "access control policy has denied access to id: "
    assert access.permits(CALLER, True, "/b/%20c?token=x", "GET") == (
        *(False, False),
        denied + "spiffe://public/ns/default/caller operation: /b/ c verb: GET",
    )
    assert access.permits(CALLER, False, "/a", "PUT") == (
        *(False, False),
        denied + "unverified caller operation: /a verb: PUT",
    )
    strict = reads(policy("/a * deny", default="deny"))
    assert strict.permits(CALLER, True, "/a", "GET")[:2] == (False, True)
    assert strict.permits(CALLER, True, "/b", "GET")[:2] == (False, True)
    assert "\n" not in strict.permits(CALLER, True, "/b%0ac", "G\nT").reason


def test_no_section_is_no_policy(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for text in ("spec: {}", "spec: {accessControl: }", "spec: {accessControl: {}}"):
        path.write_text(text)
        assert load_configuration([path], {}).access is None


def test_later_files_override_field_by_field(reads: Reads) -> None:
    access = reads(
        "defaultAction: ''\n" + policy("/a * allow").replace("public", "shop"),
        "trustDomain: shop",
    )
    assert (access.trust_domain, allows(access, "/a"), allows(access, "/b")) == ("shop", True, False)
    assert not access.permits(Peer("default", "other"), True, "/a", "GET").allowed
    access = reads(policy("/a * allow"), policy("/b * allow"))
    assert (allows(access, "/a"), allows(access, "/b")) == (False, True)


HEAD = "policies:\n- {appId: caller, trustDomain: public, namespace: default"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("default: deny", r"0\.yaml:5: spec\.accessControl\.default: unknown field, did you mean 'defaultAction'"),
        ("defaultAction: no", r"0\.yaml:5: spec\.accessControl\.defaultAction: must be allow or deny \(got 'false'\)"),
        ("policies: {}", r"spec\.accessControl\.policies: must be a list"),
        ("policies: [{trustDomain: public, namespace: default}]", r"policies\[0\]\.appId: a policy needs it"),
        ("policies: [{appId: a, namespace: default}]", r"policies\[0\]\.trustDomain: a policy needs it"),
        ("policies: [{appId: a, trustDomain: public}]", r"policies\[0\]\.namespace: a policy needs it"),
        ("policies: [{appID: a, trustDomain: public, namespac: x}]", r"namespac: unknown field, did you"),
        (
            HEAD + "}\n- {appId: caller, trustDomain: public, namespace: default}",
            r"0\.yaml:7: .*policies\[1\]: app 'caller' of namespace 'default' has a policy already "
            r"\(see .*0\.yaml:6: .*policies\[0\]\)",
        ),
        ("trustDomain: x\n" + HEAD + "}", r"policies\[0\]\.trustDomain: 'public' matches no caller: .* 'x'"),
        (HEAD + ", operations: [{httpVerb: ['*'], action: deny}]}", r"operations\[0\]\.name: an operation needs it"),
        (HEAD + ", operations: [{name: /a, action: deny}]}", r"operations\[0\]\.httpVerb: an operation needs it"),
        (HEAD + ", operations: [{name: /a, httpVerb: [], action: deny}]}", r"httpVerb: an operation needs it"),
        (HEAD + ", operations: [{name: /a, httpVerb: GET, action: deny}]}", r"httpVerb: must be a list"),
        (HEAD + ", operations: [{name: /a, httpVerb: [get], action: deny}]}", r"httpVerb: must be of GET, .* 'get'"),
        (HEAD + ", operations: [{name: /a, httpVerb: ['*']}]}", r"action: an operation needs it: allow or deny"),
        (HEAD + ", operations: [{name: /a, httpVerb: ['*'], action: block}]}", r"action: must be allow or deny"),
        (HEAD + ", operations: [{name: /a, verb: ['*'], action: deny}]}", r"verb: unknown field"),
        (policy("/a/../b * deny"), r"name: must be a path without query, escapes, '\.' and '\.\.'"),
        (policy("/a?b * deny"), r"name: must be a path without query"),
        (policy("/a%20b * deny"), r"name: must be a path without query"),
        (policy("/a/*/b * deny"), r"name: a segment '\*' stands for the last one only; write '\*\*'"),
        (policy("/a" * 65 + " * deny"), r"name: must have at most 64 segments"),
        (
            policy("/a GET allow", "/A/ POST deny"),
            r"0\.yaml:12: .*operations\[1\]\.name: '/A' is given twice \(see .*0\.yaml:11: ",
        ),
    ],
)  # fmt: skip
def test_bad_sections(reads: Reads, section: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        reads(section)


@pytest.mark.parametrize(
    "operations",
    [
        ["/orders * allow", "/orders/admin * deny"],
        ["/orders/admin * deny", "/orders * allow"],
        ["/orders GET allow", "/orders/admin POST allow"],
        ["/orders/** * allow", "/orders/admin * deny"],
        ["/** * allow", "/x/y/z * deny"],
        ["/a* * allow", "/ab* * deny"],
        ["/a* * allow", "/ab/** * deny"],
        ["/**/x * allow", "/a*/x * deny"],
        ["/orders/** * allow", "/orders/* * deny"],
        ["/*/ * allow", "/x * allow", "/a*b * allow", "/a*b/** * deny"],
    ],
)
def test_an_entry_that_never_gets_its_turn_is_a_contradiction(reads: Reads, operations: list[str]) -> None:
    with pytest.raises(ConfigurationError, match=r"never applies: '.*' \(.*0\.yaml:1\d: .*\) covers it"):
        reads(policy(*operations))


@pytest.mark.parametrize(
    "operations",
    [
        ["/orders * allow", "/orders/1 * allow"],
        ["/orders/* * allow", "/orders/1/2 * deny"],
        ["/orders/* * allow", "/orders/1 * deny"],
        ["/*b * allow", "/a* * deny"],
    ],
)
def test_entries_that_get_their_turn_or_say_the_same_are_not(reads: Reads, operations: list[str]) -> None:
    reads(policy(*operations))


segments = st.text(alphabet="ab*", min_size=1, max_size=4)
names = st.lists(segments, min_size=1, max_size=3).map(tuple)
paths = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=4)


def glob(pattern: str, text: str) -> bool:
    """The definition, for short texts only."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(glob(pattern[1:], text[start:]) for start in range(len(text) + 1))
    return bool(text) and pattern[0] == text[0] and glob(pattern[1:], text[1:])


@given(segments, st.text(alphabet="ab", min_size=1, max_size=6))
def test_wildcards_within_a_segment(pattern: str, segment: str) -> None:
    if pattern != "*":
        assert _Node(pattern).fits(segment, is_last=False) == glob(pattern, segment)


@given(names.filter(lambda name: "*" not in name[:-1]), paths)
def test_one_name_against_its_definition(name: tuple[str, ...], path: list[str]) -> None:
    operation = Operation(segments=name, verbs=frozenset("*"), allowed=True)
    *most, last = name
    if last in ("*", "**"):
        fits = all(map(glob, most, path)) and (
            len(path) >= len(most) if last == "**" else len(most) <= len(path) <= len(name)
        )
        fits = fits and (len(path) > len(most) or bool(most))
    else:
        fits = len(path) >= len(name) and all(map(glob, name, path))
    assert bool(AppPolicy("a", "n", "t", None, [operation]).decide(path, "GET", http=True)) == fits


def test_many_wildcards_cost_little(reads: Reads) -> None:
    access = reads(policy("/" + "*a" * 30 + "*b * allow"))
    assert not allows(access, "/" + "a" * 60_000)
