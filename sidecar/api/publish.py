"""Publish, by Dapr's route: `POST /v1.0/publish/{pubsubname}/{topic}`, and as in 2019 without a component's name.

Hot; guarded by `benchmarks/publish.py`.
"""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from mesh.envelope import Publication
from mesh.errors import ApiError, Code
from mesh.ports import Topic
from mesh.pubsub import DEFAULT_COMPONENT, PubSub
from mesh.trace import InvalidBaggage
from sidecar.api.request import context, query_metadata, scheduled
from sidecar.http.body import BodyTooLarge, read_body
from sidecar.http.responses import send_response, send_text
from sidecar.http.routing import Router


class PublishApi:
    def __init__(self, pubsub: PubSub, max_body_size: int) -> None:
        self._pubsub = pubsub
        self._max_body_size = max_body_size

    def add_to(self, router: Router) -> None:
        router.add(("POST", "PUT"), "/v1.0/publish/{pubsubname}/{topic:path}", self.publish, group="v1/publish")
        router.add(("POST", "PUT"), "/v1.0/publish/{topic}", self.publish_without_name, group="v1/publish")

    async def publish_without_name(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As in 2019: to a topic of the only broker that there was. The name of a component is no topic: whoever sends
        that has forgotten the topic, and would never learn where the events went."""
        name = scope["path_params"]["topic"]
        if name in self._pubsub.components:
            raise ApiError(
                Code.TOPIC_EMPTY,
                f"topic is empty in pubsub {name}",
                resource=("pubsub", name),
                metadata=query_metadata(scope),
            )
        await self.publish(scope, receive, send)

    async def publish(self, scope: Scope, receive: Receive, send: Send) -> None:
        parameters = scope["path_params"]
        topic = Topic(parameters.get("pubsubname", DEFAULT_COMPONENT), parameters["topic"])
        metadata = query_metadata(scope)
        self._pubsub.component(topic.pubsub, metadata)
        try:
            asked = context(scope)
        except InvalidBaggage as error:
            await send_text(send, 400, str(error))
            return
        try:
            body = await read_body(receive, self._max_body_size, scope)
        except BodyTooLarge as error:
            raise ApiError(
                Code.PUBSUB_PUBLISH,
                f"error when publishing to topic {topic.name} in pubsub {topic.pubsub}: {error}",
                resource=("pubsub", topic.pubsub),
                metadata={"topic": topic.name, "error": str(error)},
            ) from None
        held = await self._pubsub.publish(
            Publication(
                topic=topic,
                body=body,
                content_type=asked.content_type,
                headers=scope["headers"],
                metadata=metadata,
                trace=asked.trace,
                baggage=asked.baggage,
            )
        )
        await send_response(send, 204, asked.echo() + scheduled(held) if held else asked.echo(), b"")
