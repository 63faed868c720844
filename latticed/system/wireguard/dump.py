"""What `wg show wg-home dump` prints, as values: the interface on its first line, then a peer a line, in tabs.

private key, public key, port, mark
public key, preshared key, endpoint, allowed addresses, handshake, received, sent, keepalive
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from latticed.model.addresses import Network

MAX_PEERS: Final = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LivePeer:
    """`handshake_at`: seconds since 1970, 0 for never. `rx_bytes`, `tx_bytes`: since the peer was added."""

    public_key: str
    preshared_key: str = field(default="", repr=False)
    endpoint: str = ""
    allowed: tuple[Network, ...] = ()
    handshake_at: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0
    keepalive_s: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """`public_key` is empty while the interface has no key. `peers` are sorted by key."""

    private_key: str = field(default="", repr=False)
    public_key: str = ""
    listen_port: int = 0
    peers: tuple[LivePeer, ...] = ()


def read(printed: bytes) -> Device:
    """The device; ValueError for what no known version prints, without any of it, since it holds the private key."""
    lines = printed.decode("ascii", "replace").splitlines()
    if not lines or len(lines) > MAX_PEERS + 1:
        raise ValueError("no dump of wg")
    try:
        private, public, port, _mark = lines[0].split("\t")
        peers = [_peer(line) for line in lines[1:]]
        return Device(
            private_key=_or_none(private),
            public_key=_or_none(public),
            listen_port=_number(port),
            peers=tuple(sorted(peers, key=lambda one: one.public_key)),
        )
    except ValueError:
        raise ValueError("no dump of wg") from None


def _peer(line: str) -> LivePeer:
    public, preshared, endpoint, allowed, handshake, received, sent, keepalive = line.split("\t")
    networks = [] if allowed == "(none)" else [ipaddress.ip_network(one) for one in allowed.split(",")]
    return LivePeer(
        public_key=public,
        preshared_key=_or_none(preshared),
        endpoint=_or_none(endpoint),
        allowed=tuple(sorted(networks, key=lambda one: (one.version, one))),
        handshake_at=_number(handshake),
        rx_bytes=_number(received),
        tx_bytes=_number(sent),
        keepalive_s=0 if keepalive == "off" else _number(keepalive),
    )


def _or_none(text: str) -> str:
    return "" if text == "(none)" else text


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 20):
        raise ValueError("no number")
    return int(text)
