"""HTTP/1.1 over a unix socket, byte by byte if a test needs it; standard library only.

Run as a program (`python raw_http.py SOCKET METHOD PATH [BODY]`) it asks once under whatever uid runs it, and prints
the answer as JSON: how other users' requests are made.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import sys
import time
from dataclasses import dataclass
from http.client import HTTPResponse
from io import BytesIO
from pathlib import Path
from typing import Any

PATIENCE_S = 20.0
GOOD = b"GET /api/health HTTP/1.1\r\nHost: latticed\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """One response; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of a problem document."""
        assert self.headers["content-type"].startswith("application/problem+json"), self
        return str(self.json()["code"])


def connected(path: Path | str) -> socket.socket:
    """A connection with a deadline on every call."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The kernel's own deadline: with Python's, a queue that is full is EAGAIN, not a wait (unix(7)).
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(PATIENCE_S), 0))
    try:
        sock.connect(str(path))
        sock.settimeout(PATIENCE_S)
    except BaseException:
        sock.close()
        raise
    return sock


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """The bytes of one request; `headers` with _ for -."""
    lines = [f"{method} {path} HTTP/1.1", "Host: latticed"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if (body or method in {"POST", "PUT"}) and "Content_Length" not in headers and "Transfer_Encoding" not in headers:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def ask(path: Path | str, method: str, target: str, body: bytes = b"", **headers: str) -> Answer:
    """One request on a connection of its own."""
    with connected(path) as sock:
        sock.sendall(request(method, target, body, **headers))
        return receive(sock)


def receive(sock: socket.socket) -> Answer:
    """The response to the open request; an error if the connection ends before it is complete."""
    response = HTTPResponse(sock)
    try:
        response.begin()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        response.close()


def until_closed(sock: socket.socket, *, deadline_s: float = PATIENCE_S) -> bytes:
    """Everything that still arrives; TimeoutError when the other side does not close before the deadline."""
    deadline = time.monotonic() + deadline_s
    received = bytearray()
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"still open after {deadline_s:g} s; received {bytes(received[:400])!r}")
            sock.settimeout(left)
            if not (data := sock.recv(65536)):
                break
            received += data
    return bytes(received)


def send_anyway(sock: socket.socket, data: bytes) -> None:
    """Send as much as the other side takes before it closes."""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        sock.sendall(data)


def parsed(stream: bytes, *, first_method: str = "GET") -> list[Answer]:
    """The whole responses in `stream`, in order; AssertionError for anything that is not HTTP between them.

    `first_method` is that of the first request: an answer to HEAD has no body.
    """
    answers = []
    left = BytesIO(stream)
    while (place := left.tell()) < len(stream):
        assert stream[place:].startswith(b"HTTP/1."), f"not a response: {stream[place : place + 200]!r}"
        response = HTTPResponse(_Readable(left), method=None if answers else first_method)
        response.begin()
        answers.append(Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()))
    return answers


class _Readable:
    """What HTTPResponse asks of a socket, over bytes that were received before."""

    def __init__(self, left: BytesIO) -> None:
        self._left = left

    def makefile(self, mode: str) -> BytesIO:
        assert mode == "rb"
        return _Shared(self._left)  # type: ignore[return-value]


class _Shared:
    """The stream, not closed when one response ends."""

    def __init__(self, left: BytesIO) -> None:
        self._left = left

    def __getattr__(self, name: str) -> Any:
        return getattr(self._left, name)

    def close(self) -> None:
        """The next response is read from the same stream."""


def main(path: str, method: str, target: str, body: str = "") -> None:
    answer = ask(path, method, target, body.encode())
    print(json.dumps([answer.status, answer.headers, answer.body.decode("latin-1")]))


if __name__ == "__main__":
    main(*sys.argv[1:])
