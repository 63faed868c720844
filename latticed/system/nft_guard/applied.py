"""Between a reviewed file and the live table: what is committed, what holds, what is put back. Pure.

A ban in the kernel says whose it is by a comment of its element, `until 1800000000`: the end that the intent gave it.
So a commit knows from rendering and listing alone which bans it carries over and which are gone, and drift shows the
same ends. An element without one was put in by hand.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from latticed.system.nft_guard import bans, parse, render
from latticed.system.nft_guard import table as tables
from latticed.system.nft_guard.intent import Ban

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from latticed.model.addresses import Network
    from latticed.system.nft_guard.bans import LiveBan
    from latticed.system.nft_guard.table import Table

_QUALIFIED: Final = f"{tables.FAMILY} {tables.NAME}"
_ORDER: Final = {name: n for n, name in enumerate((tables.INPUT, tables.GUARDED, tables.FORWARD, tables.OUTPUT))}
_BAN: Final = re.compile(r"# ban ([0-9a-f.:/]+) until ([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z)")
_NEVER: Final = re.compile(r"# never ([0-9a-f.:/]+)")
_UNTIL: Final = re.compile(r"until ([0-9]{1,12})")
_SET: Final = re.compile(r"[A-Za-z_.][A-Za-z0-9_./-]{0,254}")
"""Names of sets that nft reads without quotes, which somebody may have put into the table by hand."""
_COMMENT: Final = re.compile(r"[A-Za-z0-9 ._:/@-]{0,128}")


class Unrestorable(Exception):
    """A table of which no text can be made that means the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The owned table: as `text` to compare with a rendering, and as `basis`, which no ban and no counter changes.

    `understood` False: somebody else has been in it. `bans`: network and whole seconds that remain. `until`: the ends
    of those that have one, in seconds since 1970.
    """

    text: str = ""
    basis: bytes = b""
    understood: bool = True
    bans: tuple[LiveBan, ...] = ()
    until: Mapping[Network, int] = field(default_factory=dict)


def seen(listing: Any, stateless: bytes) -> Seen:
    """What `nft -j` and `nft -s list table` say of the table, both decoded as they come."""
    live = parse.bans(listing)
    try:
        found = parse.table(listing)
    except parse.Foreign:
        shown = "\n".join(parse.without_elements(stateless)) + "\n"
        return Seen(text=shown, basis=f"foreign {parse.drift_hash(stateless)}".encode(), understood=False, bans=live)
    until = ends(listing)
    known = [Ban(network=network, expires_at=end) for network, end in until.items()]
    text = "".join(f"{line}\n" for line in render.lines(_ordered(found), known))
    return Seen(text=text, basis=_basis(text), bans=live, until=until)


def holds(rendering: bytes, basis: bytes) -> bool:
    """Whether a table with this basis (empty: none) is what the rendering makes, bans aside."""
    return _basis(rendering.decode("ascii")) == basis


def transaction(rendering: bytes, listing: Any, now_s: int) -> bytes:
    """What is given to `nft -f`: the rendering, and its bans with the time that remains to each.

    `listing`: `nft -j list table` before, None for no table. `now_s`: seconds since 1970, for bans that are new.
    """
    text = rendering.decode("ascii")
    if not _basis(text):
        return rendering
    wanted, never = _comments(text)
    known, live = ({}, ()) if listing is None else (ends(listing), parse.bans(listing))
    carried = bans.kept(wanted, known=known, never=never, live=live, now_s=now_s)
    added = "".join(_added(one.network, one.remaining_s, wanted.get(one.network)) for one in carried)
    return rendering + added.encode("ascii")


def missing(rendering: bytes, listing: Any, now_s: int) -> tuple[Network, ...]:
    """The banned networks of a rendering that are in no set, though they should be for longer than a minute yet."""
    wanted, _ = _comments(rendering.decode("ascii"))
    there = {one.network for one in parse.bans(listing)}
    return tuple(network for network, until in wanted.items() if until > now_s + 60 and network not in there)


def outlast(live: Iterable[LiveBan], until: Mapping[Network, int], now_s: int) -> bool:
    """Whether the kernel keeps a ban for longer than a minute beyond its end, as one that came in while the clock was
    behind: a commit gives it its time.
    """
    return any(one.remaining_s > until[one.network] - now_s + 60 for one in live if one.network in until)


def ends(listing: Any) -> dict[Network, int]:
    """The end of each ban that has one in its comment, in seconds since 1970."""
    found: dict[Network, int] = {}
    for _, element in _elements(listing):
        until = _UNTIL.fullmatch(str(element.get("comment", "")))
        if until is None:
            continue
        try:
            address = ipaddress.ip_address(element["val"])
            found[ipaddress.ip_network((address, 32 if address.version == 4 else 64))] = int(until[1])
        except (KeyError, ValueError):
            continue
    return found


def snapshot(listing: Any, stateless: bytes, boottime_s: int) -> bytes:
    """All of the table, for `restored`; listing None: there is none. `boottime_s`: of CLOCK_BOOTTIME, now.

    Unrestorable where the text of the table would be read as another one: nft prints quotes in comments as they are.
    """
    if listing is None:
        return json.dumps({"table": None}).encode()
    if any(re.search(r'["\\\x00-\x1f]', text) for text in _texts(listing)):
        raise Unrestorable("a name or comment in it has a quote or control character")
    elements = list(_elements(listing))
    listed = [element for entry in listing["nftables"] for one in entry.values() for element in one.get("elem", ())]
    if len(listed) != len(elements) or not all(_is_plain(element) for _, element in elements):
        raise Unrestorable("a set or map in it has elements that are no addresses")
    if not all(_SET.fullmatch(name) for name, _ in elements):
        raise Unrestorable("a set in it has a name that nft does not read")
    text = "\n".join(parse.without_elements(stateless)) + "\n"
    return json.dumps({"table": text, "elements": elements, "boottime_s": boottime_s}, sort_keys=True).encode()


def restored(kept: bytes, boottime_s: int) -> bytes:
    """What is given to `nft -f` to put a snapshot back: the same however often, but for bans that are over then."""
    found = json.loads(kept)
    if found["table"] is None:
        return render.REMOVED.encode("ascii")
    # Less than before: another boot, whose clock says nothing of this one's.
    gone_s = max(0, boottime_s - found["boottime_s"])
    lines = []
    for name, element in found["elements"]:
        line = str(ipaddress.ip_address(element["val"]))
        if "expires" in element:
            left = int(element["expires"]) - gone_s
            if left <= 0:
                continue
            # Without one of its own it has the timeout of its set.
            own = f" timeout {max(int(element['timeout']), left)}s" if "timeout" in element else ""
            line += f"{own} expires {left}s"
        if _COMMENT.fullmatch(comment := str(element.get("comment", ""))) and comment:
            line += f' comment "{comment}"'
        lines.append(f"add element {_QUALIFIED} {name} {{ {line} }}\n")
    text = render.REMOVED + str(found["table"]) + "".join(lines)
    return text.encode("utf-8", "surrogateescape")


def _added(network: Network, remaining_s: int, until: int | None) -> str:
    comment = "" if until is None else f' comment "until {until}"'
    element = f"{network.network_address} timeout {remaining_s}s{comment}"
    return f"add element {_QUALIFIED} {tables.BANS[network.version]} {{ {element} }}\n"


def _comments(text: str) -> tuple[Mapping[Network, int], tuple[Network, ...]]:
    """The bans of a rendering with their ends, and its list `never`."""
    wanted: dict[Network, int] = {}
    never = []
    for line in text.splitlines():
        if ban := _BAN.fullmatch(line):
            wanted[ipaddress.ip_network(ban[1])] = int(dt.datetime.fromisoformat(ban[2]).timestamp())
        elif spared := _NEVER.fullmatch(line):
            never.append(ipaddress.ip_network(spared[1]))
    return wanted, tuple(never)


def _ordered(found: Table) -> Table:
    """With its chains in the order of renderings, so that a diff shows what is other."""
    return replace(found, chains=tuple(sorted(found.chains, key=lambda one: (_ORDER.get(one.name, 9), one.name))))


def _basis(text: str) -> bytes:
    """The table in a rendering without its comments and whatever the order of its parts; empty for none."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    removed = render.REMOVED.splitlines()
    if lines[: len(removed)] == removed:
        lines = lines[len(removed) :]
    parts = sorted("\n".join(lines).split("\n\t}\n"))
    return "\n\t}\n".join(parts).encode("ascii", "backslashreplace") if lines else b""


def _elements(listing: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Set and element, those without a timeout as `{"val"}` alone."""
    for entry in listing["nftables"]:
        found = entry.get("set")
        for element in (found or {}).get("elem", ()):
            inner = element.get("elem") if isinstance(element, dict) else {"val": element}
            if isinstance(inner, dict) and isinstance(inner.get("val"), str):
                yield found["name"], inner


def _is_plain(element: dict[str, Any]) -> bool:
    """Whether `restored` writes the element as it is."""
    try:
        ipaddress.ip_address(element["val"])
    except ValueError:
        return False
    return element.keys() <= {"val", "timeout", "expires", "comment"} and (
        _COMMENT.fullmatch(str(element.get("comment", ""))) is not None
    )


def _texts(value: Any) -> Iterable[str]:
    """All texts in decoded JSON, keys aside."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key != "metainfo":
                yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, str):
        yield value
