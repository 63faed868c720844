"""Network interfaces and their addresses, without netlink: a hardened unit may have no AF_NETLINK (netdevice(7))."""

from __future__ import annotations

import array
import contextlib
import fcntl
import ipaddress
import os
import socket
import struct
from typing import TYPE_CHECKING, Any, Final

from latticed.kit import text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_TEXT: Final = 64
MOST: Final = 128
"""Interfaces that are told; a host of containers may have thousands."""

_SIOCGIFCONF: Final = 0x8912
_SIOCGIFNETMASK: Final = 0x891B
_IFREQ: Final = struct.Struct("16s24s" if struct.calcsize("P") == 8 else "16s16s")
_SOCKADDR_IN: Final = struct.Struct("=HH4s")


def interfaces(root: Path, *, hardware: bool) -> list[dict[str, Any]]:
    """Name, addresses (with prefix length), MTU and state of each; `mac` too with `hardware`, else None.

    An IPv6 address that spells out the MAC (RFC 4291, appendix A) is left out without `hardware`. What cannot be had is
    None. Reads /proc and /sys beneath `root`; IPv4 is asked of the kernel.
    """
    places = root / "sys/class/net"
    names = sorted(os.listdir(os.fsencode(places))) if places.is_dir() else []
    found: dict[bytes, list[str]] = {}
    for name, address in (*_ipv4(), *_ipv6(root)):
        found.setdefault(name, []).append(address)
    return [
        {
            "name": text.sanitise(name.decode("utf-8", "backslashreplace"), _TEXT),
            "addresses": sorted(one for one in found.get(name, ()) if hardware or not _tells_mac(one)),
            "mtu": _number(_line(places / os.fsdecode(name) / "mtu")),
            "state": _line(places / os.fsdecode(name) / "operstate"),
            "mac": _line(places / os.fsdecode(name) / "address") if hardware else None,
        }
        for name in (names or sorted(found))[:MOST]
    ]


def _ipv4() -> Iterator[tuple[bytes, str]]:
    """(interface, address/prefix) of all IPv4 addresses, aliases under the name of their interface."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        for label, address in _configured(sock):
            prefix = 32
            with contextlib.suppress(OSError):
                prefix = _prefix(sock, label, address)
            name = label.split(b"\0")[0].partition(b":")[0]
            yield name, f"{socket.inet_ntoa(address)}/{prefix}"


def _configured(sock: socket.socket) -> Iterator[tuple[bytes, bytes]]:
    room = array.array("B", bytes(_IFREQ.size * 1024))
    place, _ = room.buffer_info()
    asked = struct.pack("iP", len(room), place)
    (used,) = struct.unpack_from("i", fcntl.ioctl(sock, _SIOCGIFCONF, asked))
    for offset in range(0, used, _IFREQ.size):
        label, rest = _IFREQ.unpack_from(room, offset)
        yield label, _SOCKADDR_IN.unpack_from(rest)[2]


def _prefix(sock: socket.socket, label: bytes, address: bytes) -> int:
    """The prefix length of one address: with the address in the request, the kernel looks for exactly that one."""
    asked = _IFREQ.pack(label, _SOCKADDR_IN.pack(socket.AF_INET, 0, address))
    mask = _SOCKADDR_IN.unpack_from(_IFREQ.unpack(fcntl.ioctl(sock, _SIOCGIFNETMASK, asked))[1])[2]
    return int.from_bytes(mask, "big").bit_count()


def _ipv6(root: Path) -> Iterator[tuple[bytes, str]]:
    """The same of IPv6 (proc_net(5), if_inet6)."""
    with contextlib.suppress(OSError, ValueError), open(root / "proc/net/if_inet6", "rb") as lines:
        for line in lines:
            raw, _, prefix, _, _, name = line.rstrip(b"\n").split(maxsplit=5)
            yield name, f"{ipaddress.IPv6Address(bytes.fromhex(raw.decode('ascii')))}/{int(prefix, 16)}"


def _tells_mac(address: str) -> bool:
    """Whether the lower half of an IPv6 address is an EUI-64 made from a MAC."""
    parsed = ipaddress.ip_interface(address).ip
    return parsed.version == 6 and parsed.packed[11:13] == b"\xff\xfe"


def _line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None
