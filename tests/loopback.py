"""A web server on the loopback interface that says what a test tells it to, for the tests of downloads."""

import re
import socket
import struct
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"


@dataclass
class Reply:
    """What the server answers: a body, of which it may send less than it promises."""

    body: bytes
    status: int = 200
    type: str = "application/octet-stream"
    length: str | None = "right"  # Content-Length: the right one, another text, or none
    ranges: bool = True  # does it know Range?
    cut: int | None = None  # close the connection after so many bytes
    wait: float = 0
    headers: dict = field(default_factory=dict)  # further ones
    reset: bool = False  # after the bytes up to `cut`, reset the connection instead of closing it


@dataclass
class Site:
    """A server: replies by path (the last of a list stays), and a log of (path, Range header, bytes sent)."""

    url: str
    replies: dict[str, list[Reply]] = field(default_factory=dict)
    log: list[tuple] = field(default_factory=list)

    def answer(self, handler):
        replies = self.replies.get(handler.path) or [Reply(PAGE, status=404)]
        reply = replies.pop(0) if replies[1:] else replies[0]
        start, status, body = handler.headers["Range"], reply.status, reply.body
        same = handler.headers["If-Range"] in (None, *reply.headers.values())
        if start and reply.ranges and status == 200 and same:
            first = int(re.fullmatch(r"bytes=(\d+)-", start)[1])
            status, body = (206, body[first:]) if first < len(body) else (416, b"")
        time.sleep(reply.wait)
        handler.send_response(status)
        handler.send_header("Content-Type", reply.type)
        if reply.length:
            handler.send_header("Content-Length", str(len(body)) if reply.length == "right" else reply.length)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        self.log.append((handler.path.strip("/"), start, len(body[: reply.cut])))  # before the client goes on
        handler.end_headers()
        handler.wfile.write(body[: reply.cut])
        if reply.reset:
            time.sleep(0.05)  # so that what was sent is read
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()


@contextmanager
def serve(tls=None):
    """Yields a running Site. tls: the ssl.SSLContext of a server of https."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            site.answer(self)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site = Site(f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}")
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield site
        server.shutdown()
