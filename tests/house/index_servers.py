"""Scripted sources of a marketplace: an https server with a test's own authority, on a thread of its own.

with index_servers.serving() as web:
    web.files["/plugins.json"] = b"…"
    web.answers["/artifact"] = index_servers.drip(b"…", per_s=1)
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import trustme

HOST = "mirror.test"
Say = Callable[[ssl.SSLSocket], None]


@dataclass
class IndexServer:
    """What it serves by path, and what was asked. `answers` come before `files`, `stop` ends endless ones."""

    port: int
    authority: Path
    files: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, Say] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def base(self) -> str:
        return f"https://{HOST}:{self.port}/"

    @property
    def origin(self) -> str:
        """The bound origin that leads here."""
        return f"https://{HOST}:{self.port}=127.0.0.1"


def serving(directory: Path) -> contextlib.AbstractContextManager[IndexServer]:
    """A server at a loopback port; `directory` gets its authority's certificate, for SSL_CERT_FILE."""
    return _serving(directory)


@contextlib.contextmanager
def _serving(directory: Path) -> Iterator[IndexServer]:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    file = directory / "authority.pem"
    authority.cert_pem.write_to_path(str(file))
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    web = IndexServer(port=listener.getsockname()[1], authority=file)
    threads: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=_answer, args=(web, context, raw), daemon=True)
            threads.append(thread)
            thread.start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield web
    finally:
        web.stop.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in (accepting, *threads):
            thread.join()


def _answer(web: IndexServer, context: ssl.SSLContext, raw: socket.socket) -> None:
    raw.settimeout(20)
    try:
        with context.wrap_socket(raw, server_side=True) as peer:
            head = b""
            while b"\r\n\r\n" not in head:
                piece = peer.recv(4096)
                if not piece:
                    return
                head += piece
            path = head.split(b" ")[1].decode()
            web.asked.append(path)
            (web.answers.get(path) or body(web.files[path]) if path in (web.answers | web.files) else status(404))(peer)
    except OSError:
        pass  # the client has gone, which is what most of these are for
    finally:
        raw.close()


def body(data: bytes, *more: str, length: int | None = None) -> Say:
    """200 with `data`; `length` is what is announced (-1: nothing, until the connection's end), `more` are headers."""

    def say(peer: ssl.SSLSocket) -> None:
        announced = len(data) if length is None else length
        lines = ["HTTP/1.1 200 OK", *more, *([f"Content-Length: {announced}"] if announced >= 0 else [])]
        peer.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode() + data)

    return say


def after(act: Callable[[], None], data: bytes) -> Say:
    """200 with `data`, once `act` was called."""

    def say(peer: ssl.SSLSocket) -> None:
        act()
        body(data)(peer)

    return say


def status(code: int, *more: str) -> Say:
    return lambda peer: peer.sendall("\r\n".join([f"HTTP/1.1 {code} X", *more, "Content-Length: 0", "", ""]).encode())


def redirect(location: str) -> Say:
    return status(302, f"Location: {location}")


def endless(web: IndexServer, piece: bytes = b"x" * 65_536) -> Say:
    """200 with a body that never ends."""

    def say(peer: ssl.SSLSocket) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while not web.stop.is_set():
            peer.sendall(piece)

    return say


def drip(web: IndexServer, *, length: int = 50_000) -> Say:
    """200 with a body that comes a byte every now and then, and never ends."""

    def say(peer: ssl.SSLSocket) -> None:
        peer.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode())
        while not web.stop.wait(0.2):
            peer.sendall(b"x")

    return say


def until_asked(web: IndexServer, path: str, *, deadline_s: float = 20) -> None:
    """Wait until `path` was asked for."""
    deadline = time.monotonic() + deadline_s
    while path not in web.asked:
        assert time.monotonic() < deadline, web.asked
        time.sleep(0.01)
