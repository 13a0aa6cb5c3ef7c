"""An app of the mesh that has no sidecar, and nothing of Meshwire: nats-py and the wire protocol are enough.

python prices.py nats://localhost:4222
"""

import asyncio
import json
import sys

import nats

PRICES = {"lamp": 40, "chair": 60}


def price(method, path):
    """Status, headers and body of the answer."""
    item = path.partition("?")[0].removeprefix("/prices/")
    if method != "GET":
        return 405, [["allow", "GET"]], {"error": "only GET is understood here"}
    if item not in PRICES:
        return 404, [], {"error": f"nobody sells a {item}"}
    return 200, [["cache-control", "max-age=60"]], {"item": item, "price": PRICES[item]}


async def main(url):
    connection = await nats.connect(url)

    async def answer(call):
        caller = call.subject.rpartition(".")[2]  # the broker's permissions can vouch for it
        method, path, _headers = json.loads((call.headers or {}).get("Meshwire-Request", '["POST","/",[]]'))
        status, headers, body = price(method, path)
        print(f"{caller} asked for {path}: {status}", flush=True)
        event = {
            "ce-specversion": "1.0",
            "ce-type": "io.meshwire.invocation.response.v1",
            "ce-source": "prices",
            "ce-id": call.reply,
            "ce-datacontenttype": "application/json",
            "Meshwire-Response": json.dumps([status, headers]),
        }
        await connection.publish(call.reply, json.dumps(body).encode(), headers=event)

    # Whoever joins the queue group shares the work.
    await connection.subscribe("mesh.default.invoke.prices.*", queue="prices", cb=answer)

    # An answer need not be more than data.
    told = await connection.request("mesh.default.invoke.shop.prices", b"prices are served", timeout=10)
    print(told.data.decode(), flush=True)
    await asyncio.Event().wait()


asyncio.run(main(sys.argv[1]))
