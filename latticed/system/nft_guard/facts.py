"""What an intent is checked against besides itself: facts of the live host, as the root helper observed them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from latticed.model.addresses import Address

SSHD: Final = "sshd"
"""The process that listens for connections of ssh."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """`default_route`: the way to the rest of the world leads through it."""

    name: str
    addresses: tuple[Address, ...] = ()
    default_route: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A TCP socket that listens; `address` None for all addresses of both families (`*` in ss(8))."""

    port: int
    address: Address | None = None
    process: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SshSession:
    """Where an operator comes from: SSH_CONNECTION of the approver, or a connection by which one is logged in.

    `local` is this host's end; `interface` the scope of a link-local `peer`, else empty.
    """

    peer: Address
    local: Address | None = None
    interface: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveFacts:
    """`sshd_ports`: of `sshd -T`. `approver`: None when the approval does not come over SSH.

    `sessions`: of everyone who is logged in by sshd, but by loopback: sudo drops SSH_CONNECTION. `foreign_tables`:
    family and name, as `ip nat`. `active_firewalls`: of ufw and firewalld, those that are active.
    """

    interfaces: tuple[Interface, ...] = ()
    listeners: tuple[Listener, ...] = ()
    sshd_ports: tuple[int, ...] = ()
    approver: SshSession | None = None
    sessions: tuple[SshSession, ...] = ()
    foreign_tables: tuple[str, ...] = ()
    active_firewalls: tuple[str, ...] = ()


def bare(address: Address) -> Address:
    """An IPv4 address that a socket of IPv6 sees (::ffff:203.0.113.7) as itself; without scope."""
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or ipaddress.IPv6Address(int(address))
    return address


def plain(facts: LiveFacts) -> dict[str, Any]:
    """The facts as JSON, as network.state has them: addresses as text, `null` for all addresses."""
    return {
        "interfaces": [
            {"name": one.name, "addresses": [str(each) for each in one.addresses], "default_route": one.default_route}
            for one in facts.interfaces
        ],
        "listeners": [
            {"port": one.port, "address": None if one.address is None else str(one.address), "process": one.process}
            for one in facts.listeners
        ],
        "sshd_ports": list(facts.sshd_ports),
        "sessions": [
            {
                "peer": str(one.peer),
                "local": None if one.local is None else str(one.local),
                "interface": one.interface,
            }
            for one in facts.sessions
        ],
        "foreign_tables": list(facts.foreign_tables),
        "active_firewalls": list(facts.active_firewalls),
    }


def from_plain(found: Any, *, source: str = "") -> LiveFacts:
    """The facts in what `plain` made; `source`: address of the approver, or empty. KeyError, TypeError, ValueError."""
    return LiveFacts(
        interfaces=tuple(
            Interface(
                name=one["name"],
                addresses=tuple(ipaddress.ip_address(each) for each in one["addresses"]),
                default_route=one["default_route"],
            )
            for one in found["interfaces"]
        ),
        listeners=tuple(
            Listener(port=one["port"], address=_address(one["address"]), process=one["process"])
            for one in found["listeners"]
        ),
        sshd_ports=tuple(found["sshd_ports"]),
        approver=_from(source) if source else None,
        sessions=tuple(
            SshSession(peer=ipaddress.ip_address(one["peer"]), local=_address(one["local"]), interface=one["interface"])
            for one in found["sessions"]
        ),
        foreign_tables=tuple(found["foreign_tables"]),
        active_firewalls=tuple(found["active_firewalls"]),
    )


def _from(source: str) -> SshSession:
    """Of an address, and its interface where it has one (`fe80::1%eth0`)."""
    peer = ipaddress.ip_address(source)
    return SshSession(peer=type(peer)(int(peer)), interface=getattr(peer, "scope_id", None) or "")


def _address(text: str | None) -> Address | None:
    return None if text is None else ipaddress.ip_address(text)
