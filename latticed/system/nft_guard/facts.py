"""What an intent is checked against besides itself: facts of the live host, as the root helper observed them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latticed.model.addresses import Address


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
    """Where an operator comes from: SSH_CONNECTION of the approver, or an established connection to sshd.

    `local` is this host's end; `interface` the scope of a link-local `peer`, else empty.
    """

    peer: Address
    local: Address | None = None
    interface: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveFacts:
    """`sshd_ports`: of `sshd -T`. `approver`: None when the approval does not come over SSH.

    `sessions`: every established connection to sshd: sudo drops SSH_CONNECTION. `foreign_tables`: family and name, as
    `ip nat`. `active_firewalls`: of ufw and firewalld, those that are active.
    """

    interfaces: tuple[Interface, ...] = ()
    listeners: tuple[Listener, ...] = ()
    sshd_ports: tuple[int, ...] = ()
    approver: SshSession | None = None
    sessions: tuple[SshSession, ...] = ()
    foreign_tables: tuple[str, ...] = ()
    active_firewalls: tuple[str, ...] = ()
