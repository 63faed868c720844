"""Health while 300 clients have begun a request and do not go on with it."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from typing import TYPE_CHECKING, Final

from benchmarks import daemon, processes, rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.bench import Bench

CLIENTS: Final = 300
MAX_S: Final = 0.050
RETRY_S: Final = 1.0
HALF: Final = b"POST /api/plugins/lifecycle HTTP/1.1\r\nHost: localhost\r\nContent-Le"


def measure(bench: Bench) -> list[rows.Row]:
    """Each probe is a new connection, as latticectl's are; without the crowd, then with it."""
    probes = bench.some(3_000, 300)
    with bench.scratch() as place:
        home = place / "d"
        home.mkdir()
        ours = daemon.Place(home=home, programs=bench.ours())
        ours.prepare()
        with daemon.running(ours):
            quiet = [_probe_s(ours.socket) for _ in range(probes)]
            with _crowd(ours.socket) as crowd:
                time.sleep(2)
                loud = []
                for _ in range(probes):
                    loud.append(_probe_s(ours.socket))
                    time.sleep(0.002)
                cut = crowd.cut
    worst = rows.percentile(loud, 0.99)
    return [
        rows.Row(
            target="STALL",
            what=f"p99 of /api/health beside {CLIENTS} stalled clients (p50, worst)",
            ours=f"{rows.seconds(worst)} ({rows.seconds(rows.percentile(loud, 0.5))}, {rows.seconds(max(loud))})",
            reference=f"{rows.seconds(rows.percentile(quiet, 0.99))} without them; {cut} cut and come again",
            wanted=f"≤ {rows.seconds(MAX_S)}",
            met=worst <= MAX_S,
            samples={"stalled": loud, "quiet": quiet},
        )
    ]


def _probe_s(path: Path) -> float:
    began_s = time.perf_counter()
    with contextlib.closing(processes.UnixHttp(path)) as client:
        client.ask("GET", "/api/health", Connection="close")
    return time.perf_counter() - began_s


class _Crowd(threading.Thread):
    """Clients that send half a request; who is cut comes again a second later."""

    def __init__(self, path: Path) -> None:
        super().__init__(name="crowd", daemon=True)
        self._path = str(path)
        self._selector = selectors.DefaultSelector()
        self._coming: list[float] = [0.0] * CLIENTS
        self.cut = 0
        self.going = True

    def run(self) -> None:
        while self.going:
            now_s = time.monotonic()
            due = [moment for moment in self._coming if moment <= now_s]
            self._coming = [moment for moment in self._coming if moment > now_s]
            for _ in due:
                self._enter()
            for key, _ in self._selector.select(0.05):
                assert isinstance(key.fileobj, socket.socket)
                self._leave(key.fileobj)
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            self._leave(key.fileobj)

    def _enter(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(self._path)
            sock.send(HALF)
        except OSError:
            sock.close()
            self._coming.append(time.monotonic() + RETRY_S)
            return
        self._selector.register(sock, selectors.EVENT_READ)

    def _leave(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        sock.close()
        self.cut += 1
        self._coming.append(time.monotonic() + RETRY_S)


@contextlib.contextmanager
def _crowd(path: Path) -> Iterator[_Crowd]:
    crowd = _Crowd(path)
    crowd.start()
    try:
        yield crowd
    finally:
        crowd.going = False
        crowd.join()
