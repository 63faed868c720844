"""The link as a process: what it takes of memory, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from latticed.fleet import link_process, messages
from latticed.model.errors import Problem
from tests.house.links import NodesEnd

WAIT_S = 60
MOST_MIB = 45
"""Of a whole agent, which is this process and one without a network."""


def settings(fleet, node, directory, url):
    directory.mkdir(exist_ok=True)
    path = directory / "link.toml"
    path.write_text(
        f'node = "{node}"\nservers = ["{url}"]\nca = "{fleet.ca}"\n'
        f'credentials = "{fleet.node(node)}"\nspool = "{directory}"\n'
    )
    return path


@contextlib.asynccontextmanager
async def started(fleet, node, directory, url=None):
    """The process, and the node's end of the socketpair."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "latticed.fleet.link_process"),
                *(
                    "--settings",
                    settings(fleet, node, directory, url or fleet.urls[0]),
                    "--socket",
                    str(theirs.fileno()),
                ),
            ],
            pass_fds=[theirs.fileno()],
        )
    try:
        mine = NodesEnd(*await asyncio.open_connection(sock=ours))
        yield mine, process
        mine.close()
    finally:
        process.kill()
        process.wait()


async def ended(process):
    return await asyncio.to_thread(process.wait, WAIT_S)


async def test_connects_hands_over_and_fits_into_its_memory(fleet, controller, node, tmp_path):
    await controller.put_desired(node, b"document", 0)
    async with asyncio.timeout(WAIT_S), started(fleet, node, tmp_path / "link") as (mine, process):
        assert (await mine.following(messages.NewDesired)).document == b"document"
        status = Path(f"/proc/{process.pid}/status").read_text()
        (resident,) = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")]
        assert resident < MOST_MIB << 10
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == 0


async def test_ends_with_the_node(fleet, node, tmp_path):
    async with asyncio.timeout(WAIT_S), started(fleet, node, tmp_path / "link") as (mine, process):
        await mine.following(messages.LinkState, lambda one: one.up)
        mine.close()
        assert await ended(process) == 0


async def test_node_that_sends_what_is_no_message_ends_it(fleet, node, tmp_path):
    async with asyncio.timeout(WAIT_S), started(fleet, node, tmp_path / "link") as (mine, process):
        mine._writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await ended(process) == 1


async def test_killed_one_closes_the_socket_of_the_node(fleet, node, tmp_path):
    async with asyncio.timeout(WAIT_S), started(fleet, node, tmp_path / "link") as (mine, process):
        await mine.following(messages.LinkState, lambda one: one.up)
        process.kill()
        with pytest.raises(AssertionError, match="the link has ended"):
            await mine.following(messages.NewStatus)
        assert await ended(process) == -signal.SIGKILL


@pytest.mark.parametrize("begun", [b"MSG x 1 9999999999\r\n", b"INFO ", b"MSG "], ids=["message", "line", "MSG"])
async def test_server_that_announces_something_without_end_is_hung_up_on(fleet, node, tmp_path, begun):
    """It has the right certificate: whoever holds the engine can do this."""
    sent = 0
    piece = b"x" * (1 << 16)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(fleet.place / "server.pem", fleet.place / "server.key")
    listening = socket.create_server(("127.0.0.1", 0))

    def pretend():
        # Blocking, on a thread: asyncio's TLS needs more processor time for this than all else here.
        nonlocal sent
        with contextlib.suppress(OSError), listening:
            while True:
                taken, _ = listening.accept()
                with taken, contextlib.suppress(OSError), context.wrap_socket(taken, server_side=True) as peer:
                    peer.sendall(
                        b'INFO {"server_name":"x","version":"2.15.1","headers":true,"max_payload":1048576}\r\n'
                    )
                    peer.recv(4096)
                    peer.sendall(b"PONG\r\n" + begun)
                    while True:
                        peer.sendall(piece)
                        sent += len(piece)

    server = threading.Thread(target=pretend)
    server.start()
    url = f"tls://127.0.0.1:{listening.getsockname()[1]}"
    try:
        async with asyncio.timeout(WAIT_S), started(fleet, node, tmp_path / "link", url) as (mine, process):
            lost = await mine.following(messages.LinkState, lambda one: not one.up and "at most" in one.reason)
            assert "expected a" in lost.reason
            assert process.poll() is None
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        await asyncio.to_thread(server.join)
    assert sent < 64 << 20


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('servers = ["nats://127.0.0.1:4222"]', "servers"),
        ("servers = []", "servers"),
        ('node = "web.1"', "a node's name"),
        ("other = 1", "other"),
        ("spool_bytes = -1", "spool_bytes"),
        ("node = ", "settings_invalid"),
    ],
)
def test_settings_that_are_not_valid_name_what_is_wrong(tmp_path, line, said):
    base = {
        "node": 'node = "web-1"',
        "servers": 'servers = ["tls://127.0.0.1:4222"]',
        "ca": 'ca = "/ca"',
        "credentials": 'credentials = "/creds"',
        "spool": 'spool = "/spool"',
    }
    path = tmp_path / "link.toml"
    path.write_text("\n".join([*base.values()]))
    assert link_process.read(path).node == "web-1"
    path.write_text("\n".join([*{**base, line.split(" ")[0]: line}.values()]))
    with pytest.raises(Problem) as found:
        link_process.read(path)
    assert said in str(found.value)


def test_settings_that_others_may_change_are_refused(tmp_path):
    path = tmp_path / "link.toml"
    path.write_text("")
    path.chmod(0o666)
    with pytest.raises(Problem, match="writable"):
        link_process.read(path)
    os.unlink(path)
