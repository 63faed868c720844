"""Facts of the live host from what ss(8) prints. Pure; ValueError for what no known version prints."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from latticed.system.proxy.facts import BoundPort, PortFacts

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

_SSHD: Final = "sshd"
_OWNER: Final = re.compile(r'\("([^"]*)",pid=([0-9]{1,9}),fd=[0-9]{1,9}\)')
"""A process that has the socket. Its name is its own choice of at most 15 bytes, in which no other process has room."""
_LISTENS: Final = {("tcp", "LISTEN"), ("udp", "UNCONN")}
_PORT: Final = re.compile(r":([0-9]{1,5})$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Socket:
    """One that listens. `owner`: the first program that has it."""

    transport: str
    port: int
    owner: str
    pids: frozenset[int]


def sockets(printed: bytes) -> tuple[Socket, ...]:
    """Of `ss -Hlntup`: Netid, State, Recv-Q, Send-Q, local, peer, and the processes where root asks."""
    found = []
    for line in printed.decode("utf-8", "replace").splitlines():
        columns = line.split(None, 6)
        port = _PORT.search(columns[4]) if len(columns) >= 6 else None
        # A process may have newlines in its name, but no room there for all of it.
        if port is None or (columns[0], columns[1]) not in _LISTENS:
            continue
        owners = _OWNER.findall(columns[6]) if len(columns) > 6 else []
        found.append(
            Socket(
                transport=columns[0],
                port=int(port[1]),
                owner=owners[0][0] if owners else "",
                pids=frozenset(int(pid) for _, pid in owners),
            )
        )
    return tuple(found)


def facts(found: Iterable[Socket], ours: Collection[tuple[str, int]]) -> PortFacts:
    """What an intent is checked against: what others have bound."""
    listed = list(found)
    others = {(one.transport, one.port): one.owner for one in listed if (one.transport, one.port) not in ours}
    bound = [BoundPort(transport=key[0], port=key[1], owner=others[key]) for key in sorted(others)]
    ssh = sorted({one.port for one in listed if one.owner == _SSHD and one.transport == "tcp"})
    return PortFacts(listeners=tuple(bound), ssh_ports=tuple(ssh))


def plain(found: PortFacts) -> dict[str, Any]:
    """The same as JSON values, for callers of the helper."""
    return {
        "listeners": [{"transport": one.transport, "port": one.port, "owner": one.owner} for one in found.listeners],
        "ssh_ports": list(found.ssh_ports),
    }


def from_plain(value: Any) -> PortFacts:
    """The facts that `plain` made JSON of, whatever else is there."""
    return PortFacts(
        listeners=tuple(BoundPort(**one) for one in value["listeners"]), ssh_ports=tuple(value["ssh_ports"])
    )
