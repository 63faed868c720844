"""A client of a real daemon's routes: plain HTTP over TCP, a connection for each request."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from tests.house import processes, raw_http
from tests.house.daemons import Daemon

PATIENCE_S = processes.PATIENCE_S


def ask(url: str, path: str, *, method: str = "GET", **headers: str) -> raw_http.Answer:
    """The answer to one request for exactly that path; ConnectionRefusedError if the port is closed."""
    where = urlsplit(url)
    given = {"Host": where.netloc, "Connection": "close", **headers}
    head = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    with socket.create_connection((where.hostname, where.port), timeout=PATIENCE_S) as sock:
        sock.sendall("\r\n".join([*head, "", ""]).encode())
        return raw_http.receive(sock)


def text(url: str, path: str) -> str:
    """The body of an answer that must be 200."""
    answer = ask(url, path)
    assert answer.status == 200, answer
    return answer.body.decode()


def listens(url: str) -> bool:
    """Whether the port accepts connections."""
    where = urlsplit(url)
    try:
        socket.create_connection((where.hostname, where.port), timeout=PATIENCE_S).close()
    except ConnectionRefusedError:
        return False
    return True


def url_of(daemon: Daemon, plugin_id: str) -> str:
    """The URL in a worker's message, once it has one."""

    def said() -> str:
        record = daemon.plugin(plugin_id)
        assert record is not None
        start, found, url = record["runtime"].get("message", "").partition(" at http")
        return found and start.startswith("serves ") and "http" + url

    return str(daemon.until(said, f"{plugin_id} to be served"))
