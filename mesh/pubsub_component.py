"""What all pub/sub components have in common, and the one that is the backbone itself."""

from __future__ import annotations

from collections.abc import Sequence

from mesh.components import ComponentSpec, Field, Setup
from mesh.delivery import settings as delivery
from mesh.errors import ConfigurationError
from mesh.ports import EventLog
from mesh.pubsub import Component
from mesh.scopes import TopicScopes

SCOPES: Sequence[Field] = (
    Field("publishingScopes", "Which topics an app may publish to: `app1=topic1,topic2;app2=`."),
    Field("subscriptionScopes", "Which topics an app may subscribe to: `app1=topic1,topic2;app2=`."),
    Field("allowedTopics", "The only topics that there are, with commas between them."),
    Field("protectedTopics", "Topics only for apps that a scope names, with commas between them."),
)
FIELDS: Sequence[Field] = (*SCOPES, *delivery.FIELDS)
"""The settings of every pub/sub component, beside its own."""


def make(setup: Setup, spec: ComponentSpec, log: EventLog) -> Component:
    """Raises `ConfigurationError`, with the place in the file."""
    try:
        scopes = TopicScopes.from_metadata({field.name: setup.settings[field.name] or "" for field in SCOPES})
    except ConfigurationError as error:
        raise ConfigurationError(f"{setup.settings.origin}: {error}") from None
    return Component(
        name=setup.name,
        log=log,
        type=spec.type,
        version=setup.version,
        scopes=scopes,
        topic_prefix=setup.namespace if setup.settings.namespace_scoped else "",
        delivery=delivery.of_component(setup.settings),
    )


def _backbone(setup: Setup) -> EventLog:
    if setup.events is None:
        raise ConfigurationError(f"{setup.settings.origin}: there is no backbone to publish to")
    return setup.events


SPEC = ComponentSpec(
    type="pubsub.meshwire",
    title="The broker of the mesh",
    about=(
        "Durable events on the broker that the mesh itself runs on. The component `pubsub` of this type needs no file; "
        "further ones have topics of their own."
    ),
    open=_backbone,
    features=("MESSAGE_TTL", "SUBSCRIBE_WILDCARDS"),
    shared=True,
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: orders
spec:
  type: pubsub.meshwire
  version: v1
  metadata:
    - name: publishingScopes
      value: "shop=paid,shipped;billing=invoiced"
""",
)
