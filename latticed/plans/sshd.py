"""sshd on this host: where it listens, and where operators are connected from. For each kind that must let them in.

What is decided is pure and in `latticed.system.nft_guard.sources`; here programs are run and /proc is read.
"""

from __future__ import annotations

import contextlib
import pwd
import time
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from latticed.kit import files
from latticed.model.errors import Problem
from latticed.plans.effects import parsed, ran
from latticed.system.nft_guard import sources
from latticed.system.nft_guard.facts import SSHD
from latticed.system.nft_guard.sources import Process

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from latticed.plans.kind import Tools
    from latticed.system.nft_guard.facts import Listener, SshSession
    from latticed.system.nft_guard.sources import Connection

PACKAGES: Final = MappingProxyType({"ss": "iproute2"})
_MAX_BYTES: Final = 64 << 10
_LOOKS: Final = 5
_PAUSE_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """`listeners`: all of TCP. `ports`: of `sshd -T`. `sessions`: as `nft_guard.facts.LiveFacts` has them."""

    listeners: tuple[Listener, ...]
    ports: tuple[int, ...]
    sessions: tuple[SshSession, ...]


def seen(tools: Tools) -> Seen:
    """Look. The kind's programs have `ss` and `sshd`, which need not be there. Problems tool_missing, tool_failed."""
    listening = ran(tools, PACKAGES, "ss", "-Htlnpe").stdout
    listeners = parsed(sources.listeners, listening, _processes(listening))
    ports = _ports(tools, listeners)
    reached = {*ports, *(one.port for one in listeners if one.process == SSHD)}
    return Seen(listeners=listeners, ports=ports, sessions=sources.sessions(_connections(tools, reached)))


def _connections(tools: Tools, ports: Collection[int]) -> list[Connection]:
    """Those by which somebody is logged in.

    Whoever guesses passwords has one at every moment of which it is not clear, for its process starts or ends. So one
    is looked for again, and counts when it is there still and not clear after the last look.
    """
    logins: list[Connection] = []
    unclear: list[Connection] = []
    for look in range(_LOOKS):
        if look:
            time.sleep(_PAUSE_S)
        printed = ran(tools, PACKAGES, "ss", "-Htnpe", "state", "established").stdout
        found = parsed(sources.connections, printed, ports, _processes(printed), _account())
        known = {one.ends for one in unclear}
        asked = [one for one in found if look == 0 or one.ends in known]
        logins += [one for one in asked if one.is_login]
        unclear = [one for one in asked if not one.is_login]
        if not unclear:
            break
    return logins + unclear


def _processes(printed: bytes) -> dict[int, Process]:
    """Of those that have a socket and a name of sshd, the ones that have not ended."""
    found = {}
    for pid in sources.sshd_pids(printed):
        place = Path("/proc", str(pid))
        with contextlib.suppress(OSError, ValueError):
            # Not who owns the directory: root owns that of every process that is not dumpable, as any may be (proc(5)).
            status = files.read_at_most(place / "status", _MAX_BYTES).decode("utf-8", "replace").split("\n")
            uids = frozenset(int(uid) for line in status if line.startswith("Uid:") for uid in line.split()[1:])
            # It lies in the process's own memory, where another's reader may be kept waiting for ever.
            title = files.read_at_most(place / "cmdline", _MAX_BYTES) if uids == {0} else b""
            found[pid] = Process(uids=uids, title=title.decode("utf-8", "replace").rstrip("\0"))
    return found


def _account() -> int | None:
    """Whose the processes of sshd are that talk to a peer before it has logged in."""
    try:
        return pwd.getpwnam("sshd").pw_uid
    except KeyError:
        return None


def _ports(tools: Tools, listeners: Iterable[Listener]) -> tuple[int, ...]:
    """Of `sshd -T`. Where sshd is installed, cannot say, and none listens: the port that it has by default."""
    try:
        ended = tools.run("sshd", "-T")
    except Problem as problem:
        if problem.code == "tool_missing":
            return ()
        raise
    ports = sources.sshd_ports(ended.stdout) if ended.status == 0 else ()
    if ports or any(one.process == SSHD for one in listeners):
        return ports
    return (sources.SSH_PORT,)
