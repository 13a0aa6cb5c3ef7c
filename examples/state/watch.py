"""Shows every count as it happens."""

from state import changes

for kind, change in changes("count"):
    if kind == "set":
        print(f"count is {change['data']}", flush=True)
    elif kind == "current":
        print("watching", flush=True)
