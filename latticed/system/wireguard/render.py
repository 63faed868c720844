"""An intent as one text: each interface in the words of wg-quick(8), and the table that enforces `may_reach`.

    [Interface]
    # Name = wg-home
    # PublicKey = …=
    Address = 10.80.0.1/24
    MTU = 1420
    ListenPort = 51820
    PrivateKey = ${secret:WG_HOME}

    [Peer]
    # Id = anna-phone
    # Until = 1800000000
    PublicKey = …=
    AllowedIPs = 10.80.0.2/32

The same intent gives the same bytes, whatever the order of its lists and keys. `applied` reads it again.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from latticed.system.wireguard import reach

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from latticed.model.addresses import Network
    from latticed.system.wireguard.intent import Intent, Interface, WgMember, WgNetwork

MTU: Final = 1_420
"""Unless said otherwise: 1500 less what WireGuard adds over IPv6, 80 bytes."""
TITLE: Final = "# WireGuard interfaces and peers of latticed, and what members may reach\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkPeer:
    """One peer as wg(8) is given it. `until`: when this host drops it by itself, in seconds since 1970; None: never."""

    id: str
    public_key: str
    allowed: tuple[Network, ...]
    preshared_key: str = field(default="", repr=False)
    endpoint: str = ""
    keepalive_s: int = 0
    until: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One interface with its peers. `private_key` and `preshared_key`: values, or references where it is only shown.

    `public_key`, which may be empty: what that of `private_key` has to be.
    """

    name: str
    listen_port: int
    private_key: str = field(repr=False)
    addresses: tuple[Interface, ...]
    public_key: str = ""
    mtu: int = MTU
    peers: tuple[LinkPeer, ...] = ()

    def routes(self) -> tuple[Network, ...]:
        """What lies behind peers and in no network of the interface itself, which the kernel has routes to."""
        own = [one.network for one in self.addresses]
        return tuple(
            network
            for peer in self.peers
            for network in peer.allowed
            if not any(network.version == one.version and network.subnet_of(one) for one in own)  # type: ignore[arg-type]
        )


def render(intent: Intent, secrets: Mapping[str, str]) -> bytes:
    """The text of an intent that passed `check`; ASCII. `secrets`: the value of each reference, or what is shown."""
    return text(links(intent, secrets), reach.text(reach.table(intent))).encode("ascii")


def text(found: Iterable[Link], table: str) -> str:
    """The text of interfaces and a table; also of what is there, to be compared with a rendering."""
    shown = ("".join(f"{line}\n" for line in _lines(link)) for link in found)
    return "\n".join([TITLE, *shown, table])


def links(intent: Intent, secrets: Mapping[str, str]) -> tuple[Link, ...]:
    """The interfaces of an intent, sorted by name, with the members that are enabled, sorted by id."""
    return tuple(_link(tunnel, secrets) for tunnel in sorted(intent.networks, key=lambda one: one.name))


def references(intent: Intent) -> tuple[str, ...]:
    """The secrets that it needs, as `WG_PSK#anna-phone`; those of members that are not enabled too."""
    found = {tunnel.private_key for tunnel in intent.networks}
    found |= {member.preshared_key for tunnel in intent.networks for member in tunnel.members}
    return tuple(sorted(found - {""}))


def _link(tunnel: WgNetwork, secrets: Mapping[str, str]) -> Link:
    members = sorted((one for one in tunnel.members if one.enabled), key=lambda one: one.id)
    return Link(
        name=tunnel.name,
        listen_port=tunnel.listen_port,
        private_key=secrets[tunnel.private_key],
        public_key=tunnel.public_key,
        addresses=tuple(sorted(tunnel.addresses, key=lambda one: (one.version, one))),
        mtu=tunnel.mtu or MTU,
        peers=tuple(_peer(tunnel, member, secrets) for member in members),
    )


def _peer(tunnel: WgNetwork, member: WgMember, secrets: Mapping[str, str]) -> LinkPeer:
    keepalive_s = tunnel.keepalive_s if member.keepalive_s is None else member.keepalive_s
    networks = [ipaddress.ip_network(one) for one in member.addresses]
    return LinkPeer(
        id=member.id,
        public_key=member.public_key,
        preshared_key=secrets[member.preshared_key] if member.preshared_key else "",
        # Not joined: two neighbouring addresses are two entries to wg, and to `wg show`.
        allowed=tuple(sorted({*networks, *member.subnets}, key=lambda one: (one.version, one))),
        endpoint=str(member.endpoint) if member.endpoint else "",
        keepalive_s=keepalive_s if member.endpoint else 0,
        until=member.expires_at,
    )


def _lines(link: Link) -> Iterator[str]:
    yield "[Interface]"
    yield f"# Name = {link.name}"
    if link.public_key:
        yield f"# PublicKey = {link.public_key}"
    yield f"Address = {', '.join(map(str, link.addresses))}"
    yield f"MTU = {link.mtu}"
    yield f"ListenPort = {link.listen_port}"
    yield f"PrivateKey = {link.private_key}"
    for peer in link.peers:
        yield ""
        yield "[Peer]"
        yield f"# Id = {peer.id}"
        if peer.until is not None:
            yield f"# Until = {peer.until}"
        yield f"PublicKey = {peer.public_key}"
        if peer.preshared_key:
            yield f"PresharedKey = {peer.preshared_key}"
        yield f"AllowedIPs = {', '.join(map(str, peer.allowed))}"
        if peer.endpoint:
            yield f"Endpoint = {peer.endpoint}"
        if peer.keepalive_s:
            yield f"PersistentKeepalive = {peer.keepalive_s}"
