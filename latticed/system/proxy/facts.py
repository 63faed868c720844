"""What an intent is checked against besides itself: facts of the live host, as the root helper observed them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A port that something else than our core has bound. `transport`: tcp or udp. `owner`: its program, for people."""

    transport: str
    port: int
    owner: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """`listeners`: as bound now. `ssh_ports`: those of sshd, also while it is not running."""

    listeners: tuple[Listener, ...] = ()
    ssh_ports: tuple[int, ...] = ()
