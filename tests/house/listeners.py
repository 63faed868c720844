"""A plain HTTP server on loopback for real daemons to reach: it can go away from its port and come back to it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

_PAUSE_S = 0.02


@dataclass(slots=True)
class Listener:
    """`requests` are (path, headers) as they came; the answer's body is the header Authorization, if there is one."""

    port: int = 0
    connections: int = 0
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(self) -> None:
        """Listen, on the same port as before if there was one."""
        self.port = self.stack.enter_context(_served(self))

    def close(self) -> None:
        """Refuse connections."""
        self.stack.close()


@contextlib.contextmanager
def listening() -> Iterator[Listener]:
    made = Listener()
    made.open()
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def _served(listener: Listener) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            listener.requests.append((self.path, dict(self.headers)))
            body = self.headers.get("Authorization", "nobody").encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Log nothing: what was asked is in `requests`."""

    class Server(HTTPServer):
        def get_request(self) -> Any:
            listener.connections += 1
            return super().get_request()

    with Server(("127.0.0.1", listener.port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(_PAUSE_S,), name="listener")
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
