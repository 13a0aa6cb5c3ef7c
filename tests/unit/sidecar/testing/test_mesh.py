"""The fixture `meshwire`, used as users do (docs/testing.md)."""

import itertools
import os
import threading

import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from sidecar.testing.mesh import Mesh

RESILIENCY = """
apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata: {name: patient}
spec:
  policies:
    retries: {thrice: {policy: constant, duration: 10s, maxRetries: 2}}
  targets:
    components: {pubsub: {inbound: {retry: thrice}}}
"""


def test_an_event_comes_as_it_was_published(meshwire: Mesh):
    events = []
    app = meshwire.app("app", {"orders": events.append})
    delivered = app.deliver("orders", {"id": 7}, type="order.placed", subject="7")
    assert delivered.status == "success"
    assert [(event["data"], event["type"], event["subject"]) for event in events] == [({"id": 7}, "order.placed", "7")]
    assert [event["data"] for event in app.events] == [{"id": 7}]
    assert delivered.attempts[0].status == 200


@pytest.mark.parametrize(
    ("answer", "status"), [(None, "success"), ("SUCCESS", "success"), ("RETRY", "retry"), ("DROP", "drop")]
)
def test_what_a_function_answers(meshwire: Mesh, answer, status):
    app = meshwire.app("app", {"orders": lambda event: answer})
    assert app.deliver("orders").status == status


def test_a_failing_function_is_tried_again_when_time_passes(meshwire: Mesh):
    moments = []

    def fail(event):
        moments.append(meshwire.clock.now())
        raise ValueError("not yet")

    app = meshwire.app("app", {"orders": fail})
    delivered = app.deliver("orders")
    assert (delivered.status, delivered.attempts[0].status) == ("retry", 500)
    assert delivered.attempts[0].answer == b"ValueError: not yet"
    meshwire.advance(4 * 3600)
    pauses = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert all(pause > before for before, pause in itertools.pairwise(pauses[:4]))
    assert 48 <= pauses[-1] <= 72


def test_manifests_hold(meshwire: Mesh, tmp_path):
    (tmp_path / "resiliency.yaml").write_text(RESILIENCY)
    app = meshwire.app("app", {"orders": lambda event: "RETRY"}, resources_path=str(tmp_path))
    assert app.deliver("orders", "poison").status == "retry"
    meshwire.advance(60)
    assert [event["data"] for event in app.events] == ["poison"] * 3
    assert app.call("GET", "/v1.0/metadata").json["id"] == "app"


def test_apps_publish_to_each_other(meshwire: Mesh):
    def place(event):
        shop.call("POST", "/v1.0/publish/pubsub/paid", b'{"order":7}', {"content-type": "application/json"})

    shop = meshwire.app("shop", {"orders": lambda event: threading.Thread(target=place, args=(event,)).run()})
    warehouse = meshwire.app("warehouse", {"paid": lambda event: None})
    meshwire.publish("orders", {})
    assert meshwire.published("paid", data={"order": 7}, source="shop")
    assert len(warehouse.events) == 1
    with pytest.raises(AssertionError, match=r"nothing like that was published to paid, but:\n.*'order': 7"):
        assert meshwire.published("paid", source="others"), meshwire.published("paid", source="others")
    assert repr(meshwire.published("never")) == "nothing like that was published to never, but: nothing at all"


def test_an_asgi_app_with_other_subscriptions(meshwire: Mesh):
    async def answer(request):
        await request.body()
        return Response(status_code=404)

    app = meshwire.app(
        "app",
        Starlette(routes=[Route("/in", answer, methods=["POST"])]),
        subscriptions=[
            {"pubsubname": "pubsub", "topic": "orders", "route": "/in", "filters": [{"exact": {"type": "order"}}]}
        ],
    )
    assert app.deliver("orders", type="order").status == "drop"
    assert app.deliver("orders", type="other").status == "skipped"


def test_state_is_shared_and_typed(meshwire: Mesh):
    app = meshwire.app("app", {})
    assert app.get_state("a") is None
    assert app.call("POST", "/v1.0/state/statestore", b'[{"key":"a","value":{"n":1}}]').status == 204
    assert app.get_state("a") == {"n": 1}


async def test_a_test_with_an_event_loop_may_use_it_too(meshwire: Mesh):
    seen = []

    async def handle(event):
        seen.append(event["data"])

    app = meshwire.app("app", {"orders": handle})
    assert app.deliver("orders", 1).status == "success"
    assert seen == [1]


def test_the_environment_is_that_of_the_first_app_until_the_end():
    before = os.environ.get("DAPR_HTTP_PORT")
    mesh = Mesh()
    try:
        first = mesh.app("first", {})
        mesh.app("second", {})
        assert os.environ["DAPR_HTTP_PORT"] == str(first.dapr_http_port)
    finally:
        mesh.close()
    assert os.environ.get("DAPR_HTTP_PORT") == before
    assert "meshwire" not in {thread.name for thread in threading.enumerate()}


def test_what_cannot_start_says_why(meshwire: Mesh, tmp_path):
    (tmp_path / "broken.yaml").write_text(RESILIENCY.replace("retry: thrice", "retry: often"))
    with pytest.raises(Exception, match="no manifest has a policy 'often'"):
        meshwire.app("app", {}, resources_path=str(tmp_path))
