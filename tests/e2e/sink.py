"""A fast app that wants topic A: works on each event for a moment, notes its number in a file, and says yes.

    python sink.py PORT FILE

It is killed while it runs: nothing is buffered, and at any time there are some events that it has not done yet.
"""

import asyncio
import os
import re
import sys

import uvloop

WORK = 0.01
"""Seconds for one event."""
SUBSCRIBE = b'[{"pubsubname":"pubsub","topic":"A","route":"/a"}]'
number = re.compile(rb'"data":\{"n":(\d+)\}').search
length = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE).search


class Sink(asyncio.Protocol):
    def __init__(self, file):
        self.file = file
        self.buffer = b""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        data = self.buffer + data
        noted, answers = [], []
        while (end := data.find(b"\r\n\r\n") + 4) > 3:
            found = length(data, 0, end)
            whole = end + (int(found[1]) if found else 0)
            if len(data) < whole:
                break
            request, data = data[:whole], data[whole:]
            if event := number(request, end):
                noted.append(event[1] + b"\n")
            body = SUBSCRIBE if request.startswith(b"GET /dapr/subscribe ") else b""
            status = b"200 OK" if body or not request.startswith(b"GET") else b"404 Not Found"
            answers.append(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))
        self.buffer = data
        if answers:
            asyncio.get_running_loop().call_later(WORK if noted else 0, self.done, noted, answers)

    def done(self, noted, answers):
        if noted:
            os.write(self.file, b"".join(noted))
        if not self.transport.is_closing():
            self.transport.write(b"".join(answers))


async def main(port, path):
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    server = await asyncio.get_running_loop().create_server(lambda: Sink(file), "127.0.0.1", port)
    await server.serve_forever()


uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
