"""Bulk delivery (Dapr: bulk subscribe), in a whole mesh with virtual time."""

import base64
import json

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sidecar.testing.mesh import Mesh


class Batches:
    """An app that takes several events at once; `answer` says for each event its status, or the whole response."""

    def __init__(self, answer=lambda event: "SUCCESS"):
        self.batches = []
        self.headers = []
        self._answer = answer
        self.app = Starlette(routes=[Route("/{path}", self._handle, methods=["POST"])])

    async def _handle(self, request):
        batch = json.loads(await request.body())
        self.batches.append(batch)
        self.headers.append(request.headers)
        statuses = []
        for entry in batch["entries"]:
            answer = self._answer(entry["event"])
            if isinstance(answer, Response):
                return answer
            if answer is not None:
                statuses.append({"entryId": entry["entryId"], "status": answer})
        return JSONResponse({"statuses": statuses})

    def data(self):
        return [[entry["event"]["data"] for entry in batch["entries"]] for batch in self.batches]


def subscribed(meshwire, app, events=0, wait=0, **more):
    bulk = {"enabled": True, "maxMessagesCount": events, "maxAwaitDurationMs": wait}
    return meshwire.app(
        "app",
        app.app,
        subscriptions=[{"pubsubname": "pubsub", "topic": "orders", "route": "/all", "bulkSubscribe": bulk, **more}],
    )


def publish(meshwire, *data, **attributes):
    """At once, without waiting for what becomes of it."""
    meshwire.publish_all("orders", data, **attributes)


def test_full_batches_go_at_once_and_the_rest_after_the_wait(meshwire: Mesh):
    app = Batches()
    subscribed(meshwire, app, 3, 500)
    publish(meshwire, *range(7))
    assert app.data() == [[0, 1, 2], [3, 4, 5]]
    meshwire.advance(0.5)
    assert app.data() == [[0, 1, 2], [3, 4, 5], [6]]
    batch = app.batches[0]
    assert (batch["type"], batch["topic"], batch["pubsubname"]) == ("com.dapr.event.sent.bulk", "orders", "pubsub")
    assert batch["id"] != app.batches[1]["id"]
    entry = batch["entries"][0]
    assert entry["contentType"] == "application/cloudevents+json"
    assert entry["metadata"]["meshwire-attempt"] == "1"
    assert entry["event"]["specversion"] == "1.0"
    assert app.headers[0]["content-type"] == "application/json"


def test_the_defaults_are_a_hundred_events_and_a_second(meshwire: Mesh):
    app = Batches()
    subscribed(meshwire, app)
    publish(meshwire, *range(150))
    assert [len(batch) for batch in app.data()] == [100]
    meshwire.advance(0.99)
    assert len(app.batches) == 1
    meshwire.advance(0.01)
    assert [len(batch) for batch in app.data()] == [100, 50]


@pytest.mark.parametrize("word", ["RETRY", "", "odd", 7])
def test_only_what_failed_comes_again(meshwire: Mesh, word):
    failing = {1}
    app = Batches(lambda event: word if event["data"] in failing else "SUCCESS")
    subscribed(meshwire, app, 3, 100)
    publish(meshwire, 0, 1, 2)
    assert app.data() == [[0, 1, 2]]
    failing.clear()
    meshwire.advance(10)
    assert app.data() == [[0, 1, 2], [1]]
    assert app.batches[1]["entries"][0]["metadata"]["meshwire-attempt"] == "2"
    meshwire.advance(3600)
    assert len(app.batches) == 2


@pytest.mark.parametrize(
    "answer",
    [
        lambda event: None,
        lambda event: Response(b""),
        lambda event: Response(b"no json"),
        lambda event: Response(b'{"statuses":1}'),
        lambda event: Response(b'{"statuses":[1]}'),
        lambda event: Response(status_code=500),
    ],
)
def test_what_is_not_spoken_of_comes_again(meshwire: Mesh, answer):
    app = Batches(answer)
    subscribed(meshwire, app, 2, 100)
    publish(meshwire, 0, 1)
    meshwire.advance(1.5)
    assert len(app.batches) >= 2
    assert app.data()[0] == [0, 1]
    assert {n for batch in app.data()[1:] for n in batch} == {0, 1}


def test_dropped_and_exhausted_events_are_dead_letters_one_by_one(meshwire: Mesh):
    app = Batches(lambda event: {0: "SUCCESS", 1: "DROP", 2: "RETRY"}[event["data"]])
    subscribed(meshwire, app, 3, 100, deadLetterTopic="dead")
    publish(meshwire, 0, 1, 2)
    meshwire.advance(3600)
    assert app.data() == [[0, 1, 2]]
    assert sorted(event["data"] for event in meshwire.published("dead")) == [1, 2]


def test_rules_group_by_path(meshwire: Mesh):
    app = Batches()
    routes = {"rules": [{"match": "event.type == 'b'", "path": "/b"}], "default": "/rest"}
    subscribed(meshwire, app, 10, 100, routes=routes)
    publish(meshwire, 0, 1, type="a")
    publish(meshwire, 2, type="b")
    meshwire.advance(0.1)
    assert sorted(app.data()) == [[0, 1], [2]]


def test_raw_payloads_come_as_base64(meshwire: Mesh):
    app = Batches()
    subscribed(meshwire, app, 1, 100, metadata={"rawPayload": "true"})
    publish(meshwire, "text")
    (entry,) = app.batches[0]["entries"]
    assert entry["contentType"] == "application/octet-stream"
    assert json.loads(base64.b64decode(entry["event"]))["data"] == "text"


def test_a_limit_of_concurrency_is_one_of_a_batch_too(meshwire: Mesh):
    app = Batches()
    subscribed(meshwire, app, 100, 60_000, metadata={"concurrency": "4"})
    publish(meshwire, *range(8))
    assert app.data() == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"maxMessagesCount": -1}, "bulkSubscribe.maxMessagesCount: must be from 1 to 1000 (got -1)"),
        ({"maxMessagesCount": 100_000}, "bulkSubscribe.maxMessagesCount: must be from 1 to 1000 (got 100000)"),
        ({"maxAwaitDurationMs": 10**9}, "bulkSubscribe.maxAwaitDurationMs: must be from 1 to 60000"),
        ({"metadata": {"order": "key"}}, "contradicts bulkSubscribe"),
    ],
)
def test_what_cannot_be_is_refused(meshwire: Mesh, caplog, change, rule):
    entry = {"pubsubname": "pubsub", "topic": "orders", "route": "/all", "metadata": change.pop("metadata", {})}
    meshwire.app("app", Batches().app, subscriptions=[{**entry, "bulkSubscribe": {"enabled": True, **change}}])
    assert rule in caplog.text
