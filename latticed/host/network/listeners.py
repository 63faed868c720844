"""The network state that is readable without root: listening sockets (proc_net(5)) and interfaces."""

from __future__ import annotations

import ipaddress
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from latticed.host.node import interfaces as node_interfaces

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_LISTENERS: Final = 2_000
"""Listeners in one answer; `complete` says whether there are more."""
_LISTEN: Final = "0A"  # TCP_LISTEN of linux/tcp_states.h
_UNCONNECTED: Final = "07"  # TCP_CLOSE: a UDP socket without a peer
# File below /proc/net, protocol, and the state of sockets that accept something.
_TABLES: Final = (
    ("tcp", "tcp", _LISTEN),
    ("tcp6", "tcp", _LISTEN),
    ("udp", "udp", _UNCONNECTED),
    ("udp6", "udp", _UNCONNECTED),
)


class ListeningSocket(NamedTuple):
    """One socket that accepts connections or datagrams; `uid` is its owner's. Only root could see its process."""

    protocol: str
    address: str
    port: int
    uid: int


def listeners(root: Path) -> dict[str, Any]:
    """`{listeners: [{protocol, address, port, uid}], complete}`, sorted, each once; of this network namespace.
    `complete` is False when there are more than MAX_LISTENERS. OSError without any table. Blocks.
    """
    found = sorted(set(_read(root)))
    return {"listeners": [one._asdict() for one in found[:MAX_LISTENERS]], "complete": len(found) <= MAX_LISTENERS}


def interfaces(root: Path) -> dict[str, Any]:
    """`{interfaces: [...]}` as node.facts shows them, without MACs. Blocks."""
    return {"interfaces": node_interfaces.interfaces(root, hardware=False)}


def _read(root: Path) -> Iterator[ListeningSocket]:
    """The listening sockets of all tables, unsorted; malformed lines are skipped. OSError when there is no table of TCP
    over IPv4.
    """
    for table, protocol, state in _TABLES:
        try:
            lines = (root / "proc/net" / table).read_text(encoding="ascii", errors="replace").splitlines()[1:]
        except FileNotFoundError:
            if table == "tcp":
                raise
            continue  # for example a kernel without IPv6
        for line in lines:
            fields = line.split()
            # Columns of proc_net(5): 1 is the local address, 3 the state, 7 the uid.
            if len(fields) > 7 and fields[3] == state and (one := _listener(protocol, fields[1], fields[7])):
                yield one


def _listener(protocol: str, local: str, uid: str) -> ListeningSocket | None:
    """The socket of one line; None for malformed fields. `local` is as `0100007F:0016`."""
    raw, _, port = local.partition(":")
    try:
        return ListeningSocket(protocol, _address(raw), int(port, 16), int(uid))
    except ValueError:  # malformed line
        return None


def _address(raw: str) -> str:
    """An address as the kernel prints it (32-bit words in its own byte order), as text; ValueError.

        "0100007F" on a little-endian machine  ->  "127.0.0.1"

    Mapped IPv4 addresses of IPv6 sockets are shown as IPv4.
    """
    words = [bytes.fromhex(raw[place : place + 8]) for place in range(0, len(raw), 8)]
    packed = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    address = ipaddress.ip_address(packed)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
