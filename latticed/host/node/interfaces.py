"""Network interfaces as node.facts and network.state show them: names, addresses, MTU, state; MACs for admins."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Final

from latticed.kit import interfaces as kernel
from latticed.kit import text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Address, IPv6Address
    from pathlib import Path

    from latticed.kit.interfaces import InterfaceAddress

_MAX_NAME_CHARACTERS: Final = 64
MAX_INTERFACES: Final = 128
"""The most interfaces that are listed; a host of containers may have thousands."""


def interfaces(root: Path, *, hardware: bool) -> list[dict[str, Any]]:
    """Name, addresses (with prefix length), MTU and state of each, by name; `mac` too with `hardware`, else None.

    An IPv6 address that spells out the MAC (RFC 4291, appendix A) is left out without `hardware`. What cannot be read
    is None. At most MAX_INTERFACES. Reads /proc and /sys beneath `root`; IPv4 addresses are always those of this host.
    Blocks.
    """
    directory = root / "sys/class/net"
    # As bytes: the kernel promises no encoding of names. Without /sys (some containers) only interfaces with addresses
    # are listed.
    names = sorted(os.listdir(os.fsencode(directory))) if directory.is_dir() else []
    found: dict[bytes, list[str]] = {}
    for one in _addresses(root):
        shown = found.setdefault(one.interface, [])
        if hardware or not _reveals_mac(one.address):
            shown.append(f"{one.address}/{one.prefix_length}")
    return [
        {
            "name": text.sanitise(name.decode("utf-8", "backslashreplace"), _MAX_NAME_CHARACTERS),
            "addresses": sorted(found.get(name, ())),
            "mtu": _number(_line(directory / os.fsdecode(name) / "mtu")),
            "state": _line(directory / os.fsdecode(name) / "operstate"),
            "mac": _line(directory / os.fsdecode(name) / "address") if hardware else None,
        }
        for name in (names or sorted(found))[:MAX_INTERFACES]
    ]


def _addresses(root: Path) -> Iterator[InterfaceAddress]:
    """All addresses of all interfaces that can be read. A container may emulate if_inet6: at a malformed line the rest
    of it is skipped.
    """
    # Each family by itself: that one cannot be read must not hide the other.
    with contextlib.suppress(OSError):
        yield from kernel.ipv4(with_prefix=True)
    with contextlib.suppress(ValueError):
        yield from kernel.ipv6(root / "proc/net/if_inet6")


def _reveals_mac(address: IPv4Address | IPv6Address) -> bool:
    """Whether the lower half of an IPv6 address was made from a MAC: a modified EUI-64 has ff:fe in the middle."""
    return address.version == 6 and address.packed[11:13] == b"\xff\xfe"


def _line(path: Path) -> str | None:
    """The text of a file that has one line, stripped; None if it is empty or cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _number(line: str | None) -> int | None:
    """The line as a number; None if it is absent or not all digits."""
    return int(line) if line is not None and line.isdigit() else None
