"""latticectl with an untrusted server on its socket: checked by peer credentials; every answer ends in time."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from latticed.client import control as clients
from latticed.client.control import ControlClient
from latticed.model.errors import Problem
from tests.house import processes

SERVER = """
import os, socket, sys
os.setgroups([]); os.setresgid(*[int(sys.argv[2])] * 3); os.setresuid(*[int(sys.argv[2])] * 3)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1]); os.chmod(sys.argv[1], 0o777); listener.listen()
print("up", flush=True)
while True:
    connection, _ = listener.accept()
    try:
        print(repr(connection.recv(65536)), flush=True)
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\n{}")
    except OSError:
        pass
    connection.close()
"""
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0 to serve as another user")


@contextmanager
def served(place: Path, uid: int) -> Iterator[tuple[str, Callable[[], str]]]:
    """A socket in `place` served by `uid`, and a function that returns what the next connection sent."""
    path = str(place / "control.sock")
    os.chown(place, uid, uid)
    with subprocess.Popen(
        [sys.executable, "-I", "-c", SERVER, path, str(uid)], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "up\n"
            yield path, lambda: server.stdout.readline().strip()  # type: ignore[union-attr]
        finally:
            server.kill()


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of root's, mode 0755, with another one in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as root:
        os.chmod(root, 0o755)  # noqa: S103 - as a home is
        (Path(root) / "run").mkdir(mode=0o755)
        yield Path(root) / "run"


@pytest.mark.root
@AS_ROOT
def test_nothing_is_sent_to_an_untrusted_server(ctl, place, monkeypatch):
    """Exit code 5; the error names who serves the socket and who should."""
    stranger = processes.STRANGER.uid
    place.chmod(0o777)
    with served(place, stranger) as (path, heard):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hunter2-hunter2")))
        ran = ctl("secret", "set", "TOKEN", LATTICED_SOCKET=path)
        assert ran.code == 5
        assert ran.err.startswith(
            f"error: {path} is served by uid {stranger}, expected root, yourself (uid 0) or latticed"
        )
        assert "socket_owner" in ran.err
        assert heard() == "b''"


@pytest.mark.root
@AS_ROOT
def test_only_trusted_users_may_serve_the_socket(place):
    """They are owners of directories that only root can have given away, and the user in the settings; none in /tmp."""
    stranger = processes.STRANGER.uid
    with served(place, stranger) as (path, heard):
        assert ControlClient(path).get("status") == {}
        assert "GET /api/status" in heard()
        for mode, owner, fine in (
            (0o777, "", False),
            (0o777, str(stranger), True),
            (0o775, "", False),
            (0o755, "", True),
        ):
            place.chmod(mode)
            with contextlib.nullcontext() if fine else pytest.raises(Problem, match="nothing was sent"):
                ControlClient(path, owner=lambda owner=owner: owner).get("status")
            assert ("GET" in heard()) == fine, (mode, owner)
        os.chmod(place.parent, 0o1777)  # noqa: S103 - as /tmp is
        with pytest.raises(Problem) as caught:
            ControlClient(path).get("status")
        assert caught.value.code == "socket_foreign"
        assert heard() == "b''"


def answering(
    path: Path, pieces: Callable[[], Iterator[bytes]], pause_s: float = 0.0
) -> contextlib.AbstractContextManager[None]:
    """A socket that sends `pieces()` to each connection until it is closed."""

    @contextmanager
    def serving() -> Iterator[None]:
        over = threading.Event()
        with closing(socket.socket(socket.AF_UNIX)) as listener:
            listener.bind(str(path))
            listener.listen()

            def serve() -> None:
                while not over.is_set():
                    with contextlib.suppress(OSError):
                        connection, _ = listener.accept()
                        connection.settimeout(1)
                        with closing(connection):
                            for piece in pieces():
                                connection.sendall(piece)
                                if over.wait(pause_s):
                                    return

            thread = threading.Thread(target=serve, name="hostile")
            thread.start()
            try:
                yield
            finally:
                over.set()
                with contextlib.suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)
                thread.join()

    return serving()


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
LENGTH = HEAD + b"Content-Length: %b\r\n\r\n"


def _then(first: bytes, again: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: itertools.chain([first], itertools.repeat(again))


def _dripped(data: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: (data[at : at + 1] for at in itertools.chain(range(len(data)), itertools.repeat(len(data) - 1)))


ENDLESS = {
    "interim answers": _then(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "headers": _then(HEAD, b"X-A: b\r\n" * 100),
    "headers of interim answers": _then(b"HTTP/1.1 100 Continue\r\n", b"X-A: b\r\n" * 100),
    "a header": _then(HEAD + b"X-A: ", b"a" * 4096),
    "a status line": _then(b"HTTP/1.1 200 ", b"a" * 4096),
    "a body without a length": _then(HEAD + b"\r\n", b"a" * 65536),
    "a negative length": _then(LENGTH % b"-1", b"a" * 65536),
    "a length that is none": _then(LENGTH % b"0x10", b"a" * 65536),
    "two lengths": _then(HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n", b"{}"),
    "a length beyond everything": _then(LENGTH % b"9999999999999999999", b"a" * 65536),
    "chunks": _then(CHUNKED, b"10000\r\n" + b"a" * 65536 + b"\r\n"),
    "a negative chunk": _then(CHUNKED + b"-5\r\n", b"a" * 65536),
    "a chunk that is none": _then(CHUNKED + b"zz\r\n", b"a" * 65536),
    "a chunk's extension": _then(CHUNKED + b"5;", b"a" * 4096),
    "trailers": _then(CHUNKED + b"0\r\n", b"X-A: b\r\n" * 100),
    "noughts before a chunk": _then(CHUNKED, b"0" * 4096),
    "silence": lambda: iter([b""]),
    "another protocol": _then(b"SSH-2.0-OpenSSH_9.2\r\n", b""),
}
DRIPPED = {  # a byte at a time
    "a slow status line": _dripped(b"HTTP/1.1 200 O"),
    "slow interim answers": _dripped(b"HTTP/1.1 100 Continue\r\n\r\n" * 20),
    "slow headers": _dripped(HEAD + b"X-A: b"),
    "a slow body": _dripped(LENGTH % b"1000" + b"a"),
    "slow chunks": _dripped(CHUNKED + b"5\r\naaaaa\r\n" * 50),
}


NO_HEAD = [*list(ENDLESS)[:5], "silence", "another protocol"]
NO_LINE = ["a body without a length", "a negative length", "a length that is none", "a negative chunk", "trailers"]
NO_BACKUP = ["a body without a length", "a negative length", "two lengths", "chunks", "a chunk's extension", "trailers"]
CASES = [
    *((way, what) for way in ("get", "post") for what in (*ENDLESS, *DRIPPED)),
    *(("lines", what) for what in (*NO_HEAD, *NO_LINE, *DRIPPED)),
    *(("chunks", what) for what in (*NO_HEAD, *NO_BACKUP, *DRIPPED)),
]


@pytest.mark.parametrize(("way", "what"), CASES)
def test_hostile_answer_is_an_error_within_the_deadline(tmp_path, monkeypatch, way, what):
    """Endless, a byte at a time, impossible lengths: `unreachable` or `bad_reply`."""
    monkeypatch.setattr(clients, "QUIET_S", 0.3)
    monkeypatch.setattr(clients, "LONG_S", 0.3)
    monkeypatch.setattr(clients, "MAX_REPLY_BYTES", 4 << 20)
    asked = {
        "get": lambda client: client.get("status"),
        "post": lambda client: client.post("secrets", body={"value": "s" * 100_000}),
        "lines": lambda client: list(client.lines("events")),
        "chunks": lambda client: list(client.chunks("backup")),
    }
    pieces, pause_s = (DRIPPED[what], 0.02) if what in DRIPPED else (ENDLESS[what], 0.0)
    with answering(tmp_path / "s", pieces, pause_s):
        began_s = time.monotonic()
        with pytest.raises(Problem) as caught:
            asked[way](ControlClient(str(tmp_path / "s"), read_s=0.3))
        assert caught.value.code in {"unreachable", "bad_reply"}
        assert time.monotonic() - began_s < 5


@pytest.mark.parametrize("what", ["interim answers", "trailers"])
def test_endless_answer_is_cut_at_the_size_limit(tmp_path, monkeypatch, what):
    """It is cut before the deadline: `http.client` by itself would read on."""
    monkeypatch.setattr(clients, "MAX_REPLY_BYTES", 1 << 20)
    with answering(tmp_path / "s", ENDLESS[what]):
        with pytest.raises(Problem) as caught:
            ControlClient(str(tmp_path / "s"), read_s=15).get("status")
        assert caught.value.code == "bad_reply"
