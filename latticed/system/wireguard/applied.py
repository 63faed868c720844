"""A rendering as what programs are given, and what they show as the same form: pure, for the root helper.

The helper keeps renderings, so that a boot needs neither daemon nor plan; everything it does comes out of one.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from latticed.system.wireguard import reach
from latticed.system.wireguard.render import Link, LinkPeer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from latticed.model.addresses import Network
    from latticed.system.wireguard.dump import Device, LivePeer
    from latticed.system.wireguard.intent import Interface
    from latticed.system.wireguard.sources import HostLink

UNKNOWN: Final = "unknown"
"""The id of a peer that latticed did not add."""
SHOWN_SECRET: Final = "(a secret)"  # noqa: S105 - stands for one
NO_KEY: Final = "A" * 43 + "="
PEERS_AT_ONCE: Final = 500
"""Peers that `wg` is given as arguments."""
_LINE: Final = re.compile(r"(# )?([A-Z][A-Za-z]+) = (.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a rendering asks for: interfaces, and the table as a file for nft."""

    links: tuple[Link, ...]
    table: str


def read(rendering: bytes) -> Wanted:
    """What `render.render` wrote; ValueError for anything else."""
    text = rendering.decode("ascii")
    start = text.find(reach.REMOVED)
    if start < 0:
        raise ValueError("no rendering of WireGuard")
    links: list[Link] = []
    for block in text[:start].split("[Interface]\n")[1:]:
        head, *peers = block.split("[Peer]\n")
        fields = _fields(head)
        links.append(
            Link(
                name=fields["Name"],
                listen_port=int(fields["ListenPort"]),
                private_key=fields["PrivateKey"],
                addresses=tuple(ipaddress.ip_interface(one) for one in fields["Address"].split(", ")),
                mtu=int(fields["MTU"]),
                public_key=fields.get("PublicKey", ""),
                peers=tuple(_peer(_fields(peer)) for peer in peers),
            )
        )
    return Wanted(links=tuple(links), table=text[start:])


def due(link: Link, now_s: int) -> Link:
    """The interface without the peers whose time is over: a boot brings none of them back, whoever plans what."""
    return replace(link, peers=tuple(one for one in link.peers if one.until is None or one.until > now_s))


def setconf(link: Link) -> bytes:
    """What `wg setconf` and `wg syncconf` are given on a file."""
    lines = ["[Interface]", f"PrivateKey = {link.private_key}", f"ListenPort = {link.listen_port}", ""]
    return "".join(f"{line}\n" for line in lines).encode("ascii") + addconf(link.peers)


def addconf(peers: Iterable[LinkPeer]) -> bytes:
    """What `wg addconf` is given on a file: peers that come, or that are to be as it says."""
    lines = []
    for peer in peers:
        lines += ["[Peer]", f"PublicKey = {peer.public_key}"]
        # Like the keepalive below: `syncconf` leaves a peer what is not said. Zeros are no key, 0 is no keepalive.
        lines.append(f"PresharedKey = {peer.preshared_key or NO_KEY}")
        lines.append(f"AllowedIPs = {', '.join(map(str, peer.allowed))}")
        if peer.endpoint:
            lines.append(f"Endpoint = {peer.endpoint}")
        lines += [f"PersistentKeepalive = {peer.keepalive_s}", ""]
    return "".join(f"{line}\n" for line in lines).encode("ascii")


@dataclass(frozen=True, slots=True)
class PeerMoves:
    """What an interface needs. `gone`: public keys of peers to be removed; `due`: peers that are not as they should."""

    gone: tuple[str, ...]
    due: tuple[LinkPeer, ...]


def moves(device: Device, link: Link) -> PeerMoves | None:
    """What has to be done to the peers; None where the interface itself differs."""
    if (device.private_key, device.listen_port) != (_clamped(link.private_key), link.listen_port):
        return None
    there = {one.public_key: one for one in device.peers}
    wanted = {one.public_key for one in link.peers}
    due = [one for one in link.peers if one.public_key not in there or not _is(there[one.public_key], one)]
    return PeerMoves(gone=tuple(one for one in there if one not in wanted), due=tuple(due))


def taken(device: Device, link: Link) -> list[list[str]]:
    """What `wg set` is given after the name, for peers that go and for networks that peers who stay have no more.

    More than once for many: the arguments of a program have a limit.
    """
    wanted = {one.public_key: set(one.allowed) for one in link.peers}
    found = []
    for one in device.peers:
        if one.public_key not in wanted:
            found.append(["peer", one.public_key, "remove"])
        elif not wanted[one.public_key].issuperset(one.allowed):
            kept = [str(network) for network in one.allowed if network in wanted[one.public_key]]
            found.append(["peer", one.public_key, "allowed-ips", ",".join(kept)])
    return [
        [word for words in found[start : start + PEERS_AT_ONCE] for word in words]
        for start in range(0, len(found), PEERS_AT_ONCE)
    ]


def _is(live: LivePeer, wanted: LinkPeer) -> bool:
    """Whether a peer is as it should be. Where it came from last counts only against an endpoint that was named."""
    return (
        (live.preshared_key, live.keepalive_s) == (wanted.preshared_key, wanted.keepalive_s)
        and set(live.allowed) == set(wanted.allowed)
        and wanted.endpoint in {"", live.endpoint}
    )


def live(
    link: HostLink, device: Device, known: Mapping[Network, tuple[str, int | None]], *, secrets: bool = False
) -> Link:
    """An interface that is there, in the form of a rendering. Without `secrets` none of their values is in it.

    `known`: by address, what wg does not know: id and end (`reach.known`).
    """
    peers = []
    for one in device.peers:
        name, until = next((known[network] for network in one.allowed if network in known), (UNKNOWN, None))
        peers.append(
            LinkPeer(
                id=name,
                public_key=one.public_key,
                preshared_key=one.preshared_key if secrets or not one.preshared_key else SHOWN_SECRET,
                allowed=one.allowed,
                # Where a member dials, this changes by itself; what this host dials it keeps alive.
                endpoint=one.endpoint if one.keepalive_s or secrets else "",
                keepalive_s=one.keepalive_s,
                until=until,
            )
        )
    return Link(
        name=link.name,
        listen_port=device.listen_port,
        private_key=device.private_key if secrets else SHOWN_SECRET,
        addresses=tuple(sorted(link.addresses, key=lambda one: (one.version, one))),
        mtu=link.mtu,
        peers=tuple(sorted(peers, key=lambda one: (one.id, one.public_key))),
    )


def fact(
    name: str,
    *,
    public_key: str,
    port: int,
    addresses: Iterable[Interface],
    mtu: int,
    routes: Iterable[Network],
    peers: Iterable[Any],
) -> dict[str, Any]:
    """One interface as part of a basis. `peers`: public key, preshared key, allowed networks, keepalive in seconds.

    Without endpoints and counters, which change by themselves.
    """
    listed = [
        [key, _digest(preshared), sorted(map(str, allowed)), keepalive_s]
        for key, preshared, allowed, keepalive_s in peers
    ]
    return {
        "name": name,
        "public_key": public_key,
        "port": port,
        "addresses": sorted(map(str, addresses)),
        "mtu": mtu,
        "routes": sorted(set(map(str, routes))),
        "peers": sorted(listed),
    }


def basis(facts: Iterable[dict[str, Any]], table: str) -> bytes:
    """What a review depends on, and drift is seen by: interfaces of ours, and the table."""
    ordered = sorted(facts, key=lambda one: str(one["name"]))
    return json.dumps({"links": ordered, "table": table}, sort_keys=True).encode("ascii")


def holds(rendering: bytes, found: bytes, *, public: Callable[[str], str], now_s: int) -> bool:
    """Whether a basis is what the rendering makes at `now_s`. `public`: the public key of a private one.

    A peer whose time is over may be there still, until it is taken away, or be gone.
    """
    wanted = read(rendering)
    over = {
        one.public_key for link in wanted.links for one in link.peers if one.until is not None and one.until <= now_s
    }
    facts = [
        fact(
            link.name,
            public_key=public(link.private_key),
            port=link.listen_port,
            addresses=link.addresses,
            mtu=link.mtu,
            routes=link.routes(),
            peers=[(one.public_key, one.preshared_key, one.allowed, one.keepalive_s) for one in link.peers],
        )
        for link in wanted.links
    ]
    seen = json.loads(found)
    for one in (*facts, *seen["links"]):
        one["peers"] = [peer for peer in one["peers"] if peer[0] not in over]
    return bool(basis(facts, wanted.table) == basis(seen["links"], seen["table"]))


def _peer(fields: dict[str, str]) -> LinkPeer:
    return LinkPeer(
        id=fields["Id"],
        public_key=fields["PublicKey"],
        preshared_key=fields.get("PresharedKey", ""),
        allowed=tuple(ipaddress.ip_network(one) for one in fields["AllowedIPs"].split(", ")),
        endpoint=fields.get("Endpoint", ""),
        keepalive_s=int(fields.get("PersistentKeepalive", "0")),
        until=int(fields["Until"]) if "Until" in fields else None,
    )


def _fields(block: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in block.splitlines():
        if match := _LINE.fullmatch(line):
            found[match[2]] = match[3]
    return found


def _clamped(private: str) -> str:
    """A private key as WireGuard shows it: one that is derived of a secret may have other bits set (RFC 7748, 5)."""
    key = bytearray(base64.b64decode(private))
    key[0] &= 248
    key[31] = key[31] & 127 | 64
    return base64.b64encode(key).decode("ascii")


def _digest(preshared: str) -> str:
    return hashlib.sha256(preshared.encode("ascii")).hexdigest()[:16] if preshared else ""
