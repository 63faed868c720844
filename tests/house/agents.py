"""The agent of a fleet's host as its unit runs it: the real program, under a user of its own, beside a real daemon.

with agents.placed(fleet) as host:              # directories, settings, a daemon that lets the agent in
    host.join(fleet.invitation("web-1"))
    with host.running() as agent:
        agent.until("connected")
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from latticed.fleet.agent_settings import AgentState
from tests.house import daemons, processes

AGENT = processes.User(uid=65541, gid=processes.STRANGER.gid)
"""In the group that may connect to the daemon's socket, and named in its settings."""
_numbers = itertools.count()


@dataclass
class AgentProcess:
    """One running agent. `pid` is that of the half that signs, which is the unit's main process."""

    process: subprocess.Popen[bytes]
    notices: socket.socket
    log: Path
    heard: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def link(self) -> int:
        """The pid of the half with the connection."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        (found,) = [int(one) for one in children]
        return found

    def until(self, wanted: str) -> str:
        """The first text that the service manager is told, from now on, in which `wanted` is."""
        until_s = time.monotonic() + processes.PATIENCE_S
        while True:
            self.notices.settimeout(max(0.01, until_s - time.monotonic()))
            try:
                said = self.notices.recv(4096).decode()
            except TimeoutError:
                pytest.fail(f"waited for {wanted!r}, heard {self.heard[-5:]}: {self.log.read_text()[-4000:]}")
            self.heard.append(said)
            if wanted in said:
                return said

    def ended(self) -> int:
        return self.process.wait(processes.PATIENCE_S)

    def memory_kib(self) -> dict[str, int]:
        """Of both halves together: PSS, RSS, and what belongs to no file (smaps_rollup)."""
        found = dict.fromkeys(("Pss", "Rss", "Pss_Anon"), 0)
        for pid in (self.pid, self.link):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            for name in found:
                found[name] += int(re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)[1])
        return found


class AgentHost:
    """A host: `place` is its daemon's, `home` the agent's files."""

    def __init__(self, place: daemons.Place, home: Path) -> None:
        self.place = place
        self.home = home
        self.state = AgentState(home / "state")
        self.pinned = home / "etc/token"
        self.settings = home / "etc/fleet.toml"
        self.pinned.parent.mkdir()
        self.configure()

    def configure(self, **fields: object) -> None:
        plain = {"socket": str(self.place.socket), "daemon_user": str(self.place.uid), "reconcile_s": 2, **fields}
        lines = [f"{name} = {_toml(value)}" for name, value in plain.items()]
        self.settings.write_text("\n".join(lines))
        self.settings.chmod(0o644)

    def command(self, *words: str | Path) -> list[str]:
        options = ("--settings", self.settings, "--pinned", self.pinned, "--state", self.state.directory)
        return [*self.place.python(), "-m", "latticed.fleet.agent", *map(str, (*options, *words))]

    def joining(self, invitation: bytes, *options: str) -> list[str]:
        """The command by which this host joins, and the invitation's file."""
        path = self.home / f"invitation-{next(_numbers)}"
        path.write_bytes(invitation)
        path.chmod(0o600)
        return self.command("join", path, "--user", f"{AGENT.uid}:{AGENT.gid}", *options)

    def join(self, invitation: bytes, *options: str) -> subprocess.CompletedProcess[str]:
        """latticed-fleet join, run to its end."""
        return subprocess.run(
            self.joining(invitation, *options),
            env=self.place.environment(),
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            timeout=2 * processes.PATIENCE_S,
        )

    @contextlib.contextmanager
    def running(self) -> Iterator[AgentProcess]:
        """The agent, until the end of the block."""
        number = next(_numbers)
        name = f"@latticed-agent-{os.getpid()}-{number}"
        log = self.home / f"agent-{number}.log"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices, log.open("wb") as out:
            notices.bind("\0" + name[1:])
            process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**self.place.environment(), "NOTIFY_SOCKET": name, "WATCHDOG_USEC": "60000000"},
                cwd="/",
                user=AGENT.uid,
                group=AGENT.gid,
                extra_groups=[],
            )
            agent = AgentProcess(process, notices, log)
            try:
                yield agent
            finally:
                processes.end(process)


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


@contextlib.contextmanager
def placed(*trusted: object) -> Iterator[AgentHost]:
    """Directories of a host with its daemon, which trusts these authors and is not started; nothing has joined yet."""
    if os.getuid() != 0:
        pytest.skip("a host that joins a fleet has root pin what it believes: needs uid 0")
    home = Path(tempfile.mkdtemp(prefix="agent-", dir="/tmp"))
    try:
        home.chmod(0o755)
        with daemons.placed() as place:
            place.trust_us(*trusted)
            for path in (place.home, place.run, place.home.parent):
                path.chmod(0o711)
            host = AgentHost(place, home)
            place.set(
                f'[upgrade]\ngate_s = 0\n[market]\nimport_dir = "{host.state.spool}"\n'
                f'[access.users]\n{AGENT.uid} = ["operate", "host"]\n'
            )
            yield host
    finally:
        shutil.rmtree(home, ignore_errors=True)


def is_alive(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
