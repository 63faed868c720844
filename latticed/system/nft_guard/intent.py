"""What an operator wants of the firewall: the typed model, as `decode.read` makes it of JSON.

    {"zones": [{"name": "wan", "interfaces": ["eth0"], "forward": "guard"},
               {"name": "lan", "interfaces": ["eth1"], "cidrs": ["10.0.0.0/24"]}],
     "groups": [{"name": "web", "rules": [{"proto": "tcp", "ports": [80, "8000-8010"], "comment": "site"}]},
                {"name": "ssh", "rules": [{"proto": "tcp", "ports": [22], "remote": ["lan", "203.0.113.0/24"],
                                           "rate": {"packets": 10, "per": "minute", "burst": 5}}]}],
     "bindings": {"groups": ["ssh", "web"], "trusted_zones": ["lan"]},
     "bans": [{"address": "198.51.100.7", "expires_at": 1800000000}],
     "never": ["203.0.113.0/24"]}

All addresses are parsed, so no text of an operator but names and comments, both of small alphabets, gets further.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from latticed.model.addresses import Network

MAX_ZONES: Final = 64
MAX_INTERFACES: Final = 32
"""Of one zone."""
MAX_NETWORKS: Final = 256
"""Of one zone, one rule, or the `never` list."""
MAX_GROUPS: Final = 128
MAX_RULES: Final = 256
"""Of one group, or of the overrides."""
MAX_BOUND_RULES: Final = 1_024
"""Of all groups together and the overrides."""
MAX_PORTS: Final = 1_024
"""Port numbers of one group: `"8000-8009"` counts as ten."""
MAX_PORT_ENTRIES: Final = 1_024
"""Entries of the list `ports` of one rule."""
MAX_BANS: Final = 4_096
MAX_EXPIRY_S: Final = 253_402_300_799
"""The last second of the year 9999, as seconds since 1970."""
MAX_RATE: Final = 100_000
"""Packets, and burst; nft itself takes 32 bits."""


class Direction(StrEnum):
    """Which way the packets of a rule go; `forward` is through this host."""

    IN = "in"
    OUT = "out"
    FORWARD = "forward"


class Action(StrEnum):
    ACCEPT = "accept"
    DROP = "drop"
    REJECT = "reject"


class Proto(StrEnum):
    """A protocol by its name in an intent; `any` matches all, and takes no ports."""

    ANY = "any"
    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"
    ICMPV6 = "icmpv6"


class Per(StrEnum):
    SECOND = "second"
    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"


class Forward(StrEnum):
    """What becomes of traffic that comes from a zone and goes through this host."""

    LEAVE = "leave"
    """nft guard has no opinion; other tables may."""
    GUARD = "guard"
    """Dropped unless a trusted zone or a rule with `dir` forward accepts it: published ports of containers too."""


@dataclass(frozen=True, slots=True, order=True)
class Ports:
    """Ports `low` to `high`, both included; a single port has them equal. 1 to 65535."""

    low: int
    high: int

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """At most `packets` new connections a `per`, after a `burst`; all remotes of a rule share it."""

    packets: int
    per: Per
    burst: int

    def lower_or_equal(self, other: Rate) -> bool:
        """Whether it never lets more pass than `other`."""
        seconds = {Per.SECOND: 1, Per.MINUTE: 60, Per.HOUR: 3_600, Per.DAY: 86_400}
        return self.packets * seconds[other.per] <= other.packets * seconds[self.per] and self.burst <= other.burst


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`remotes` and `remote_zones` are the other end (the source, of `out` the destination); both empty: any."""

    direction: Direction = Direction.IN
    action: Action = Action.ACCEPT
    proto: Proto = Proto.ANY
    ports: tuple[Ports, ...] = ()
    remotes: tuple[Network, ...] = ()
    remote_zones: tuple[str, ...] = ()
    rate: Rate | None = None
    log: bool = False
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """Traffic that uses one of `interfaces` (empty: any) and whose other end is in one of `cidrs` (empty: any)."""

    name: str
    interfaces: tuple[str, ...] = ()
    cidrs: tuple[Network, ...] = ()
    forward: Forward = Forward.LEAVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    name: str
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bindings:
    """What holds for this host: groups by name, in order; overrides come before them.

    All that comes from a trusted zone is accepted. Not `managed`: the host has no table of nft guard.
    """

    groups: tuple[str, ...] = ()
    overrides: tuple[Rule, ...] = ()
    trusted_zones: tuple[str, ...] = ()
    managed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Ban:
    """All traffic from `network` is dropped until `expires_at` (seconds since 1970).

    One IPv4 address, or an IPv6 /64: who has one address of a /64 has all of them (RFC 6177).
    """

    network: Network
    expires_at: int
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """`never`: networks that no ban may hit."""

    zones: tuple[Zone, ...] = ()
    groups: tuple[Group, ...] = ()
    bindings: Bindings = Bindings()
    bans: tuple[Ban, ...] = ()
    never: tuple[Network, ...] = ()
