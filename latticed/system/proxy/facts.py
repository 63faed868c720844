"""What an intent is checked against besides itself: facts of the live host, as the root helper observed them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundPort:
    """A port that something else than our core has bound. `transport`: tcp or udp. `owner`: its program, for people."""

    transport: str
    port: int
    owner: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PortFacts:
    """`listeners`: as bound now. `ssh_ports`: those of sshd, also while it is not running."""

    listeners: tuple[BoundPort, ...] = ()
    ssh_ports: tuple[int, ...] = ()
