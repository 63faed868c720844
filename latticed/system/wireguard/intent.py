"""What an operator wants of WireGuard: the typed model, as `decode.read` makes it of JSON.

    {"networks": [{
        "name": "wg-home", "topology": "hub", "listen_port": 51820, "endpoint": "vpn.example.org:51820",
        "private_key": "${secret:WG_HOME}", "addresses": ["10.80.0.1/24", "fd80::1/64"], "dns": ["10.80.0.1"],
        "routes": ["10.80.0.0/24", "192.168.1.0/24"], "may_reach": ["server", "members"],
        "members": [
            {"id": "anna-phone", "name": "Anna", "public_key": "…=", "preshared_key": "${secret:WG_PSK#anna-phone}",
             "addresses": ["10.80.0.2", "fd80::2"], "expires_at": 1800000000,
             "may_reach": ["server", {"to": "192.168.1.10", "proto": "tcp", "ports": [443]}]}],
        "held": [{"id": "old-laptop", "addresses": ["10.80.0.3"]}]}]}

A key, an address, a name is parsed or of a small alphabet: no text of an operator gets further than this.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from latticed.system.nft_guard.intent import Proto

if TYPE_CHECKING:
    from ipaddress import IPv4Interface, IPv6Interface

    from latticed.model.addresses import Address, Network
    from latticed.system.nft_guard.intent import Ports

    Interface = IPv4Interface | IPv6Interface
    """An address with the length of its network, as 10.80.0.1/24."""

MAX_NETWORKS: Final = 32
MAX_MEMBERS: Final = 2_000
"""Of all networks together; about as many fit into the 256 KiB of a plan."""
MAX_HELD: Final = 4_096
"""Of all networks together."""
MAX_ADDRESSES: Final = 8
"""Of one network, one member, or one device's DNS."""
MAX_REACH: Final = 64
"""Entries of `may_reach`, and routes, of one network or member."""
MAX_PORT_ENTRIES: Final = 64
MAX_EXPIRY_S: Final = 253_402_300_799
"""The last second of the year 9999, as seconds since 1970."""
MTU: Final = (1_280, 9_000)
"""Lowest and highest: IPv6 needs 1,280 (RFC 8200, section 5)."""
MAX_KEEPALIVE_S: Final = 65_535
KEEPALIVE_S: Final = 25
"""Of devices unless said otherwise: the shortest that NAT has to keep a UDP mapping is 30 s, by experience."""


class Topology(StrEnum):
    """`hub`: members know this host alone, and reach each other through it. `mesh`: each knows all others."""

    HUB = "hub"
    MESH = "mesh"


class Place(StrEnum):
    """Where a member may go, besides networks: `server` is any address of this host, `members` those of its network."""

    SERVER = "server"
    MEMBERS = "members"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """One thing that may be reached; without `ports`, all of them."""

    to: Place | Network
    proto: Proto = Proto.ANY
    ports: tuple[Ports, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """`host` is a name only where devices dial; wg(8) on this host is given addresses alone."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WgMember:
    """One peer. `id` stays, `name` is for people. `addresses` are its own, `subnets` are behind it.

    None for `may_reach`, `dns`, `routes`, `mtu`, `keepalive_s`: as the network has it. The last four are for the
    device's own file, except that this host keeps alive what has an `endpoint`. `preshared_key`: a reference.
    """

    id: str
    public_key: str
    addresses: tuple[Address, ...]
    name: str = ""
    preshared_key: str = ""
    subnets: tuple[Network, ...] = ()
    endpoint: Endpoint | None = None
    enabled: bool = True
    expires_at: int | None = None
    may_reach: tuple[Reach, ...] | None = None
    dns: tuple[Address, ...] | None = None
    routes: tuple[Network, ...] | None = None
    mtu: int | None = None
    keepalive_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Addresses of a member that is no more: nobody else gets them until the operator takes this entry away."""

    id: str
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WgNetwork:
    """One network, and this host's interface `name` in it. `private_key`: a reference, as `WG_HOME` or `WG#home`.

    `public_key`, which may be empty, is compared with that of the secret. `routes`: what devices send through the
    tunnel; empty: the network alone.
    """

    name: str
    topology: Topology
    listen_port: int
    private_key: str
    addresses: tuple[Interface, ...]
    public_key: str = ""
    endpoint: Endpoint | None = None
    dns: tuple[Address, ...] = ()
    routes: tuple[Network, ...] = ()
    mtu: int | None = None
    keepalive_s: int = KEEPALIVE_S
    may_reach: tuple[Reach, ...] = (Reach(to=Place.SERVER), Reach(to=Place.MEMBERS))
    members: tuple[WgMember, ...] = ()
    held: tuple[Held, ...] = ()

    def pools(self) -> tuple[Network, ...]:
        """The networks that its members have addresses of."""
        return tuple(one.network for one in self.addresses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    networks: tuple[WgNetwork, ...] = ()
