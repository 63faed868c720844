"""Readers of event streams, in a process of their own: what they are sent they read at once and drop."""

from __future__ import annotations

import contextlib
import selectors
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from benchmarks.bench import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def reading(path: Path, count: int, *, host_calls: bool) -> Iterator[None]:
    """`count` streams of the daemon behind the control socket `path`; entered once all have begun."""
    if not count:
        yield
        return
    command = [sys.executable, "-m", "benchmarks.stream_readers", str(path), str(count), "1" if host_calls else "0"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"all\n":
                raise RuntimeError("expected all streams to begin, found that the readers ended")
            yield
        finally:
            process.kill()


def _read(path: str, count: int, host_calls: str) -> None:
    ask = f"GET /api/events?host_calls={host_calls} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    selector, begun = selectors.DefaultSelector(), set()
    for _ in range(count):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(path)
        sock.sendall(ask)
        selector.register(sock, selectors.EVENT_READ)
    buffer = bytearray(1 << 20)
    while True:
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            size = key.fileobj.recv_into(buffer)
            if not size:
                return
            if key.fd not in begun and b": up to date" in buffer[:size]:
                begun.add(key.fd)
                if len(begun) == count:
                    sys.stdout.write("all\n")
                    sys.stdout.flush()


if __name__ == "__main__":
    _read(sys.argv[1], int(sys.argv[2]), sys.argv[3])
