"""Places four orders; the last is a test."""

import json
import os
import urllib.request

PUBLISH = f"http://127.0.0.1:{os.environ['DAPR_HTTP_PORT']}/v1.0/publish/pubsub/orders"
ORDERS = [
    ("1", "/till", {"amount": 2500}),
    ("2", "/till", {"amount": 30, "gift": True}),
    ("3", "/till", {"amount": 40, "gift": False}),
    ("4", "/till/test", {"amount": 50}),
]

for number, source, data in ORDERS:
    event = {"specversion": "1.0", "id": number, "source": source, "type": "com.example.order.placed", "data": data}
    request = urllib.request.Request(
        PUBLISH, json.dumps(event).encode(), {"content-type": "application/cloudevents+json"}
    )
    urllib.request.urlopen(request, timeout=10).close()
print("placed", flush=True)
