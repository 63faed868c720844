"""A real sshd in the firewall of `firewalled`, and who is connected to it: logged in, or not."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.house import children, firewalled, processes

ADDRESS = "10.9.0.1"
_CONFIG = """
Port {port}
HostKey {home}/host
PidFile none
UsePAM no
AuthorizedKeysFile {home}/known.pub
StrictModes no
PermitRootLogin yes
UseDNS no
"""
_SSH = "-F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
_NAMED = """
import ctypes, socket, sys
name, address, port = sys.argv[1:]
prctl = ctypes.CDLL(None).prctl
assert prctl(15, name.encode(), 0, 0, 0) == 0
assert prctl(4, 0, 0, 0, 0) == 0
opened = socket.create_server((address, int(port)))
print(flush=True)
sys.stdin.read()
"""
"""Is called `name`, and not dumpable: its files in /proc are root's."""


@dataclass
class Sshd:
    """It takes the key `known` for root, and listens at all addresses of the namespace `r`."""

    net: firewalled.Net
    home: Path
    port: int

    @contextmanager
    def login(self, source: str, address: str = ADDRESS) -> Iterator[None]:
        """Root, logged in from an address of the namespace `a`, at one of `r`."""
        with _started(self._ssh(f"-b {source} root@{address}", "echo in; cat")) as client:
            assert client.stdout
            assert client.stdout.readline() == b"in\n"
            yield

    @contextmanager
    def tunnel(self, source: str) -> Iterator[None]:
        """Root, logged in without a command or terminal, for ports that are forwarded."""
        done = self.home / "done"
        options = f"-N -o ControlMaster=yes -o ControlPath={done} -b {source} root@{ADDRESS}"
        with _started(self._ssh(options, "")):
            # The client makes it once it is logged in.
            processes.until(done.exists, what="a login")
            yield

    @contextmanager
    def connected(self, source: str) -> Iterator[None]:
        """Somebody who says nothing, after sshd's first line."""
        with self.net.inside("a"):
            client = socket.create_connection((ADDRESS, self.port), processes.PATIENCE_S, (source, 0))
        with client:
            assert client.recv(4).startswith(b"SSH")
            yield

    @contextmanager
    def guessing(self, source: str, user: str) -> Iterator[None]:
        """Somebody whom sshd has asked for the password of a user."""
        asked = self.home / "asked"
        ask = self.home / "ask"
        ask.write_text(f"#!/bin/sh\ntouch {asked}\nexec sleep 600\n")
        ask.chmod(0o700)
        env = {**os.environ, "SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force"}
        ssh = f"ssh {_SSH} -o PreferredAuthentications=password -p {self.port} -b {source} {user}@{ADDRESS}"
        with _started(["ip", "netns", "exec", self.net.name("a"), *shlex.split(ssh)], env=env):
            processes.until(asked.exists, what="the question for a password")
            yield
        asked.unlink()

    def run(self, command: str) -> bytes:
        """What a command prints that root runs over ssh from `a`, by link-local addresses of IPv6."""
        shown = json.loads(self.net.run("r", "ip", "-j", "-6", "address", "show", "dev", "r0", "scope", "link"))
        # Empty objects stand for what was not asked for.
        (local,) = [each["local"] for one in shown if one for each in one["addr_info"] if each]
        ssh = self._ssh(f"root@{local}%eth0", command)
        return subprocess.run(ssh, stdin=subprocess.DEVNULL, capture_output=True, check=False).stdout

    def _ssh(self, options: str, command: str) -> list[str]:
        ssh = f"ssh {_SSH} -o BatchMode=yes -i {self.home}/known -p {self.port} {options}"
        return ["ip", "netns", "exec", self.net.name("a"), *shlex.split(ssh), command]


@contextmanager
def sshd(net: firewalled.Net, port: int = 22) -> Iterator[Sshd]:
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="latticed-")))
        for name in ("host", "known"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / name], check=True)
        (home / "config").write_text(_CONFIG.format(home=home, port=port))
        # In the mount namespace that ip(8) makes: the directory that sshd wants to be in.
        script = (
            f"mount -t tmpfs tmpfs /run; mkdir -m 755 /run/sshd; exec /usr/sbin/sshd -D -f {home}/config -E {home}/log"
        )
        stack.enter_context(_started(["ip", "netns", "exec", net.name("r"), "sh", "-c", script]))
        listens = ("ss", "-Hltn", f"sport = :{port}")
        processes.until(lambda: net.run("r", *listens), what="sshd")
        yield Sshd(net, home, port)


@contextmanager
def session(net: firewalled.Net) -> Iterator[None]:
    """An operator who is logged in at port 22 of `r`, from 10.9.0.2."""
    with sshd(net) as server, server.login("10.9.0.2"):
        yield


@contextmanager
def named(net: firewalled.Net, name: str, port: int, user: processes.User) -> Iterator[None]:
    """A process of `user` that is called `name` and listens in `r`."""
    drop = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups", "--"]
    python = [processes.reachable_python(), "-I", "-c", _NAMED, name, ADDRESS, str(port)]
    with _started(["ip", "netns", "exec", net.name("r"), *drop, *python]) as child:
        assert child.stdout
        assert child.stdout.readline() == b"\n"
        yield


@contextmanager
def _started(command: list[str], env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process, which is killed in the end with its descendants.

    Each of sshd's sessions has a group of its own, and goes on for hours where a client's end does not come through.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=env) as child:
        try:
            yield child
        finally:
            for pid in {child.pid} | children.descendants(child.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
