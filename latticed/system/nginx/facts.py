"""What an intent is checked and rendered against besides itself: where nginx lives on this host, and what is there."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.model.addresses import Address
    from latticed.system.nginx.intent import Own


@dataclass(frozen=True, slots=True)
class BoundSocket:
    """A TCP socket that something has bound; `0.0.0.0` and `::` for all addresses."""

    address: Address
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NginxPlace:
    """Where our nginx has its files, and as whom its workers run.

    `static`: where the daemon keeps what plugins publish. `own`: address and port of those of latticed's two HTTP
    listeners that there are. `certificates` and `files`: directories that certificates and keys, and served files, may
    lie below.
    """

    directory: str
    user: str
    certificates: tuple[str, ...]
    files: tuple[str, ...]
    static: str
    own: Mapping[Own, tuple[str, int]] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def published(self) -> str:
        """The directory of copies of plugins' files (`file_sets`)."""
        return f"{self.directory}/published"

    @property
    def listeners(self) -> tuple[BoundSocket, ...]:
        """Those of `own`."""
        return tuple(BoundSocket(ipaddress.ip_address(host), port) for host, port in self.own.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class NginxFacts:
    """`addresses`: this host's. `taken`: listeners of others than our nginx. `ours`: those of latticed, all of them."""

    addresses: tuple[Address, ...] = ()
    taken: tuple[BoundSocket, ...] = ()
    ours: tuple[BoundSocket, ...] = ()


def from_plain(plain: Mapping[str, Any]) -> NginxFacts:
    """NginxFacts of what the kind `nginx` observes: `addresses`, `listeners` (address, port, whose)."""
    found = [
        (BoundSocket(ipaddress.ip_address(one["address"]), one["port"]), one["whose"]) for one in plain["listeners"]
    ]
    return NginxFacts(
        addresses=tuple(ipaddress.ip_address(one) for one in plain["addresses"]),
        taken=tuple(one for one, whose in found if whose != "nginx"),
        ours=tuple(one for one, whose in found if whose == "latticed"),
    )
