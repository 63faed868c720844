"""sshd on this host: where it listens, and where operators are connected from. For each kind that must let them in.

What is decided is pure and in `latticed.system.nft_guard.sources`; here programs are run and /proc is read.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from latticed.kit import files
from latticed.model.errors import Problem
from latticed.plans.effects import parsed, ran
from latticed.system.nft_guard import sources
from latticed.system.nft_guard.facts import SSHD

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from latticed.plans.kind import Tools
    from latticed.system.nft_guard.facts import Listener, SshSession

PACKAGES: Final = MappingProxyType({"ss": "iproute2"})
_MAX_STATUS_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """`listeners`: all of TCP. `ports`: of `sshd -T`. `sessions`: as `nft_guard.facts.LiveFacts` has them."""

    listeners: tuple[Listener, ...]
    ports: tuple[int, ...]
    sessions: tuple[SshSession, ...]


def seen(tools: Tools) -> Seen:
    """Look. The kind's programs have `ss` and `sshd`, which need not be there. Problems tool_missing, tool_failed."""
    listening = ran(tools, PACKAGES, "ss", "-Htlnpe").stdout
    established = ran(tools, PACKAGES, "ss", "-Htnpe", "state", "established").stdout
    root = _of_root(sources.sshd_pids(listening, established))
    listeners = parsed(sources.listeners, listening, root)
    ports = _ports(tools, listeners)
    reached = {*ports, *(one.port for one in listeners if one.process == SSHD)}
    return Seen(listeners=listeners, ports=ports, sessions=parsed(sources.sessions, established, reached, root))


def _of_root(pids: Collection[int]) -> set[int]:
    """Those processes of which all user ids are 0."""
    # Not who owns the directory: root owns that of every process that is not dumpable, and any may be (proc(5)).
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError, ValueError):  # it has ended
            status = files.read_at_most(Path("/proc", str(pid), "status"), _MAX_STATUS_BYTES)
            if b"\nUid:\t0\t0\t0\t0\n" in status:
                found.add(pid)
    return found


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
