"""The addresses of this host's network interfaces: SIOCGIFCONF (netdevice(7)) and if_inet6 (proc_net(5)).

Not netlink, which the units refuse (RestrictAddressFamilies= without AF_NETLINK).
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

# thread-self: /proc/net is that of the main thread, and namespaces belong to threads (network_namespaces(7)).
IF_INET6: Final = Path("/proc/thread-self/net/if_inet6")

# linux/sockios.h, linux/if.h.
_SIOCGIFCONF: Final = 0x8912
_SIOCGIFNETMASK: Final = 0x891B
_IFREQ: Final = struct.Struct("16s24s" if struct.calcsize("P") == 8 else "16s16s")  # a label, then a sockaddr
_SOCKADDR_IN: Final = struct.Struct("=HH4s")
_FIRST_ENTRIES: Final = 64  # the buffer of the first SIOCGIFCONF holds so many addresses


class InterfaceAddress(NamedTuple):
    """One address of one interface. `interface`: its name, of which the kernel promises no encoding. `flags`: IFA_F_*
    (rtnetlink(7)), IPv6 only.

    `prefix_length` is None where it was not asked for, which for IPv4 costs an ioctl each.
    """

    interface: bytes
    address: IPv4Address | IPv6Address
    prefix_length: int | None = None
    flags: int = 0


def own_addresses() -> frozenset[IPv4Address | IPv6Address]:
    """All addresses of all interfaces, as they are now. OSError when the kernel does not list those of IPv4."""
    return frozenset(found.address for found in (*ipv4(), *ipv6()))


def ipv4(*, with_prefix: bool = False) -> Iterator[InterfaceAddress]:
    """All IPv4 addresses, aliases (`eth0:1`) under their interface's name; with prefix lengths if asked for. OSError
    when the kernel does not list them.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        for label, address in _configured(sock):
            prefix = _prefix_length(sock, label, address) if with_prefix else None
            yield InterfaceAddress(label.split(b"\0")[0].partition(b":")[0], IPv4Address(address), prefix)


def ipv6(listed: Path = IF_INET6) -> Iterator[InterfaceAddress]:
    """All IPv6 addresses, none when the file `listed` cannot be read (a kernel without IPv6); ValueError for an odd
    line.

    `00000000000000000000000000000001 01 80 10 80 lo` is ::1/128 of `lo`, with the flags 0x80.
    """
    try:
        lines = listed.read_bytes().split(b"\n")  # not splitlines: a name may hold any byte but white space
    except OSError:
        return
    for line in filter(None, lines):
        # Address, index, prefix length, scope, flags, name; numbers are hexadecimal (proc_net(5), if_inet6).
        raw, _, prefix, _, flags, name = line.split(maxsplit=5)
        address = IPv6Address(bytes.fromhex(raw.decode("ascii")))
        yield InterfaceAddress(name, address, int(prefix, 16), int(flags, 16))


def _configured(sock: socket.socket) -> Iterator[tuple[bytes, bytes]]:
    """(label, address) of each ifreq that the kernel fills in."""
    entries = _FIRST_ENTRIES
    while True:
        buffer = array.array("B", bytes(entries * _IFREQ.size))
        place, size = buffer.buffer_info()
        answer = fcntl.ioctl(sock, _SIOCGIFCONF, struct.pack("iP", size, place))
        (used,) = struct.unpack_from("i", answer)
        if used < size:  # a full buffer may have cut the list
            break
        entries *= 2
    for offset in range(0, used, _IFREQ.size):
        label, rest = _IFREQ.unpack_from(buffer, offset)
        yield label, _SOCKADDR_IN.unpack_from(rest)[2]


def _prefix_length(sock: socket.socket, label: bytes, address: bytes) -> int:
    """The prefix length of one address: with the address in the request, the kernel looks for exactly that one. 32 when
    it has gone.
    """
    asked = _IFREQ.pack(label, _SOCKADDR_IN.pack(socket.AF_INET, 0, address))
    with contextlib.suppress(OSError):
        mask = _SOCKADDR_IN.unpack_from(_IFREQ.unpack(fcntl.ioctl(sock, _SIOCGIFNETMASK, asked))[1])[2]
        return int.from_bytes(mask, "big").bit_count()
    return 32
