"""What a supervisor can see of a sidecar, and nothing more: test_supervisor.py starts it in the place of one.

stand_in_sidecar.py PORT [fail | hang | deaf | leave]
"""

import asyncio
import os
import signal
import sys

import uvloop

from sidecar import lifeline


async def main(port, behaviour=""):
    if behaviour == "fail":
        sys.exit(7)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    lifeline.watch(loop, stop.set)
    signals = []

    def on_signal():
        signals.append(1)
        if behaviour != "hang":
            stop.set()

    loop.add_signal_handler(signal.SIGTERM, on_signal)

    async def answer(reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().partition("content-length: ")[2].split("\r\n")[0])
        body = (await reader.readexactly(length)).decode()
        print(f"asked: {head.partition(' HTTP')[0]} {body}", flush=True)
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.close()
        if behaviour == "leave":
            stop.set()

    if behaviour != "deaf":
        await asyncio.start_server(answer, "127.0.0.1", int(port))
    print("sidecar runs", os.getpid(), flush=True)
    await stop.wait()
    print(f"sidecar stops after signals: {len(signals)}", flush=True)


with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main(*sys.argv[1:]))
