"""A fast app that wants topic A: notes the number of each event in a file, and only then says yes.

    python sink.py PORT FILE

It is killed while it runs, so nothing is buffered.
"""

import asyncio
import os
import re
import sys

import uvloop

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
        if noted:
            os.write(self.file, b"".join(noted))
        self.transport.write(b"".join(answers))


async def main(port, path):
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    server = await asyncio.get_running_loop().create_server(lambda: Sink(file), "127.0.0.1", port)
    await server.serve_forever()


uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
