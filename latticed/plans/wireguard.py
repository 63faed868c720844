"""Plans of kind `wireguard`: interfaces, peers, and the table that says what members may reach.

What is decided is pure and in `latticed.system.wireguard`; here programs are run, and what they print is handed on. An
interface is of the kernel where that has WireGuard, else of a wireguard-go that goes on running by itself.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import time
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from latticed.model.errors import Problem
from latticed.plans import sshd
from latticed.plans.effects import finding, parsed, ran, waiting
from latticed.plans.kind import Live
from latticed.plans.programs import failed
from latticed.system.findings import IntentRefused
from latticed.system.nft_guard import lockout, parse
from latticed.system.nft_guard import sources as nft_sources
from latticed.system.nft_guard.facts import LiveFacts
from latticed.system.nft_guard.table import Table
from latticed.system.wireguard import applied, decode, dump, reach, sources
from latticed.system.wireguard import check as checker
from latticed.system.wireguard import narrows as narrower
from latticed.system.wireguard import render as renderer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from latticed.model.addresses import Network
    from latticed.plans.kind import Intent, ProgramEnd, Tools
    from latticed.plans.protocol import Finding
    from latticed.system.wireguard.dump import Device
    from latticed.system.wireguard.facts import Facts
    from latticed.system.wireguard.render import Link, LinkPeer
    from latticed.system.wireguard.sources import HostLink

PACKAGES: Final = MappingProxyType(
    {
        "wg": "wireguard-tools",
        "wireguard-go": "wireguard-go",
        "nft": "nftables",
        "ip": "iproute2",
        "ss": "iproute2",
    }
)
"""The Debian package of each program that there has to be; wireguard-go only where the kernel has no WireGuard."""
AHEAD: Final = 2
"""Networks whose programs are started before it is known what the host has; those of others when it is their turn."""
_TABLE: Final = (reach.FAMILY, reach.NAME)
_ADD: Final = "route add "
_REFUSED: Final = re.compile(rb"Command failed -:([0-9]+)")
"""What `ip -batch` says of a line that failed, by its number."""
_EXISTS: Final = b"File exists"
_EMPTY: Final = Table(chains=())


@dataclass(frozen=True, slots=True)
class _Tunnel:
    """One of our interfaces as it is."""

    link: HostLink
    device: Device
    routes: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class _Standing:
    """One of our interfaces, without its peers."""

    link: HostLink
    routes: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class _Seen:
    """The host as it is. `table` None: somebody else has been in it, and `text` is how nft shows it."""

    links: tuple[HostLink, ...]
    tunnels: tuple[_Tunnel, ...]
    table: Table | None
    text: str
    ports: tuple[int, ...] = ()

    known: Mapping[Network, tuple[str, int | None]] = field(default_factory=dict)

    def names(self) -> frozenset[str]:
        return frozenset(one.link.name for one in self.tunnels)


@dataclass(frozen=True, slots=True)
class WireguardKind:
    """Interfaces with our alias, and the table `inet latticed_wireguard`; all else is looked at, never touched."""

    @property
    def name(self) -> str:
        return "wireguard"

    @property
    def target(self) -> str:
        return f"WireGuard interfaces of latticed, table {' '.join(_TABLE)}"

    @property
    def programs(self) -> Mapping[str, str]:
        """`sshd` need not be there."""
        return {
            "wg": "/usr/bin/wg",
            "wireguard-go": "/usr/bin/wireguard-go",
            "nft": "/usr/sbin/nft",
            "ip": "/usr/bin/ip",
            "ss": "/usr/bin/ss",
            "sshd": "/usr/sbin/sshd",
        }

    # Pure

    def secrets(self, intent: Intent) -> Mapping[str, str]:
        """Keys of 32 bytes, all of them; none for an intent that is refused anyway."""
        try:
            return dict.fromkeys(renderer.references(decode.read(intent)), "key")
        except IntentRefused:
            return {}

    def check(self, intent: Intent, live: Live | None, source: str) -> tuple[Finding, ...]:
        """As `wireguard.check` has them; a lockout may be overridden."""
        try:
            read = decode.read(intent)
        except IntentRefused as refused:
            return tuple(finding(one) for one in refused.findings)
        try:
            facts = None if live is None else sources.from_plain(live.facts, source=source, now_s=_now_s())
        except ValueError as error:
            raise Problem("bad_request", "source: expected the address of the operator's session, or none") from error
        return tuple(finding(one) for one in checker.check(read, facts))

    def render(self, intent: Intent, live: Live | None, secrets: Mapping[str, str]) -> bytes:
        del live
        return renderer.render(decode.read(intent), secrets)

    def narrows(self, approved: Intent, new: Intent, *, now_s: int) -> bool:
        """See `wireguard.narrows`. A member whose time is over gets no peer, whatever an intent says (`commit`)."""
        del now_s
        return narrower.narrows(decode.read(approved), decode.read(new))

    def holds(self, rendering: bytes, live: Live) -> bool:
        """Whether interfaces, peers, routes and table are as rendered; endpoints and counters are no drift."""
        return applied.holds(rendering, live.basis, public=_public, now_s=_now_s())

    # On the host

    def observe(self, tools: Tools) -> Live:
        """Our interfaces with their peers, and what others have.

        Facts: as `wireguard.sources.plain` has them, `networks` with peers and counters, `table`: `{understood}`.
        """
        found = _seen(tools)
        facts = sources.plain(_with_operators(sources.facts(found.links, found.names(), found.ports), found, tools))
        networks = [
            {
                "name": one.link.name,
                "public_key": one.device.public_key,
                "listen_port": one.device.listen_port,
                "peers": [
                    {
                        "public_key": peer.public_key,
                        "endpoint": peer.endpoint,
                        "allowed": [str(network) for network in peer.allowed],
                        "handshake_at": peer.handshake_at,
                        "rx_bytes": peer.rx_bytes,
                        "tx_bytes": peer.tx_bytes,
                    }
                    for peer in one.device.peers
                ],
            }
            for one in found.tunnels
        ]
        return Live(
            facts={**facts, "networks": networks, "table": {"understood": found.table is not None}},
            basis=_basis(found),
            text=renderer.text(_links(found), found.text) if found.tunnels or found.text != reach.REMOVED else "",
            found=found,
        )

    def validate(self, rendering: bytes, tools: Tools) -> None:
        """That nft takes the table, and that no key is this host's own: wg has no way to ask it beforehand."""
        wanted = applied.read(rendering)
        _run(tools, "wg", "--version")
        _run(tools, "nft", "-c", "-f", "-", stdin=wanted.table.encode("ascii"))
        for link in wanted.links:
            public = _public(link.private_key)
            if link.public_key not in {"", public}:
                expected = f"the network {link.name} to have the public key {link.public_key}"
                raise Problem("tool_failed", f"expected {expected}, its private key has {public}")
            for peer in link.peers:
                if peer.public_key == public:
                    expected = f"a key of its own for the member {peer.id}"
                    raise Problem("tool_failed", f"expected {expected}, found that of the network {link.name} itself")

    def snapshot(self, tools: Tools) -> bytes:
        """A rendering of what is there, secrets and all. Problem apply_failed for a table that is not ours any more."""
        found = _seen(tools)
        if found.table is None:
            raise Problem(
                "apply_failed",
                f"the table {' '.join(_TABLE)} was edited by hand and could not be put back as it is",
                f"nft delete table {' '.join(_TABLE)}, then apply again",
            )
        return renderer.text(_links(found, secrets=True), found.text).encode("ascii")

    def commit(self, rendering: bytes, tools: Tools, *, may_wait: bool = False, live: Live | None = None) -> None:
        """Interfaces that go first, and what peers lose; then the table, then peers that come.

        So at no moment does one reach more than it may, also where its address becomes another's.

        A peer that stays keeps its session and counters (`_set`); one whose time is over is left out. A route of
        somebody else's to the same network as one of ours stays; the rest is made, and then it is Problem apply_failed.
        """
        del may_wait
        wanted = applied.read(rendering)
        if live is not None and isinstance(live.found, _Seen) and _added(wanted, live.found, tools):
            return
        if routed := self._made(wanted, tools):
            expected = f"no route to {routed[0]}, which is behind a member"
            raise Problem("apply_failed", f"expected {expected}, found one of this host's own", "ip route show")

    def _made(self, wanted: applied.Wanted, tools: Tools) -> list[str]:
        """Make the host so; the networks behind members to which somebody else has a route, which stays."""
        names = {link.name for link in wanted.links}
        with contextlib.ExitStack() as stack:
            # Most of the time of these programs is their start: they begin together, and wait for their input.
            look = stack.enter_context(_looking(tools, sorted(names)))
            load = stack.enter_context(waiting(tools, PACKAGES, "nft", "-f", "-"))
            ahead = {link.name: stack.enter_context(_peers(link.name, tools)) for link in wanted.links[:AHEAD]}
            links, there = _standing(tools, names, look)
            foreign = names & ({one.name for one in links} - there.keys())
            if foreign:
                raise Problem("apply_failed", f"the interface {min(foreign)} belongs to somebody else")
            for name in sorted(there.keys() - names):
                _run(tools, "ip", "link", "delete", "dev", name)
            now_s = _now_s()
            links_due = [applied.due(link, now_s) for link in wanted.links]
            devices = {
                link.name: _take_away(link, there[link.name], tools, ahead.get(link.name))
                for link in links_due
                if link.name in there
            }
            load(wanted.table.encode("ascii"))
            return [
                network
                for link in links_due
                for network in _make(link, there.get(link.name), devices.get(link.name), tools, ahead.get(link.name))
            ]

    def self_check(self, rendering: bytes, tools: Tools) -> None:
        """That the host has what was rendered, and each interface is up."""
        found = _seen(tools)
        if not applied.holds(rendering, _basis(found), public=_public, now_s=_now_s()):
            raise Problem("apply_failed", "interfaces, peers or table are not what was applied")
        for one in found.tunnels:
            if not one.link.up:
                raise Problem("apply_failed", f"the interface {one.link.name} is not up")

    def restore(self, snapshot: bytes, tools: Tools) -> None:
        """As `commit`: a snapshot is a rendering. An undo is not held up by a route that somebody has set meanwhile."""
        self._made(applied.read(snapshot), tools)


def _with_operators(facts: Facts, found: _Seen, tools: Tools) -> Facts:
    """With who is connected to sshd, where anybody could be through a tunnel."""
    if not any(one.device.peers for one in found.tunnels):
        return facts
    ssh = sshd.seen(tools)
    ports = lockout.sshd_ports(LiveFacts(listeners=ssh.listeners, sshd_ports=ssh.ports))
    return replace(facts, sshd_ports=ports, sessions=ssh.sessions)


def _added(wanted: applied.Wanted, found: _Seen, tools: Tools) -> bool:
    """Add members to what was found, where nothing else differs: first to the table, then as peers.

    Two programs, started at once, instead of four and more. False, with nothing done: there is more to do than that, or
    nft does not take it.
    """
    there = {one.link.name: one for one in found.tunnels}
    more = None if found.table is None else reach.additions(found.text, wanted.table)
    if more is None or there.keys() != {link.name for link in wanted.links}:
        return False
    now_s = _now_s()
    due: list[tuple[str, tuple[LinkPeer, ...]]] = []
    for link in wanted.links:
        before = there[link.name]
        lasting = applied.due(link, now_s)
        moves = applied.moves(before.device, lasting)
        if before.link.alias != sources.ALIAS or moves is None or moves.gone:
            return False
        if _lost(lasting, before) or _lines(lasting, before):
            return False
        if moves.due:
            due.append((link.name, moves.due))
    with contextlib.ExitStack() as stack:
        load = stack.enter_context(waiting(tools, PACKAGES, "nft", "-f", "-", ends=(0, 1))) if more else None
        adds = [
            stack.enter_context(waiting(tools, PACKAGES, "wg", "addconf", name, "/dev/stdin"))
            for name, _ in due[:AHEAD]
        ]
        if load is not None and load(more.encode("ascii")).status != 0:
            return False
        for add, (_, peers) in zip(adds, due, strict=False):
            add(applied.addconf(peers))
        for name, peers in due[AHEAD:]:
            _run(tools, "wg", "addconf", name, "/dev/stdin", stdin=applied.addconf(peers))
    return True


def _standing(
    tools: Tools, wanted: Collection[str], look: Callable[[bytes], ProgramEnd]
) -> tuple[tuple[HostLink, ...], dict[str, _Standing]]:
    """All interfaces, and ours by name: what a commit has to know, with as few programs as that takes.

    One of ours that stays is not asked whether it is WireGuard: else `wg` says so when it is changed.
    """
    links, routed = _looked(look(b""), sorted(wanted))
    if any(not one.alias and not one.addresses and not one.up for one in links if one.name != "lo"):
        # Such an interface may be one that a kill left unmarked: only the table knows.
        found = _seen(tools)
        return found.links, {one.link.name: _Standing(one.link, one.routes) for one in found.tunnels}
    ours = [one for one in links if one.alias == sources.ALIAS and (one.name in wanted or _is_wireguard(one, tools))]
    return links, {
        one.name: _Standing(one, routed[one.name] if one.name in routed else _routes(one.name, tools)) for one in ours
    }


def _looking(tools: Tools, names: Iterable[str]) -> AbstractContextManager[Callable[[bytes], ProgramEnd]]:
    """A program that looks at all interfaces and at the routes of those named."""
    lines = ["address show", *(f"route show table all dev {name}" for name in names)]
    first = "".join(f"{line}\n" for line in lines).encode("ascii")
    return waiting(tools, PACKAGES, "ip", "-j", "-d", "-batch", "-", first=first, ends=(0, 1))


def _looked(shown: ProgramEnd, names: Collection[str]) -> tuple[tuple[HostLink, ...], dict[str, tuple[Network, ...]]]:
    """All interfaces, and the routes of those named where they are all there, as most of the time.

    `ip` ends at the first one that is not, and some versions print nothing where there is no route: then nothing is
    known of routes.
    """
    links, *rest = parsed(sources.printed, shown.stdout)
    routes: dict[str, tuple[Network, ...]] = {}
    if shown.status == 0 and len(rest) == len(names):
        routes = {name: tuple(parsed(sources.routes, [one])) for name, one in zip(names, rest, strict=True)}
    return parsed(sources.links, links), routes


def _is_wireguard(link: HostLink, tools: Tools) -> bool:
    return ran(tools, PACKAGES, "wg", "show", link.name, "public-key", ends=(0, 1)).status == 0


def _take_away(link: Link, before: _Standing, tools: Tools, peers: _Peers | None) -> Device:
    """Take from one interface and its peers what they have no more; the interface as it was before.

    While one has it, the table may say already what another may reach by it, and another may have no route to it.
    """
    show = _run(tools, "wg", "show", link.name, "dump") if peers is None else peers.show(b"")
    device: Device = parsed(dump.read, show.stdout)
    for words in applied.taken(device, link):
        _run(tools, "wg", "set", link.name, *words)
    if lost := _lost(link, before):
        _run(tools, "ip", "-batch", "-", stdin="".join(f"{line}\n" for line in lost).encode("ascii"))
    return device


def _make(link: Link, before: _Standing | None, device: Device | None, tools: Tools, peers: _Peers | None) -> list[str]:
    """Have one interface as it should be; `before` and `device` as it was, None for one that is not there.

    `peers`: the programs for its peers, where they have been started already. Returns as `_routed`.
    """
    if before is None:
        _create(link.name, tools)
    if before is None or before.link.alias != sources.ALIAS:
        _run(tools, "ip", "link", "set", "dev", link.name, "alias", sources.ALIAS)
    if before is None:
        # A file of its own would be one more place with keys: wg reads its standard input.
        _run(tools, "wg", "setconf", link.name, "/dev/stdin", stdin=applied.setconf(link))
    elif device is not None:
        _set(link, device, tools, peers)
    return _routed(_lines(link, before), tools)


def _routed(lines: list[str], tools: Tools) -> list[str]:
    """Have `ip` do these; the networks to which somebody else has a route, so that none could be added."""
    if not lines:
        return []
    stdin = "".join(f"{line}\n" for line in lines).encode("ascii")
    # `-force` goes on after a line that fails.
    ended = ran(tools, PACKAGES, "ip", "-force", "-batch", "-", stdin=stdin, ends=(0, 1))
    if ended.status == 0:
        return []
    refused = [lines[int(number) - 1] for number in _REFUSED.findall(ended.stderr)]
    if not refused or not all(line.startswith(_ADD) for line in refused) or _EXISTS not in ended.stderr:
        raise failed("ip", ended)
    return [line.split()[2] for line in refused]


def _lost(link: Link, before: _Standing | _Tunnel) -> list[str]:
    """What `ip -batch` is given for the routes that an interface has no more."""
    gone = set(before.routes) - set(link.routes())
    return [f"route del {one} dev {link.name}" for one in sorted(gone, key=str)]


def _lines(link: Link, before: _Standing | _Tunnel | None) -> list[str]:
    """What `ip -batch` is given for addresses, size and routes of an interface, after `_lost`."""
    had = set() if before is None else set(before.link.addresses)
    routed = set() if before is None else set(before.routes)
    lines = [f"address del {one} dev {link.name}" for one in sorted(had - set(link.addresses), key=str)]
    lines += [f"address add {one} dev {link.name}" for one in link.addresses if one not in had]
    if before is None or not before.link.up or before.link.mtu != link.mtu:
        lines.append(f"link set dev {link.name} mtu {link.mtu} up")
    wanted = set(link.routes())
    # An interface that was down has lost its routes, and one whose address goes may.
    kept = sorted(wanted & routed, key=str) if lines else []
    lines += [f"route replace {one} dev {link.name} proto static" for one in kept]
    # Not `replace`, which would take the place of a route of somebody else's, for good.
    lines += [f"{_ADD}{one} dev {link.name} proto static" for one in sorted(wanted - routed, key=str)]
    return lines


@dataclass(frozen=True, slots=True)
class _Peers:
    """Programs that are under way for the peers of one interface: what it has, and what is added to it."""

    show: Callable[[bytes], ProgramEnd]
    add: Callable[[bytes], ProgramEnd]


@contextlib.contextmanager
def _peers(name: str, tools: Tools) -> Iterator[_Peers]:
    with (
        waiting(tools, PACKAGES, "wg", "show", name, "dump") as show,
        waiting(tools, PACKAGES, "wg", "addconf", name, "/dev/stdin") as add,
    ):
        yield _Peers(show, add)


def _set(link: Link, device: Device, tools: Tools, peers: _Peers | None) -> None:
    """Have key, port and peers as they should be, after `_take_away`, and nothing done to peers that are so already.

    `wg syncconf` takes the addresses of every peer away and gives them back: what arrives in between is lost.
    """
    moves = applied.moves(device, link)
    if moves is None:
        _run(tools, "wg", "syncconf", link.name, "/dev/stdin", stdin=applied.setconf(link))
    elif moves.due and peers is not None:
        peers.add(applied.addconf(moves.due))
    elif moves.due:
        _run(tools, "wg", "addconf", link.name, "/dev/stdin", stdin=applied.addconf(moves.due))


def _create(name: str, tools: Tools) -> None:
    """Make an interface without keys; until it has our alias, the table's rules for it say that it is ours."""
    # 2: what the kernel answers, whose module may be missing.
    made = ran(tools, PACKAGES, "ip", "link", "add", "dev", name, "type", "wireguard", ends=(0, 1, 2, 255))
    if made.status != 0:
        ran(tools, PACKAGES, "wireguard-go", name, stays=True)


def _seen(tools: Tools) -> _Seen:
    links = parsed(sources.links, _run(tools, "ip", "-j", "-d", "address", "show").stdout)
    tables, _ = parsed(nft_sources.foreign_tables, _run(tools, "nft", "-j", "list", "tables").stdout)
    table: Table | None = _EMPTY
    text = reach.REMOVED
    if " ".join(_TABLE) in tables:
        listing = parsed(json.loads, _run(tools, "nft", "-j", "list", "table", *_TABLE).stdout)
        try:
            table, text = reach.listed(listing)
        except parse.Foreign:
            table = None
            text = _run(tools, "nft", "-s", "list", "table", *_TABLE).stdout.decode("utf-8", "backslashreplace")
    of_table = frozenset[str]() if table is None else reach.interfaces(table)
    tunnels = [found for one in links if (found := _tunnel(one, of_table, tools)) is not None]
    ours = {one.device.listen_port for one in tunnels}
    ports = parsed(sources.udp_ports, _run(tools, "ss", "-Huln").stdout, ours)
    return _Seen(
        links=links,
        tunnels=tuple(tunnels),
        table=table,
        text=text,
        ports=ports,
        known={} if table is None else reach.known(table),
    )


def _tunnel(link: HostLink, of_table: Iterable[str], tools: Tools) -> _Tunnel | None:
    """One interface when it is ours: by its alias, or as a kill left it, named by our table and without a key."""
    marked = link.alias == sources.ALIAS
    if not marked and not (link.name in of_table and not link.addresses and not link.up):
        return None
    shown = ran(tools, PACKAGES, "wg", "show", link.name, "dump", ends=(0, 1))
    if shown.status != 0:
        # No WireGuard answers: the alias alone says nothing of what it is.
        return None
    device = parsed(dump.read, shown.stdout)
    if not marked and (device.private_key or device.peers):
        return None
    return _Tunnel(link, device, _routes(link.name, tools))


def _routes(name: str, tools: Tools) -> tuple[Network, ...]:
    """The routes of both families that somebody set."""
    shown = _run(tools, "ip", "-j", "route", "show", "table", "all", "dev", name).stdout
    return tuple(parsed(sources.routes, [shown]))


def _links(found: _Seen, *, secrets: bool = False) -> tuple[Link, ...]:
    made = [applied.live(one.link, one.device, found.known, secrets=secrets) for one in found.tunnels]
    # One that has no key yet is nothing that could be put back.
    return tuple(one for one in made if one.private_key and one.addresses)


def _basis(found: _Seen) -> bytes:
    facts = [
        applied.fact(
            one.link.name,
            public_key=one.device.public_key,
            port=one.device.listen_port,
            addresses=one.link.addresses,
            mtu=one.link.mtu,
            routes=one.routes,
            peers=[(peer.public_key, peer.preshared_key, peer.allowed, peer.keepalive_s) for peer in one.device.peers],
        )
        for one in found.tunnels
    ]
    return applied.basis(facts, found.text)


def _public(private: str) -> str:
    """The public key of a private one, both in base64 (RFC 7748, section 5; the library clamps, as wg does)."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    found = X25519PrivateKey.from_private_bytes(base64.b64decode(private)).public_key().public_bytes_raw()
    return base64.b64encode(found).decode("ascii")


def _run(tools: Tools, program: str, *arguments: str, stdin: bytes = b"") -> ProgramEnd:
    return ran(tools, PACKAGES, program, *arguments, stdin=stdin)


def _now_s() -> int:
    return int(time.time())
