"""The addresses of an interface that can be published, without netlink (netdevice(7), proc_net(5))."""

from __future__ import annotations

import array
import fcntl
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latticed.host.ddns import spec as specs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from latticed.model.addresses import Address

_SIOCGIFCONF: Final = 0x8912
_IFREQ: Final = struct.Struct("16s24s" if struct.calcsize("P") == 8 else "16s16s")
_ADDRESS: Final = slice(4, 8)  # of a sockaddr_in: family and port come before it
_IF_INET6: Final = Path("/proc/thread-self/net/if_inet6")
_ROOM: Final = 1_024
_UNSUITABLE: Final = 0x01 | 0x08 | 0x20 | 0x40
"""IFA_F_TEMPORARY, _DADFAILED, _DEPRECATED, _TENTATIVE (rtnetlink(7)): soon gone, or not there yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What an interface was seen with, and since when (monotonic seconds)."""

    address: str
    since_s: float


def addresses_of(interface: str) -> tuple[Address, ...]:
    """The addresses of one interface that stay, as they are now; none when it has none or there is no such one."""
    return tuple(address for name, address in (*_v4(), *_v6()) if name == interface)


def chosen(found: Iterable[Address], kind: specs.Type, *, published: str, private: bool) -> str:
    """The one to publish, or nothing: what is published already while it is there, else public before private."""
    fit = [one for one in found if one.version == specs.version(kind) and specs.may_publish(one, private=private)]
    if any(str(one) == published for one in fit):
        return published
    fit.sort(key=lambda one: (not specs.may_publish(one, private=False), int(one)))
    return str(fit[0]) if fit else ""


def settled(before: Seen | None, found: str, *, published: str, now_s: float, settle_s: float) -> tuple[Seen, str]:
    """(what was seen, the address that counts): another address counts once it has stayed for `settle_s`.

    The first one ever counts at once.
    """
    seen = before if before is not None and before.address == found else Seen(address=found, since_s=now_s)
    counts = not published or found == published or now_s - seen.since_s >= settle_s
    return seen, found if counts else published


def _v4() -> list[tuple[str, Address]]:
    room = array.array("B", bytes(_ROOM * _IFREQ.size))
    place, size = room.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock.fileno(), _SIOCGIFCONF, struct.pack("iP", size, place))
    (used,) = struct.unpack_from("i", answer)
    found: list[tuple[str, Address]] = []
    for at in range(0, used, _IFREQ.size):
        label, rest = _IFREQ.unpack_from(room, at)
        name = label.split(b"\0")[0].decode("utf-8", "replace").partition(":")[0]  # an alias is its interface's
        found.append((name, IPv4Address(rest[_ADDRESS])))
    return found


def _v6() -> list[tuple[str, Address]]:
    try:
        lines = _IF_INET6.read_bytes().decode("utf-8", "replace").split("\n")  # a name is bytes
    except OSError:  # a kernel without IPv6
        return []
    return parsed(lines)


def parsed(lines: Iterable[str]) -> list[tuple[str, Address]]:
    """(interface, address) of the lines of if_inet6 whose address is there to stay."""
    found: list[tuple[str, Address]] = []
    for line in filter(None, lines):
        raw, _, _, _, flags, name = line.split(maxsplit=5)
        if not int(flags, 16) & _UNSUITABLE:
            found.append((name, IPv6Address(bytes.fromhex(raw))))
    return found
