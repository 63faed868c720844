"""The addresses of this host itself: a plugin that reaches them reaches what listens here, public or not."""

from __future__ import annotations

import array
import fcntl
import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from latticed.model.addresses import Address

_SIOCGIFCONF: Final = 0x8912  # netdevice(7); no netlink, which the unit's RestrictAddressFamilies= refuses
_IFREQ_BYTES: Final = 40 if struct.calcsize("P") == 8 else 32
_ADDRESS_AT: Final = 20  # of an ifreq: 16 bytes of name, then a sockaddr_in with family and port before the address
_IF_INET6: Final = Path("/proc/thread-self/net/if_inet6")
_FIRST_ROOM: Final = 64


def own_addresses() -> frozenset[Address]:
    """All addresses of all interfaces, as they are now; what cannot be read is left out."""
    return frozenset(_v4()) | frozenset(_v6())


def _v4() -> list[IPv4Address]:
    room = _FIRST_ROOM
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        while True:
            buffer = array.array("B", bytes(room * _IFREQ_BYTES))
            place, size = buffer.buffer_info()
            asked = struct.pack("iP", size, place)
            used = struct.unpack("iP", fcntl.ioctl(sock.fileno(), _SIOCGIFCONF, asked))[0]
            if used < size:  # a full buffer may have cut the list
                break
            room *= 2
    raw = buffer.tobytes()[:used]
    starts = range(0, used, _IFREQ_BYTES)
    return [IPv4Address(raw[at + _ADDRESS_AT : at + _ADDRESS_AT + 4]) for at in starts]


def _v6() -> list[IPv6Address]:
    try:
        lines = _IF_INET6.read_bytes().split(b"\n")  # ends with the interface's name, which is bytes
    except OSError:  # a kernel without IPv6
        return []
    return [IPv6Address(bytes.fromhex(line[:32].decode("ascii"))) for line in lines if line]
