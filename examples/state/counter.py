"""Counts so many times, side by side with other counters, and never loses a count."""

import sys

from state import read, write

times = int(sys.argv[1]) if len(sys.argv) > 1 else 10
conflicts = 0
for _ in range(times):
    while True:
        count, etag = read("count")
        if write("count", (count or 0) + 1, etag):
            break
        conflicts += 1  # another counter was faster: read what it wrote, and try again
print(f"counted {times} times, {conflicts} conflicts", flush=True)
