"""Sets thermostats: `caretaker.py 17.5 hall kitchen`. Knows their names, and not where they live."""

import json
import os
import sys
import urllib.request

target, *rooms = sys.argv[1:]
for room in rooms:
    url = f"http://127.0.0.1:{os.environ['DAPR_HTTP_PORT']}/v1.0/actors/Thermostat/{room}/method/"
    method, body = ("off", {}) if target == "off" else ("set", {"target": float(target)})
    request = urllib.request.Request(url + method, json.dumps(body).encode(), method="PUT")
    urllib.request.urlopen(request, timeout=60).close()
    print(f"{room}: {target}")
