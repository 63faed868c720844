"""kit.peers: real processes at the other end of a real socket."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import closing

import pytest

from latticed.kit import peers
from tests.house import processes

_CONNECT = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)"


@pytest.fixture
def listening(tmp_path):
    with closing(socket.socket(socket.AF_UNIX)) as server:
        path = tmp_path / "socket"
        server.bind(str(path))
        path.chmod(0o666)
        for place in (tmp_path, *tmp_path.parents):
            if place.stat().st_uid == os.getuid() and place != place.parent:
                place.chmod(place.stat().st_mode | 0o001)
        server.listen()
        server.settimeout(10)
        yield server


def test_peer_in_this_process_has_its_credentials(listening):
    """pid, uid, gid and groups as the kernel reports them."""
    with closing(socket.socket(socket.AF_UNIX)) as client:
        client.connect(listening.getsockname())
        accepted, _ = listening.accept()
        with closing(accepted):
            found = peers.of(accepted)
    assert found == peers.Peer(pid=os.getpid(), uid=os.getuid(), gid=os.getgid(), groups=frozenset(os.getgroups()))


@pytest.mark.root
@pytest.mark.parametrize("groups", [(), (70_001,), tuple(range(70_000, 70_300))], ids=["none", "one", "300"])
def test_peer_of_another_uid_has_its_groups(listening, groups):
    """It has none, one, or more groups than Python's getsockopt can return."""
    user = processes.User(uid=65500, gid=65501, groups=groups)
    python = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
    with processes.spawned([python, "-c", _CONNECT, listening.getsockname()], user=user, env={}) as stranger:
        accepted, _ = listening.accept()
        with closing(accepted):
            found = peers.of(accepted)
    assert found == peers.Peer(pid=stranger.pid, uid=65500, gid=65501, groups=frozenset(groups))


def test_credentials_of_socket_without_peer_are_an_error():
    """The socket listens or is not connected."""
    with closing(socket.socket(socket.AF_UNIX)) as lonely, pytest.raises(OSError, match="not connected"):
        peers.of(lonely)
