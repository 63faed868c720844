"""What an intent is checked against besides itself: facts of the live host, as the root helper observed them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latticed.system.wireguard.intent import Interface


@dataclass(frozen=True, slots=True, kw_only=True)
class HostInterface:
    """`ours`: made by latticed for a tunnel, so that it may be changed and removed."""

    name: str
    addresses: tuple[Interface, ...] = ()
    ours: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """`udp_ports`: those that something else than our tunnels has bound."""

    interfaces: tuple[HostInterface, ...] = ()
    udp_ports: tuple[int, ...] = ()
