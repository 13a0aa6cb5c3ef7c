"""Who may use which topic of a pub/sub component (Dapr: pub/sub topic scoping)."""

from __future__ import annotations

from collections.abc import Mapping

from mesh.addressing import covers, is_pattern
from mesh.errors import ConfigurationError, clip
from mesh.quantities import comma_list

Entries = Mapping[str, frozenset[str]]


class TopicScopes:
    """The scoping metadata of one component. Without any, every app may use every topic."""

    __slots__ = ("_allowed", "_protected", "_publishing", "_subscribing")

    def __init__(
        self, allowed: frozenset[str], protected: frozenset[str], publishing: Entries, subscribing: Entries
    ) -> None:
        self._allowed = allowed
        self._protected = protected
        self._publishing = publishing
        self._subscribing = subscribing

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> TopicScopes:
        """From a component's metadata, whose keys are found in any letter case.

        Raises `ConfigurationError` for a scope without `=`: Dapr passes over it, which would leave an app
        unrestricted that somebody meant to restrict.
        """
        values = {key.lower(): value for key, value in metadata.items()}
        return cls(
            frozenset(comma_list(values.get("allowedtopics", ""))),
            frozenset(comma_list(values.get("protectedtopics", ""))),
            _entries("publishingScopes", values.get("publishingscopes", "")),
            _entries("subscriptionScopes", values.get("subscriptionscopes", "")),
        )

    def may_publish(self, app_id: str, topic: str) -> bool:
        """Also asked for dead-letter topics."""
        return self._may(self._publishing, app_id, topic)

    def may_subscribe(self, app_id: str, topic: str) -> bool:
        """A pattern must be named as it is, or meet no protected topic where nothing is said of the app."""
        if not self._may(self._subscribing, app_id, topic):
            return False
        unnamed = app_id not in self._subscribing
        return not (unnamed and is_pattern(topic) and any(covers(topic, name) for name in self._protected))

    def _may(self, entries: Entries, app_id: str, topic: str) -> bool:
        if self._allowed and topic not in self._allowed:
            return False
        own = entries.get(app_id)
        if own is None:
            return topic not in self._protected
        return topic in own


def _entries(key: str, text: str) -> dict[str, frozenset[str]]:
    """`app1=t1,t2;app2=` by app; an app that is named twice has the topics of both."""
    entries: dict[str, frozenset[str]] = {}
    for entry in text.split(";"):
        if not entry.strip():
            continue
        app_id, equals, topics = entry.partition("=")
        app_id = app_id.strip()
        if not equals or not app_id or "=" in topics:
            raise ConfigurationError(f"metadata.{key}: must look like app1=topic1,topic2;app2= (got '{clip(entry)}')")
        entries[app_id] = entries.get(app_id, frozenset()) | frozenset(comma_list(topics))
    return entries
