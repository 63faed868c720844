"""What an intent is checked against besides itself: facts of the live host, as the root helper observed them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latticed.model.addresses import Network
    from latticed.system.nft_guard.facts import SshSession
    from latticed.system.wireguard.intent import Interface


@dataclass(frozen=True, slots=True, kw_only=True)
class HostInterface:
    """`ours`: made by latticed for a tunnel, so that it may be changed and removed."""

    name: str
    addresses: tuple[Interface, ...] = ()
    ours: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """`udp_ports`: those that something else than our tunnels has bound. `behind_peers`: what the peers of our tunnels
    have now. `sshd_ports`, `sessions`: where sshd listens, and who is connected to it, the approver included. `now_s`:
    seconds since 1970.
    """

    interfaces: tuple[HostInterface, ...] = ()
    udp_ports: tuple[int, ...] = ()
    behind_peers: tuple[Network, ...] = ()
    sshd_ports: tuple[int, ...] = ()
    sessions: tuple[SshSession, ...] = ()
    now_s: int = 0
