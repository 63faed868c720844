"""What nft lists, as values: the table of `nft -j list table`, its bans, and a hash of `nft -s list table`.

Only the lines that `render` writes are understood; all else is `Foreign`, and so is drift.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from latticed.system.nft_guard import table as tables
from latticed.system.nft_guard.bans import LiveBan
from latticed.system.nft_guard.intent import Per, Ports, Rate
from latticed.system.nft_guard.table import Chain, Line, Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from latticed.model.addresses import Network

_STATES: Final = frozenset({"established", "related", "invalid"})
_ELEMENTS: Final = re.compile(r"\s*elements = \{")
_REJECTS: Final[dict[str, dict[str, Any]]] = {"icmp": {"family": 4}, "icmpv6": {"family": 6}, "icmpx": {}}
"""nft lists `reject` by the family that the line asks for, and then leaves out `meta nfproto`."""
_SETS: Final = {name: f"ipv{family}_addr" for family, name in tables.BANS.items()}


class Foreign(ValueError):
    """Something in the table that nft guard does not write; the text names the kind of thing, never its content."""


def table(listing: Any, *, sets: Mapping[str, str] = _SETS) -> Table:
    """The table in the decoded output of `nft -j list table inet latticed_guard`; Foreign for what is not ours.

    `sets`: name and type of each set that it has to have.

    Its chains are in the order of their names; `canonical` gives a compiled table that order, to be compared.
    """
    try:
        return _table(listing, sets)
    except Foreign:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Foreign("a form that nft guard does not write") from error


def _table(listing: Any, wanted: Mapping[str, str]) -> Table:
    limits: dict[str, Rate] = {}
    sets: dict[str, str] = {}
    chains: dict[str, Chain] = {}
    lines: dict[str, list[Line]] = {}
    for kind, entry in _entries(listing):
        match kind:
            case "metainfo":
                pass
            case "table":
                # A dormant one has no effect at all.
                if flags(entry):
                    raise Foreign("a flag of the table")
            case "limit":
                limits[entry["name"]] = _rate(entry)
            case "set":
                if flags(entry) != ["timeout"]:
                    raise Foreign("a set")
                sets[entry["name"]] = entry["type"]
            case "chain":
                chains[entry["name"]] = _chain(entry)
                lines[entry["name"]] = []
            case "rule":
                lines[entry["chain"]].append(_line(entry))
            case _:
                raise Foreign(f"an object of kind {kind!r}"[:60])
    if sets != wanted:
        raise Foreign("other sets than those of the bans")
    found = [replace(chain, lines=tuple(lines[name])) for name, chain in chains.items()]
    return canonical(Table(chains=tuple(found), limits=tuple(sorted(limits.items()))))


def canonical(found: Table) -> Table:
    """The same table with its chains in the order of their names, in which nft need not list them."""
    return replace(found, chains=tuple(sorted(found.chains, key=lambda chain: chain.name)))


def flags(entry: dict[str, Any]) -> list[Any]:
    """The flags of a set or table. Newer versions of nft list a single one as itself, not as a list."""
    found = entry.get("flags", [])
    return found if isinstance(found, list) else [found]


def bans(listing: Any) -> tuple[LiveBan, ...]:
    """The banned networks in the same output, sorted, with the seconds that remain to each."""
    found = []
    for kind, entry in _entries(listing):
        if kind != "set" or entry.get("name") not in _SETS:
            continue
        for element in entry.get("elem", []):
            inner = element.get("elem") if isinstance(element, dict) else None
            # An element that was added by hand without a timeout never ends: nothing says for how long to carry it.
            if not isinstance(inner, dict) or "expires" not in inner:
                continue
            try:
                address = ipaddress.ip_address(inner["val"])
                network = ipaddress.ip_network((address, 32 if address.version == 4 else 64))
            except ValueError:
                # Added by hand: in another set of this name, or an address within a /64; sources are masked before they
                # are looked up, so it matches none.
                continue
            found.append(LiveBan(network, int(inner["expires"])))
    return tuple(sorted(found))


def drift_hash(listing: bytes) -> str:
    """SHA-256 in hex of `nft -s list table` without the elements of sets.

    With -s nft leaves out counters; it prints elements, so that every ban and expiry would look like drift.
    """
    return hashlib.sha256("\n".join(without_elements(listing)).encode("utf-8", "surrogateescape")).hexdigest()


def without_elements(listing: bytes) -> list[str]:
    """The lines of `nft list table` without the elements of sets; bytes that are no UTF-8 as surrogates."""
    kept: list[str] = []
    in_elements = False
    for line in listing.decode("utf-8", "surrogateescape").splitlines():
        if in_elements:
            in_elements = not _closes(line)
            continue
        if _ELEMENTS.match(line):  # in sets alone: no line of a chain begins so
            in_elements = not _closes(line)
            continue
        kept.append(line)
    return kept


def _closes(line: str) -> bool:
    """Whether a line of a set's elements is the last: it has a brace outside quoted comments."""
    return "}" in re.sub(r'"[^"]*"', "", line)


def _entries(listing: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(listing, dict) or not isinstance(listing.get("nftables"), list):
        raise Foreign("no listing of nft")
    for entry in listing["nftables"]:
        if not isinstance(entry, dict) or len(entry) != 1:
            raise Foreign("no entry of a listing")
        ((kind, inner),) = entry.items()
        if not isinstance(inner, dict):
            raise Foreign("no entry of a listing")
        yield kind, inner


def _rate(entry: dict[str, Any]) -> Rate:
    if entry.get("inv") or entry.get("rate_unit", "packets") != "packets":
        raise Foreign("a limit")
    return Rate(packets=entry["rate"], per=Per(entry["per"]), burst=entry.get("burst", 5))


def _chain(entry: dict[str, Any]) -> Chain:
    if "hook" not in entry:
        return Chain(name=entry["name"])
    expected = ("filter", entry["name"], 0)
    if (entry.get("type"), entry["hook"], entry.get("prio")) != expected:
        raise Foreign("a base chain")
    return Chain(name=entry["name"], policy=entry.get("policy", "accept"))


def _line(entry: dict[str, Any]) -> Line:
    fields: dict[str, Any] = {"comment": entry.get("comment", "")}
    limited_log = False
    for statement in entry["expr"]:
        ((kind, inner),) = statement.items()
        if kind == "limit" and isinstance(inner, dict):
            if _rate(inner) != Rate(packets=tables.LOG_PACKETS, per=Per.SECOND, burst=tables.LOG_BURST):
                raise Foreign("a limit")
            limited_log = True
        elif kind == "match":
            _match(inner, fields)
        else:
            _put(fields, **_statement(kind, inner))
    if limited_log is not ("log" in fields) or ("log" in fields and "verdict" in fields):
        raise Foreign("a log statement")
    return Line(**fields)


def _statement(kind: str, inner: Any) -> dict[str, Any]:
    """What a statement that is no match sets of a Line."""
    match kind:
        case "limit" if isinstance(inner, str):
            return {"limit": inner}
        case "log" if set(inner) == {"prefix"}:
            return {"log": inner["prefix"]}
        case "counter":
            return {"counter": True}
        case "accept" | "drop":
            return {"verdict": kind}
        case "reject" if inner is None or inner["expr"] == "port-unreachable":
            return {"verdict": kind, **_REJECTS[inner["type"] if inner else "icmpx"]}
        case "jump":
            return {"verdict": inner["target"]}
        case _:
            raise Foreign(f"a statement of kind {kind!r}"[:60])


def _put(fields: dict[str, Any], **found: Any) -> None:
    """Set fields; Foreign for one that is set already, as in `tcp dport 23 tcp dport 22`, which matches nothing."""
    for name, value in found.items():
        if name in fields and (name not in {"family", "proto"} or fields[name] != value):
            raise Foreign("two matches of one kind in a line")
        fields[name] = value


def _match(inner: dict[str, Any], fields: dict[str, Any]) -> None:
    """Put what one match asks into the fields of a Line."""
    left, right = inner["left"], inner["right"]
    if inner["op"] == "in" and left == {"ct": {"key": "state"}}:
        states = tables.names([right] if isinstance(right, str) else right)
        if not _STATES.issuperset(states):
            raise Foreign("a state")
        _put(fields, states=states)
        return
    if inner["op"] == "==" and (left, right) == ({"ct": {"key": "direction"}}, "reply"):
        _put(fields, reply=True)
        return
    if inner["op"] != "==":
        raise Foreign("a comparison")
    ((kind, what),) = left.items()
    if kind == "meta":
        _meta(what["key"], right, fields)
    elif kind == "payload":
        _payload(what["protocol"], what["field"], right, fields)
    elif left == {"&": [{"payload": {"protocol": "ip6", "field": "saddr"}}, tables.BANS_MASK]}:
        if right != f"@{tables.BANS[6]}":
            raise Foreign("a set")
        _put(fields, family=6, banned=True)
    else:
        raise Foreign(f"a match of kind {kind!r}"[:60])


def _meta(key: str, right: Any, fields: dict[str, Any]) -> None:
    match key:
        case "iifname":
            _put(fields, inbound=tables.names(_items(right)))
        case "oifname":
            _put(fields, outbound=tables.names(_items(right)))
        case "nfproto" if right in {"ipv4", "ipv6"}:
            _put(fields, family=int(right[-1]))
        case "l4proto" if right in {"tcp", "udp"}:
            _put(fields, proto=right)
        case "l4proto" if right == "icmp":
            _put(fields, proto=right, family=4)
        case "l4proto" if right == "ipv6-icmp":
            _put(fields, proto="icmpv6", family=6)
        case _:
            raise Foreign("a match of kind 'meta'")


def _payload(protocol: str, name: str, right: Any, fields: dict[str, Any]) -> None:
    match protocol, name:
        case (("ip" | "ip6"), ("saddr" | "daddr")):
            family = 4 if protocol == "ip" else 6
            _put(fields, family=family)
            if right == f"@{tables.BANS[4]}" and (protocol, name) == ("ip", "saddr"):
                _put(fields, banned=True)
                return
            found = tables.networks(network for item in _items(right) for network in element(item))
            _put(fields, **{"source" if name == "saddr" else "destination": found[family]})
        case "ip6", "hoplimit":
            _put(fields, family=6, hop_limit=right)
        case (("icmp" | "icmpv6"), "type"):
            _put(fields, family=4 if protocol == "icmp" else 6, proto=protocol, icmp=tables.names(_items(right)))
        case (("tcp" | "udp"), ("sport" | "dport")):
            _put(fields, **{"proto": protocol, name: tables.ports(_ports(item) for item in _items(right))})
        case _:
            raise Foreign("a match of kind 'payload'")


def _items(right: Any) -> list[Any]:
    return list(right["set"]) if isinstance(right, dict) and "set" in right else [right]


def element(item: Any) -> Iterable[Network]:
    """The networks of one element. nft lists those that follow on each other as a range: 10.0.0.2/31 and 10.0.0.4."""
    if isinstance(item, str):
        return (ipaddress.ip_network(item),)
    if "range" in item:
        low, high = (ipaddress.ip_address(one) for one in item["range"])
        return ipaddress.summarize_address_range(low, high)
    prefix = item["prefix"]
    return (ipaddress.ip_network((prefix["addr"], prefix["len"])),)


def _ports(item: Any) -> Ports:
    if isinstance(item, int):
        return Ports(item, item)
    low, high = item["range"]
    return Ports(low, high)
