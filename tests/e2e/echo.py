"""An app that shows what it was asked, and misbehaves on request.

    python echo.py PORT

`/echo` answers with the request as JSON; `/status/<n>` with that status; `/bytes/<n>` with so many bytes in pieces;
`/sink` counts and hashes; `/events` sends a line of server-sent events for each line it is told to; `/hang` never
answers; `/cut` breaks off in the middle; `/gone` says how many requests were broken off by their client.
"""

import asyncio
import hashlib
import json
import os
import sys

import uvicorn

gone = 0
PIECE = bytes(range(256)) * 256


async def body_of(receive):
    digest, size = hashlib.sha256(), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError
        digest.update(message["body"])
        size += len(message["body"])
        if not message.get("more_body"):
            return size, digest.hexdigest()


async def answer(send, status, body, *headers):
    length = [] if status in (204, 304) else [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
    await send({"type": "http.response.body", "body": body})


async def until_gone(receive):
    global gone
    while (await receive())["type"] != "http.disconnect":
        pass
    gone += 1


async def app(scope, receive, send):
    global gone
    _, kind, *arguments = scope["path"].split("/")
    try:
        size, digest = await body_of(receive)
    except ConnectionError:
        gone += 1
        return
    if kind == "status":
        await answer(
            send,
            int(arguments[0]),
            b"" if arguments[0] in ("204", "304") else b"body of " + arguments[0].encode(),
            *((b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"x-empty", b""), (b"location", b"/elsewhere")),
            *((b"content-type", b"text/plain; x=1"), (b"etag", b'"1"'), (b"x-hop", b"h"), (b"connection", b"x-hop")),
        )
    elif kind == "bytes":
        count = int(arguments[0])
        headers = [(b"content-length", b"%d" % count)] if arguments[1:] == ["known"] else []
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"a/b"), *headers]})
        while count:
            piece = PIECE[:count]
            count -= len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    elif kind == "events":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for number in range(3):
            await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})
            await asyncio.sleep(0.2)
        await until_gone(receive)
    elif kind == "hang":
        await until_gone(receive)
    elif kind == "cut":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-pid", b"%d" % os.getpid())]})
        await send({"type": "http.response.body", "body": PIECE * 4, "more_body": True})
        raise RuntimeError("as asked")
    elif kind == "gone":
        await answer(send, 200, b"%d" % gone)
    elif kind == "dapr":
        await answer(send, 404, b"")
    else:
        shown = {
            "method": scope["method"],
            "path": scope["raw_path"].decode(),
            "query": scope["query_string"].decode("latin-1"),
            "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]],
            "size": size,
            "digest": digest,
        }
        await answer(send, 200, json.dumps(shown).encode(), (b"content-type", b"application/json"))


if __name__ == "__main__":
    uvicorn.run(
        app, port=int(sys.argv[1]), log_level="critical", lifespan="off", date_header=False, server_header=False
    )
