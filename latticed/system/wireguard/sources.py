"""Facts of the live host from what ip(8) and ss(8) print. Pure; ValueError for what no known version prints."""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from latticed.system.nft_guard.facts import SshSession
from latticed.system.wireguard.facts import Facts, HostInterface

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from latticed.model.addresses import Network
    from latticed.system.wireguard.intent import Interface

ALIAS: Final = "latticed-wireguard"
"""The alias of our interfaces (ip-link(8)): it says that we made them, and goes with them."""
_PORT: Final = re.compile(r":([0-9]{1,5})$")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLink:
    """One interface of the host; `addresses` without link-local ones, which the kernel adds by itself."""

    name: str
    alias: str = ""
    mtu: int = 0
    up: bool = False
    addresses: tuple[Interface, ...] = ()


def printed(batch: bytes) -> list[bytes]:
    """What `ip -j -batch` printed for each of its lines, at least one; ValueError for nothing."""
    found = [line for line in batch.splitlines() if line]
    if not found:
        raise ValueError("ip printed nothing")
    return found


def links(printed: bytes) -> tuple[HostLink, ...]:
    """Of `ip -j -d address show`, sorted by name."""
    found = []
    for one in _listed(printed):
        own = [
            ipaddress.ip_interface((each["local"], int(each["prefixlen"])))
            for each in one.get("addr_info", ())
            if each.get("scope") != "link"
        ]
        found.append(
            HostLink(
                name=one["ifname"],
                alias=one.get("ifalias", ""),
                mtu=int(one.get("mtu", 0)),
                up="UP" in one.get("flags", ()),
                addresses=tuple(own),
            )
        )
    return tuple(sorted(found, key=lambda one: one.name))


def routes(printed: Iterable[bytes]) -> tuple[Network, ...]:
    """Of `ip -j route show table all dev NAME`: what the kernel did not add for an address, of the main table."""
    found = []
    for one in (route for each in printed for route in _listed(each)):
        if one.get("protocol") == "kernel" or one.get("dst") == "default" or one.get("type", "unicast") != "unicast":
            continue
        if one.get("table", "main") != "main":
            continue
        found.append(ipaddress.ip_network(one["dst"]))
    return tuple(sorted(found, key=lambda one: (one.version, one)))


def udp_ports(printed: bytes, ours: Collection[int]) -> tuple[int, ...]:
    """Of `ss -Huln`: the ports that are bound, without `ours`."""
    found = set()
    for line in printed.decode("utf-8", "replace").splitlines():
        columns = line.split()
        # State, Recv-Q, Send-Q, local, peer
        port = _PORT.search(columns[3]) if len(columns) >= 5 else None
        if port is not None:
            found.add(int(port[1]))
    return tuple(sorted(found - set(ours)))


def facts(found: Iterable[HostLink], ours: Collection[str], ports: tuple[int, ...]) -> Facts:
    """What an intent is checked against, but for operators and peers."""
    own = [HostInterface(name=one.name, addresses=one.addresses, ours=one.name in ours) for one in found]
    return Facts(interfaces=tuple(own), udp_ports=ports)


def plain(found: Facts) -> dict[str, Any]:
    """The same as JSON values, for callers of the helper; `behind_peers` are in the `networks` that it has besides."""
    return {
        "interfaces": [
            {"name": one.name, "addresses": [str(each) for each in one.addresses], "ours": one.ours}
            for one in found.interfaces
        ],
        "udp_ports": list(found.udp_ports),
        "sshd_ports": list(found.sshd_ports),
        "sessions": [
            {"peer": str(one.peer), "local": None if one.local is None else str(one.local)} for one in found.sessions
        ],
    }


def from_plain(value: Any, *, source: str = "", now_s: int = 0) -> Facts:
    """The facts that `plain` made JSON of, with the peers of `networks`. `source`: address of the approver, or empty.

    ValueError for what is no address.
    """
    sessions = [
        SshSession(
            peer=ipaddress.ip_address(one["peer"]),
            local=None if one["local"] is None else ipaddress.ip_address(one["local"]),
        )
        for one in value["sessions"]
    ]
    sessions += [SshSession(peer=ipaddress.ip_address(source))] if source else []
    peers = [peer for network in value["networks"] for peer in network["peers"]]
    return Facts(
        interfaces=tuple(
            HostInterface(
                name=one["name"],
                addresses=tuple(ipaddress.ip_interface(each) for each in one["addresses"]),
                ours=one["ours"],
            )
            for one in value["interfaces"]
        ),
        udp_ports=tuple(value["udp_ports"]),
        behind_peers=tuple(ipaddress.ip_network(one) for peer in peers for one in peer["allowed"]),
        sshd_ports=tuple(value["sshd_ports"]),
        sessions=tuple(sessions),
        now_s=now_s,
    )


def _listed(printed: bytes) -> list[dict[str, Any]]:
    # ip prints nothing at all for no routes, in some versions, and an empty object for an interface of another family.
    decoded = json.loads(printed) if printed.strip() else []
    if not isinstance(decoded, list) or not all(isinstance(one, dict) for one in decoded):
        raise ValueError("no listing of ip")
    return [one for one in decoded if one]
