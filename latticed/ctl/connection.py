"""One request and its answer over a unix socket, with http.client."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import socket_peer
from latticed.ctl.bounded_socket import BoundedSocket
from latticed.ctl.plain_http import client as http
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

REALLY: Final = "is the socket really latticed's?"
"""Hint where an answer is not one of the daemon's."""
_HEAD_BYTES: Final = 1 << 20
"""Bounds the heads of an answer and of interim ones: http.client alone allows 100 lines of 64 KiB in each."""
_BACKLOG_PAUSE_S: Final = 0.01
"""Between two attempts while the daemon's backlog is full."""


class UnixConnection(http.HTTPConnection):
    """HTTP over a unix socket, after a check of who serves it; `wire` is the socket that enforces the limits."""

    wire: BoundedSocket

    def __init__(self, path: str, *, connect_s: float, owner: Callable[[], str]) -> None:
        super().__init__("localhost", timeout=connect_s)
        self._path = path
        self._connect_s = connect_s
        self._owner = owner

    def connect(self) -> None:
        """Connect and check who serves the socket; OSError, TimeoutError, Problem socket_foreign."""
        deadline_s = time.monotonic() + self._connect_s
        self.sock = self.wire = BoundedSocket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.wire.settimeout(self._connect_s)
        while True:
            try:
                self.wire.connect(self._path)
                break
            except BlockingIOError:
                # A socket with a timeout is non-blocking: connect(2) fails with EAGAIN while the backlog is full.
                if time.monotonic() > deadline_s:
                    raise TimeoutError from None
                time.sleep(_BACKLOG_PAUSE_S)
        socket_peer.check(self.wire, self._path, self._owner)

    def ask(self, method: str, target: str, body: bytes | None, headers: dict[str, str], within_s: float) -> Any:
        """Send one request; the response with its head read.

        TimeoutError after `within_s` seconds, Problem bad_reply.
        """
        self.connect()
        self.wire.within(within_s, _HEAD_BYTES)
        self.request(method, target, body=body, headers=headers)
        response = self.getresponse()
        # http.client takes the first of several lengths, and whatever int() takes: `+5`, `1_0`.
        length = response.headers.get_all("Content-Length", [])
        if len(length) > 1 or not all(one.isascii() and one.isdigit() for one in length):
            raise Problem("bad_reply", "the daemon's answer has no proper length", REALLY)
        return response

    def end(self) -> None:
        """Close the socket even if a response was not read to its end; `close` alone would leave it open until then."""
        self.close()
        # None when connect() was never reached.
        wire = getattr(self, "wire", None)
        if wire is not None and (fd := wire.detach()) >= 0:
            os.close(fd)
