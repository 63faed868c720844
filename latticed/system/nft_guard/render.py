"""An intent as one file for `nft -f`, which the kernel takes whole or not at all.

    table inet latticed_guard
    delete table inet latticed_guard
    table inet latticed_guard {
    ...
    }

The first line makes the table when there is none, so that the second cannot fail: nft 1.0.6 has no `destroy table`. The
same intent gives the same bytes, whatever the order of keys in its document.
"""

from __future__ import annotations

import datetime as dt
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from latticed.system.nft_guard import compile as compiler
from latticed.system.nft_guard import table as tables

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from latticed.model.addresses import Network
    from latticed.system.nft_guard.bans import LiveBan
    from latticed.system.nft_guard.intent import Ban, Intent
    from latticed.system.nft_guard.table import Chain, Line, Table

_QUALIFIED: Final = f"{tables.FAMILY} {tables.NAME}"
REMOVED: Final = f"table {_QUALIFIED}\ndelete table {_QUALIFIED}\n"
_NO_SETS: Final[Mapping[tuple[Network, ...], str]] = MappingProxyType({})
_L4PROTO: Final = {"tcp": "tcp", "udp": "udp", "icmp": "icmp", "icmpv6": "ipv6-icmp"}


def render(intent: Intent, *, bans: Sequence[LiveBan] = ()) -> bytes:
    """The nft file of an intent that passed `check`; ASCII.

    Without `bans` it is what an operator reviews: bans stand in it as comments with their end. With them
    (`bans.carried`) it is what is applied: replacing a table empties its sets, so each is put in again with the time
    that remains to it.
    """
    table = compiler.table(intent)
    if table is None:
        return REMOVED.encode("ascii")
    text = "".join(line + "\n" for line in lines(table, intent.bans, bans, tables.joined(intent.never)))
    return text.encode("ascii")


def lines(
    table: Table, bans: Iterable[Ban] = (), elements: Sequence[LiveBan] = (), never: Iterable[Network] = ()
) -> Iterator[str]:
    """The lines of the file for a table, without their ends."""
    yield from REMOVED.splitlines()
    for network in never:
        yield f"# never {network}"
    for ban in sorted(bans, key=lambda ban: (ban.network.version, ban.network)):
        yield f"# ban {_banned(ban.network)} until {_utc(ban.expires_at)}"
    yield f"table {_QUALIFIED} {{"
    for name, rate in table.limits:
        yield f"\tlimit {name} {{"
        yield f"\t\trate {rate.packets}/{rate.per} burst {rate.burst} packets"
        yield "\t}"
    for family, name in sorted(tables.BANS.items()):
        yield f"\tset {name} {{"
        yield f"\t\ttype ipv{family}_addr"
        yield "\t\tflags timeout"
        of_family = sorted(one for one in elements if one.network.version == family)
        if of_family:
            listed = ", ".join(f"{one.network.network_address} timeout {one.remaining_s}s" for one in of_family)
            yield f"\t\telements = {{ {listed} }}"
        yield "\t}"
    for chain in table.chains:
        yield from chain_lines(chain)
    yield "}"


def chain_lines(chain: Chain, sets: Mapping[tuple[Network, ...], str] = _NO_SETS) -> Iterator[str]:
    """The lines of one chain, without their ends. `sets`: by all sources of a line, the set that has them."""
    yield f"\tchain {chain.name} {{"
    if chain.policy:
        yield f"\t\ttype filter hook {chain.name} priority filter; policy {chain.policy};"
    for line in chain.lines:
        yield "\t\t" + " ".join(_words(line, sets))
    yield "\t}"


def _words(line: Line, sets: Mapping[tuple[Network, ...], str]) -> Iterator[str]:
    """`tcp dport 22 accept`, in the order in which nft lists it."""
    yield from _matches(line, sets)
    if line.limit:
        yield f'limit name "{line.limit}"'
    if line.log:
        yield f'limit rate {tables.LOG_PACKETS}/second burst {tables.LOG_BURST} packets log prefix "{line.log}"'
    if line.counter:
        yield "counter"
    if line.verdict:
        yield line.verdict if line.verdict in {"accept", "drop", "reject"} else f"jump {line.verdict}"
    if line.comment:
        yield f'comment "{line.comment}"'


def _matches(line: Line, sets: Mapping[tuple[Network, ...], str]) -> Iterator[str]:
    if line.states:
        yield f"ct state {','.join(line.states)}"
    if line.reply:
        yield "ct direction reply"
    if line.inbound:
        # By name: `iif` would be the index of an interface that exists now, and fail for one that does not.
        yield f"iifname {_one_of([_quoted(name) for name in line.inbound])}"
    if line.outbound:
        yield f"oifname {_one_of([_quoted(name) for name in line.outbound])}"
    yield from _addresses(line, sets)
    if line.hop_limit:
        yield f"ip6 hoplimit {line.hop_limit}"
    if line.icmp:
        yield f"{line.proto} type {_one_of(line.icmp)}"
    if line.sport:
        yield f"{line.proto} sport {_one_of([str(one) for one in line.sport])}"
    if line.dport:
        yield f"{line.proto} dport {_one_of([str(one) for one in line.dport])}"
    if line.proto and not (line.icmp or line.sport or line.dport):
        yield f"meta l4proto {_L4PROTO[line.proto]}"


def _addresses(line: Line, sets: Mapping[tuple[Network, ...], str]) -> Iterator[str]:
    header = "ip" if line.family == 4 else "ip6"
    # Whatever else tells the family; nft would leave this out of its listings then.
    told = line.source or line.destination or line.banned or line.hop_limit or line.proto in {"icmp", "icmpv6"}
    if line.family and not told:
        yield f"meta nfproto ipv{line.family}"
    if line.source:
        named = sets.get(line.source)
        yield f"{header} saddr {f'@{named}' if named else _one_of([written(one) for one in line.source])}"
    if line.destination:
        yield f"{header} daddr {_one_of([written(one) for one in line.destination])}"
    if line.banned:
        masked = "" if line.family == 4 else f" & {tables.BANS_MASK}"
        yield f"{header} saddr{masked} @{tables.BANS[line.family]}"


def _one_of(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{{ {', '.join(words)} }}"


def _quoted(name: str) -> str:
    return f'"{name}"'


def written(found: Network) -> str:
    """As nft writes it: one address without its length."""
    return str(found.network_address) if found.prefixlen == found.max_prefixlen else str(found)


def _banned(network: Network) -> str:
    return str(network.network_address) if network.version == 4 else str(network)


def _utc(seconds: int) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
