"""Who may call what of this app: `accessControl` of the Configuration, judged by the sidecar that is called.

Dapr's rules, with two exceptions: what Dapr would leave without effect (and so perhaps open) is refused at load, and a
path that no entry fits at the first try is compared with the entries that are left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_to_bytes

from mesh.errors import ConfigurationError, clip
from mesh.ports import Peer

if TYPE_CHECKING:
    from mesh.documents import Fields

DEFAULT_TRUST_DOMAIN = "public"
MAX_SEGMENTS = 64
"""Most segments of an operation's name."""
VERBS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")


class Decision(NamedTuple):
    allowed: bool
    by_app_policy: bool
    """Whether a policy for the caller decided, or the global default."""
    reason: str
    """Of a denial, in Dapr's words; else empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """One entry of a policy's `operations`."""

    segments: tuple[str, ...]
    """Of the name, as the user wrote them; the root is one empty segment."""
    verbs: frozenset[str]
    """Upper case, or `*`."""
    allowed: bool
    origin: str = ""
    """`file:line: field`."""

    def says_the_same(self, other: Operation) -> bool:
        return self.allowed == other.allowed and self.verbs == other.verbs

    def __str__(self) -> str:
        return "/" + "/".join(self.segments)


class AppPolicy:
    """What one caller may do. Raises `ConfigurationError` for operations that contradict each other."""

    __slots__ = ("_exact", "_folded", "app_id", "default", "namespace", "origin", "trust_domain")

    def __init__(
        self,
        app_id: str,
        namespace: str,
        trust_domain: str,
        default: bool | None,
        operations: Sequence[Operation] = (),
        origin: str = "",
    ) -> None:
        """`default` of `None` is the global one. `origin` is `file:line: field`."""
        self.app_id = app_id
        self.namespace = namespace
        self.trust_domain = trust_domain
        self.default = default
        self.origin = origin
        self._folded = _Node()
        self._exact = _Node()
        for operation in operations:
            other = self._folded.add([segment.lower() for segment in operation.segments], operation)
            if other is not operation:
                raise ConfigurationError(
                    f"{operation.origin}: '{operation}' is given twice (see {other.origin}); "
                    "list the verbs in one entry, with one action"
                )
            self._exact.add(operation.segments, operation)
        for operation in operations:
            self._check_reach(operation)

    def decide(self, segments: Sequence[str], verb: str, *, http: bool) -> bool | None:
        """May the path be called? `None` is the global default."""
        tree, names = (self._folded, [segment.lower() for segment in segments]) if http else (self._exact, segments)
        operation = tree.find(names)
        if operation and (not http or verb.upper() in operation.verbs or "*" in operation.verbs):
            return operation.allowed
        return self.default

    def _check_reach(self, operation: Operation) -> None:
        """Refuse an entry that never gets its turn although it says something else."""
        # What stands for a wildcard here can be matched by a wildcard only.
        segments = [segment.replace("*", "\0") for segment in operation.segments]
        last = operation.segments[-1]
        if last in ("*", "**"):
            segments.pop()
        samples = [segments + ["\0"] * more for more in range(2 if last == "*" else 3)]
        found = [self._folded.find([segment.lower() for segment in sample] or [""]) for sample in samples]
        if operation in found:
            return
        covering = next((other for other in found if other and not other.says_the_same(operation)), None)
        if covering:
            raise ConfigurationError(
                f"{operation.origin}: '{operation}' never applies: '{covering}' ({covering.origin}) covers it; "
                "an entry without wildcards covers all below it, and else the first listed counts"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class AccessPolicy:
    """The whole section, with Dapr's defaults.

    Raises `ConfigurationError` for policies that contradict each other, or that can match no caller.
    """

    default: bool | None = True
    """Whether a caller without a policy of its own is let in. `None`, Dapr's explicit empty text, lets it in only if
    there are no policies."""
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    """Of this app, and of all callers: a mesh is one trust domain."""
    policies: tuple[AppPolicy, ...] = ()
    by_caller: dict[Peer, AppPolicy] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        for policy in self.policies:
            caller = Peer(policy.namespace, policy.app_id)
            if other := self.by_caller.get(caller):
                raise ConfigurationError(
                    f"{policy.origin}: app '{clip(policy.app_id)}' of namespace '{clip(policy.namespace)}' "
                    f"has a policy already (see {other.origin}): put the operations in one"
                )
            if policy.trust_domain != self.trust_domain:
                raise ConfigurationError(
                    f"{policy.origin}.trustDomain: '{clip(policy.trust_domain)}' matches no caller: "
                    f"all apps of a mesh are in that of spec.accessControl, '{clip(self.trust_domain)}'"
                )
            self.by_caller[caller] = policy

    def permits(self, caller: Peer | None, verified: bool, path: str, verb: str, *, http: bool = True) -> Decision:
        """May `caller` call `path` with `verb`?

        `verified` is whether the broker vouches for the caller; else only the global default counts (Dapr: a caller
        without a client certificate). `path` is in origin form, escaped, with or without query. `http` is whether
        the app speaks HTTP; for gRPC, letter case counts and verbs do not.

        A path that has no one meaning (`.` or `..` in it, escaped or not, or no UTF-8) is denied to a caller that
        has a policy: the app might read another path than was judged.
        """
        policy = self.by_caller.get(caller) if verified and caller else None
        segments = _segments(path)
        decided = None
        if policy is not None:
            decided = policy.decide(segments, verb, http=http) if segments else False
        allowed = decided
        if allowed is None:
            allowed = not self.policies if self.default is None else self.default
        by_app = decided is not None
        if allowed:
            return Decision(True, by_app, "")
        who = (
            f"spiffe://{self.trust_domain}/ns/{caller.namespace}/{caller.app_id}"
            if verified and caller
            else "unverified caller"
        )
        shown = path.partition("?")[0] if segments is None else "/" + "/".join(segments)
        return Decision(
            False,
            by_app,
            f"access control policy has denied access to id: {who} operation: {clip(shown)} verb: {clip(verb)}",
        )


def read_access_policy(sections: Iterable[Fields]) -> AccessPolicy | None:
    """The `spec.accessControl` of each file, a later one's fields over an earlier one's. `None` when nothing is said.

    Raises `ConfigurationError`. Dapr: without `defaultAction` everybody is let in; an explicit empty one beside
    policies lets nobody in.
    """
    given: dict[str, Fields] = {}
    for section in sections:
        fields = section.closed("defaultAction", "trustDomain", "policies")
        given |= {key: fields for key, value in fields.items() if value is not None}
    if not given:
        return None
    policies = given["policies"].entries("policies") if "policies" in given else ()
    return AccessPolicy(
        default=_action(given["defaultAction"], "defaultAction") if "defaultAction" in given else True,
        trust_domain=(given["trustDomain"].text("trustDomain") if "trustDomain" in given else "")
        or DEFAULT_TRUST_DOMAIN,
        policies=tuple(_app_policy(entry) for entry in policies),
    )


def _app_policy(entry: Fields) -> AppPolicy:
    entry = entry.closed("appId", "defaultAction", "trustDomain", "namespace", "operations")
    for required in ("appId", "trustDomain", "namespace"):
        if not entry.text(required):
            raise entry.fault(required, "a policy needs it")
    return AppPolicy(
        entry.text("appId"),
        entry.text("namespace"),
        entry.text("trustDomain"),
        _action(entry, "defaultAction"),
        [_operation(operation) for operation in entry.entries("operations")],
        f"{entry.at()}: {entry.path}",
    )


def _operation(entry: Fields) -> Operation:
    entry = entry.closed("name", "httpVerb", "action")
    name = entry.text("name")
    if not name:
        raise entry.fault("name", "an operation needs it")
    segments = _split(name)
    if not {".", ".."}.isdisjoint(segments) or any(character in name for character in "?#%"):
        raise entry.fault("name", f"must be a path without query, escapes, '.' and '..' (got '{clip(name)}')")
    if "*" in segments[:-1]:
        raise entry.fault("name", f"a segment '*' stands for the last one only; write '**' (got '{clip(name)}')")
    if len(segments) > MAX_SEGMENTS:
        raise entry.fault("name", f"must have at most {MAX_SEGMENTS} segments")
    verbs = frozenset(entry.texts("httpVerb"))
    if not verbs:
        raise entry.fault("httpVerb", 'an operation needs it; ["*"] stands for every verb')
    if unknown := sorted(verbs - {"*", *VERBS}):
        raise entry.fault("httpVerb", f"must be of {', '.join(VERBS)}, or * (got '{clip(unknown[0])}')")
    action = _action(entry, "action")
    if action is None:
        raise entry.fault("action", "an operation needs it: allow or deny")
    return Operation(
        segments=segments, verbs=verbs, allowed=action, origin=f"{entry.at('name')}: {entry.named('name')}"
    )


def _action(fields: Fields, key: str) -> bool | None:
    text = fields.text(key)
    if text.lower() not in ("", "allow", "deny"):
        raise fields.fault(key, f"must be allow or deny (got '{clip(text)}')")
    return text.lower() == "allow" if text else None


def _split(path: str) -> tuple[str, ...]:
    """The segments without empty ones; the root has one empty one."""
    return tuple(segment for segment in path.split("/") if segment) or ("",)


def _segments(path: str) -> tuple[str, ...] | None:
    """Those of a path as it was sent, decoded; `None` when it has no one meaning."""
    raw = path.partition("?")[0]
    if not raw.startswith("/"):
        return None
    try:
        segments = _split(unquote_to_bytes(raw).decode())
    except UnicodeError:
        return None
    return segments if {".", ".."}.isdisjoint(segments) else None


class _Node:
    """A segment of operations' names; its children in the order in which they were first listed."""

    __slots__ = ("children", "operation", "pieces", "segment")

    def __init__(self, segment: str = "") -> None:
        self.segment = segment
        self.pieces = segment.split("*")
        self.children: list[_Node] = []
        self.operation: Operation | None = None

    def add(self, segments: Sequence[str], operation: Operation) -> Operation:
        """The operation of this name: `operation`, or the one that was there."""
        node = self
        for segment in segments:
            child = next((child for child in node.children if child.segment == segment), None)
            if child is None:
                child = _Node(segment)
                node.children.append(child)
            node = child
        node.operation = node.operation or operation
        return node.operation

    def find(self, segments: Sequence[str], index: int = 0) -> Operation | None:
        """Each node is looked at once at most, since it stands at one depth."""
        is_last = index == len(segments) - 1
        for child in self.children:
            if not child.fits(segments[index], is_last):
                continue
            if child.operation:
                return child.operation  # of a name that goes on here, too: it covers what is below
            if is_last:
                below = (node.operation for node in child.children if node.segment in ("*", "**"))
                found = next(filter(None, below), None)
            else:
                found = child.find(segments, index + 1)
            if found:
                return found
        return None

    def fits(self, segment: str, is_last: bool) -> bool:
        if len(self.pieces) == 1:
            return segment == self.segment
        if self.segment == "*":
            return is_last
        first, *middle, last = self.pieces
        end = len(segment) - len(last)
        if end < len(first) or not segment.startswith(first) or not segment.endswith(last):
            return False
        position = len(first)
        for piece in middle:
            position = segment.find(piece, position, end)
            if position < 0:
                return False
            position += len(piece)
        return True
