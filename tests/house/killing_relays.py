"""A relay in front of the control socket that kills a process at a given moment: before a request, or its answer.

with killing_relays.relayed(place) as relay:
    relay.at(3, host)  # SIGKILL to host.process before the second request is passed on
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.house import daemons


class KillingRelay:
    """`generations`: what the node had on disk at each request that changes something."""

    def __init__(self, path: Path, control: Path) -> None:
        self.path, self._control = path, control
        self.generations: list[int] = []
        self.killed = False
        self._left = 0
        self._host: Any = None
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        path.chmod(0o666)
        self._listening.listen(8)
        self._following: list[threading.Thread] = []
        self._closed = threading.Event()

    def at(self, moment: int, host: Any) -> None:
        """Kill at this moment from now, counted from 1; 0: never."""
        self._left, self._host, self.killed = moment, host, False

    def serve(self) -> None:
        """One connection after the other, until `close`; beside them those that follow the daemon's events."""
        while True:
            try:
                asking, _ = self._listening.accept()
            except OSError:
                return
            with contextlib.suppress(OSError):
                request = _request(asking)
                if request.startswith(b"GET /api/events"):
                    thread = threading.Thread(target=self._stream, args=(asking, request))
                    self._following.append(thread)
                    thread.start()
                    continue
                self._pass_on(asking, request)
            asking.close()

    def close(self) -> None:
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._following:
            thread.join()

    def _stream(self, asking: socket.socket, request: bytes) -> None:
        with asking, socket.socket(socket.AF_UNIX) as daemon, contextlib.suppress(OSError):
            daemon.connect(str(self._control))
            daemon.sendall(request)
            while not self._closed.is_set():
                ready, _, _ = select.select([daemon, asking], [], [], 0.2)
                if ready and not (data := ready[0].recv(1 << 16)):
                    return
                if ready:
                    (asking if ready[0] is daemon else daemon).sendall(data)

    def _pass_on(self, asking: socket.socket, request: bytes) -> None:
        if not request.startswith(b"GET ") and self._host is not None:
            self.generations.append(self._host.state()["generation"])
        if self._kills():
            return
        with socket.socket(socket.AF_UNIX) as daemon:
            daemon.connect(str(self._control))
            daemon.sendall(request)
            answer = b"".join(iter(lambda: daemon.recv(1 << 16), b""))
        if not self._kills():
            asking.sendall(answer)

    def _kills(self) -> bool:
        if self._left == 0:
            return False
        self._left -= 1
        if self._left == 0:
            os.kill(self._host.process.pid, signal.SIGKILL)
            self.killed = True
        return self.killed


def _request(asking: socket.socket) -> bytes:
    """The whole of a request: its head, and as many bytes as that announces."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := asking.recv(1 << 16)):
            raise ConnectionError
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    while len(body) < int(lengths[0] if lengths else 0):
        if not (more := asking.recv(1 << 16)):
            raise ConnectionError
        body += more
    return head + b"\r\n\r\n" + body


@contextlib.contextmanager
def relayed(place: daemons.Place) -> Iterator[KillingRelay]:
    relay = KillingRelay(place.home / "relay.sock", place.socket)
    thread = threading.Thread(target=relay.serve)
    thread.start()
    try:
        yield relay
    finally:
        relay.close()
        thread.join()
