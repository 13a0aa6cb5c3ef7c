"""An event that is sent again for one app alone is passed over by the sidecars of all others."""

import pytest

from mesh import addressing
from mesh.delivery import EventTarget, Prepared
from mesh.ports import Mode, Topic
from mesh.routing import Skipped
from tests.unit.mesh.delivery.bench import App
from tests.virtual_clock import VirtualClock

TOPIC = Topic("pubsub", "A")


class Delivered:
    """As much of a delivery as is looked at."""

    mode = Mode.STRUCTURED
    topic = TOPIC.name

    def __init__(self, payload, **headers):
        self.payload = payload
        self.headers = headers


@pytest.mark.parametrize("app_id", ["orders", "größe 1"])
@pytest.mark.parametrize("payload", [b'{"id":"1"}', b"no event"])
def test_only_the_app_that_is_meant_gets_it(app_id, payload):
    headers = {addressing.ONLY_FOR: addressing.token("orders")}
    target = EventTarget(TOPIC, "/A", App(VirtualClock()), app_id=app_id, raw_payload=True)
    found = target.prepare(Delivered(payload, **headers), 0.0)
    if app_id == "orders":
        assert isinstance(found, Prepared)
    else:
        assert found is Skipped.OTHER


def test_what_is_for_nobody_in_particular_is_for_all():
    target = EventTarget(TOPIC, "/A", App(VirtualClock()), app_id="orders")
    assert isinstance(target.prepare(Delivered(b"{}"), 0.0), Prepared)
    assert isinstance(target.prepare(Delivered(b"{}", traceparent="x"), 0.0), Prepared)
