"""Rules and filters from the outside: what the app gets, at which path, and what it does not get."""

import json
import re
import sys
from pathlib import Path

import pytest

from tests.e2e.mesh import App, Mesh, Run, call, running, subscription, until
from tests.ports import free_port

EXAMPLE = Path(__file__).parents[2] / "examples" / "routing"

STRUCTURED = ("content-type", "application/cloudevents+json")


@pytest.fixture
async def mesh(tmp_path):
    async with Mesh(tmp_path) as mesh:
        yield mesh


async def send(sidecar, number, type_, *, topic="A", **members):
    event = {"specversion": "1.0", "id": str(number), "source": "/shop", "type": type_, **members}
    await sidecar.publish(json.dumps(event).encode(), STRUCTURED, topic=topic)


def delivered(app):
    return sorted((request.event["id"], request.path) for request in app.events)


async def test_rules_of_the_app_and_of_a_file(mesh, tmp_path):
    """In the two ways of Dapr; a rule that is none takes only its own subscription with it."""
    folder = tmp_path / "resources"
    folder.mkdir()
    (folder / "orders.yaml").write_text("""\
apiVersion: dapr.io/v2alpha1
kind: Subscription
metadata: {name: orders}
spec:
  pubsubname: pubsub
  topic: B
  filters:
  - any:
    - prefix: {type: order.}
    - sql: EXISTS urgent
  routes:
    rules:
    - match: event.data.amount > 10
      path: /big
    - match: event.type == "order.placed" || has(event.urgent)
      path: /placed
---
apiVersion: dapr.io/v2alpha1
kind: Subscription
metadata: {name: broken}
spec:
  pubsubname: pubsub
  topic: C
  routes:
    rules: [{match: event.type =, path: /c}]
""")
    rules = [{"match": 'event.type == "a"', "path": "/a"}, {"match": "event.data.n > 5", "path": "big"}]
    asked = [{"pubsubname": "pubsub", "topic": "A", "routes": {"rules": rules, "default": "/rest"}}]
    async with App(asked) as app:
        sidecar = await mesh.sidecar("shop", "--resources-path", str(folder), app=app, topics=["A", "B"])
        await send(sidecar, 1, "a", data={"n": 9})
        await send(sidecar, 2, "b", data={"n": 9})
        await send(sidecar, 3, "b", data={"n": 1})
        headers = [(f"ce-{name}", value) for name, value in (("id", "4"), ("source", "/s"), ("type", "b"))]
        await sidecar.publish(
            b'{"n":6}', *headers, ("ce-specversion", "1.0"), ("content-type", "application/json"), topic="A"
        )
        await send(sidecar, 5, "order.placed", topic="B", data={"amount": 12})
        await send(sidecar, 6, "order.placed", topic="B", data={"amount": 3})
        await send(sidecar, 7, "order.gone", topic="B", data={"amount": 3})  # no rule takes it
        await send(sidecar, 8, "bill", topic="B", data={"amount": 99})  # filtered out
        await send(sidecar, 9, "bill", topic="B", data={"amount": 1}, urgent="yes")
        await app.got(7)
        expected = [("1", "/a"), ("2", "/big"), ("3", "/rest"), ("4", "/big"), ("5", "/big"), ("6", "/placed")]
        assert delivered(app) == [*expected, ("9", "/placed")]
        assert (
            "topic 'C' of 'pubsub' is not subscribed: rules[0].match: column 12: '=' means nothing here" in sidecar.log
        )
        answer = await sidecar.call(
            "POST",
            "/mesh/v1/explain?topic=B",
            [STRUCTURED],
            b'{"specversion":"1.0","id":"8","source":"/shop","type":"bill"}',
        )
        [found] = answer.json["subscriptions"]
        assert found["explanation"]["skipped"] == "filter"
        assert found["origin"].endswith("orders.yaml:1")


async def test_what_goes_nowhere_does_not_come_back(mesh):
    """Not after a restart either: it was acknowledged."""
    asked = [subscription(filters=[{"exact": {"type": "wanted"}}])]
    async with App(asked) as app:
        sidecar = await mesh.sidecar("shop", app=app, topics=["A"])
        for number in range(20):
            await send(sidecar, number, "other")
        await send(sidecar, 20, "wanted")
        await app.got(1)
        await sidecar.end()
    async with App([subscription()], port=app.port) as app:
        sidecar.start()
        await send(await sidecar.ready(), 21, "other")
        await app.got(1)
        assert delivered(app) == [("21", "/A")]


async def test_a_rule_without_a_value_makes_a_dead_letter(mesh):
    rules = [{"match": "event.data.amount > 1", "path": "/a"}]
    asked = [
        {"pubsubname": "pubsub", "topic": "A", "routes": {"rules": rules}, "deadLetterTopic": "dead"},
        subscription("dead"),
    ]
    async with App(asked) as app:
        sidecar = await mesh.sidecar("shop", app=app, topics=["A", "dead"])
        await send(sidecar, 1, "t", data={"name": "x"})  # has no amount
        await send(sidecar, 2, "t", data={"amount": 1})  # no rule takes it
        await send(sidecar, 3, "t", data={"amount": 2})
        await app.got(3)
        assert delivered(app) == [("1", "/dead"), ("2", "/dead"), ("3", "/a")]


async def test_the_example_does_what_its_readme_says(tmp_path):
    home = tmp_path / "home"
    port = free_port()
    desk = Run(home, "desk", sys.executable, str(EXAMPLE / "desk.py"), app_port=port)
    place = desk.command.index("run") + 1
    desk.command[place:place] = ["--resources-path", str(EXAMPLE / "resources")]
    till = Run(home, "till", sys.executable, str(EXAMPLE / "till.py"))
    try:
        desk.start()
        await desk.says(r"app is subscribed to the following topics: \[orders\]")
        till.start()
        await till.says("placed")
        await desk.says("== APP == /", 3)
        promised = re.findall(r"^== APP == (/.*)$", (EXAMPLE / "README.md").read_text(), re.MULTILINE)
        assert sorted(re.findall(r"== APP == (/.*)$", desk.log, re.MULTILINE)) == sorted(promised)
        command = re.search(r"-d '(.*)'", (EXAMPLE / "README.md").read_text())
        assert command is not None
        path = "/mesh/v1/explain?topic=orders"
        answer = await call(desk.port, "POST", path, [STRUCTURED], command[1].encode())
        [found] = answer.json["subscriptions"]
        assert found["explanation"]["decidedBy"]["expression"] == "source NOT LIKE '%/test'"
    finally:
        for run in (till, desk):
            if run.runs:
                await run.end()
        await until(lambda: not running(home), lambda: f"left behind: {running(home)}")
