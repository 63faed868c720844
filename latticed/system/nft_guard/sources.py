"""Facts of the live host from what programs print: ss(8), ip(8), sshd(8) -T and nft -j. Pure.

What is not understood is left out where that is harmless, and is ValueError where it is not: a listing of interfaces
that cannot be read must not look like a host that has none.
"""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from latticed.system.nft_guard import table as tables
from latticed.system.nft_guard.facts import SSHD, Interface, Listener, SshSession, bare

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from latticed.model.addresses import Address

MAX_LISTENERS: Final = 2_000
MAX_SESSIONS: Final = 1_000
SSH_PORT: Final = 22
"""Where sshd is when it is installed and cannot say (sshd_config(5))."""
_SSHD: Final = frozenset({SSHD, "sshd-session", "sshd-auth"})
"""Names of its processes; since OpenSSH 9.8 each connection has an sshd-session."""
_ACCEPTED: Final = frozenset({"sshd: [accepted]", "sshd-session: [accepted]"})
"""Titles of the process that has a connection, until a user is named."""
_LOGGED_IN: Final = re.compile(r"sshd(?:-session)?: [^\[/ ][^ ]*")
"""Those after a login: the user, and the terminal if there is one. In between it is `USER [priv]`."""
_NOT_ACCEPTED: Final = "ino:0"
"""In a row of `ss -e`: no process has the connection yet."""
_OWNER: Final = re.compile(r'\("([^"]*)",pid=([0-9]{1,9}),fd=[0-9]{1,9}\)')
"""A process that has the socket. Its name is its own choice of at most 15 bytes, in which no other process has room."""
_OF_OTHERS: Final = re.compile(r"\buid:[0-9]")
"""In a row of `ss -e` where root did not make the socket: anyone may give one to a setuid program, under any name."""
_ENDPOINT: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)|(\*))(?:%([^:\]\s]+))?:([0-9]+|\*)")
_FIREWALLS: Final = {"ufw-": ("ufw", "ufw-before-input"), "INPUT_ZONES": ("firewalld", "INPUT_ZONES")}
"""By how the chains begin that the input chain leads to; firewalld has them where its backend is iptables."""
_NO_FIREWALL: Final = ("", "")


@dataclass(frozen=True, slots=True)
class Process:
    """One of `sshd_pids`: its user ids (real, effective, saved, of files), and its title (proc(5), cmdline),
    empty for those that are not root's.
    """

    uids: frozenset[int]
    title: str


def sshd_pids(printed: bytes) -> frozenset[int]:
    """Of `ss -p`: all processes that have a name of sshd, which any process may give itself."""
    return frozenset(pid for row in _rows(printed) for name, pid in row.owners if name in _SSHD)


def listeners(printed: bytes, processes: Mapping[int, Process]) -> tuple[Listener, ...]:
    """Of `ss -Htlnpe`: TCP sockets that listen, each once, with the name of their first process.

    `sshd` where sshd has it: that is a process of root (`processes`: those of `sshd_pids` that were found), with a
    socket that root made. Others of that name have none.
    """
    found = set()
    for row in _rows(printed):
        if (one := _listener(row)) is not None:
            name = SSHD if _is_sshd(row, {SSHD}, processes) else "" if one.process in _SSHD else one.process
            found.add(replace(one, process=name))
    ordered = sorted(found, key=lambda one: (one.process != SSHD, one.port, str(one.address)))
    return tuple(ordered[:MAX_LISTENERS])


def owned(printed: bytes) -> tuple[tuple[Listener, frozenset[int]], ...]:
    """Of `ss -Htlnp`: the same as they are printed, each with the numbers of all processes that have it."""
    found = [(_listener(row), frozenset(pid for _, pid in row.owners)) for row in _rows(printed)]
    return tuple((one, pids) for one, pids in found if one is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """An established one to sshd, by which somebody is logged in, or may be: `is_login` False where it is not clear.

    `ends`: both its ends as ss prints them, by which it is known again.
    """

    ends: tuple[str, str]
    session: SshSession
    is_login: bool


def connections(
    printed: bytes, ports: Collection[int], processes: Mapping[int, Process], account: int | None
) -> tuple[Connection, ...]:
    """Of `ss -Htnpe state established`: connections to one of sshd's `ports`, or that a process of sshd has accepted
    (`processes` as for `listeners`), but those by which nobody can be logged in yet.

    Without the ports (another sshd listens elsewhere) the process tells. None from this host to itself by loopback,
    which no firewall cuts. `account`: the user id of sshd's processes before a login, None where there is no such user.
    """
    found = []
    for row in _rows(printed):
        # Recv-Q, Send-Q, local, peer
        if len(row.columns) < 4:
            continue
        local, peer = _endpoint(row.columns[2]), _endpoint(row.columns[3])
        if local is None or peer is None or local[0] is None or peer[0] is None or bare(peer[0]).is_loopback:
            continue
        is_login = _is_login(row, processes, account)
        if is_login is not False and (local[2] in ports or _is_sshd(row, _SSHD, processes)):
            session = SshSession(peer=peer[0], local=local[0], interface=peer[1] or local[1])
            found.append(Connection(ends=(row.columns[2], row.columns[3]), session=session, is_login=is_login is True))
    return tuple(found)


def sessions(found: Iterable[Connection]) -> tuple[SshSession, ...]:
    """Where they come from, each once."""
    ordered = sorted({one.session for one in found}, key=lambda one: (str(one.peer), str(one.local), one.interface))
    return tuple(ordered[:MAX_SESSIONS])


def sshd_ports(printed: bytes) -> tuple[int, ...]:
    """Of `sshd -T`: every `port N`, and the ports of `listenaddress`."""
    found: set[int] = set()
    for line in printed.decode("utf-8", "replace").splitlines():
        name, _, value = line.partition(" ")
        number = value if name == "port" else value.rpartition(":")[2] if name == "listenaddress" else ""
        if number.isascii() and number.isdecimal() and 1 <= int(number) <= 65_535:
            found.add(int(number))
    return tuple(sorted(found))


def interfaces(addresses: bytes, routes: Collection[bytes]) -> tuple[Interface, ...]:
    """Of `ip -j address show` and `ip -j -4|-6 route show default`. ValueError for what is no such listing."""
    with_default: set[str] = set()
    for one in (route for printed in routes for route in _list(printed)):
        with_default |= {hop["dev"] for hop in (one, *one.get("nexthops", ())) if isinstance(hop.get("dev"), str)}
    found = []
    for one in _list(addresses):
        name = one.get("ifname")
        if not isinstance(name, str):
            raise ValueError("an interface without a name")  # noqa: TRY004 - of a text
        own = [each["local"] for each in one.get("addr_info", ()) if isinstance(each.get("local"), str)]
        found.append(
            Interface(
                name=name,
                addresses=tuple(ipaddress.ip_address(each) for each in own),
                default_route=name in with_default,
            )
        )
    return tuple(sorted(found, key=lambda one: one.name))


def foreign_tables(printed: bytes) -> tuple[tuple[str, ...], bool]:
    """Of `nft -j list tables`: all but ours, as `ip nat`, and whether ours is there. ValueError."""
    found = {f"{entry['family']} {entry['name']}" for entry in _entries(printed, "table")}
    ours = f"{tables.FAMILY} {tables.NAME}"
    return tuple(sorted(found - {ours})), ours in found


def firewall(printed: bytes) -> tuple[str, str]:
    """Of `nft -j list chain ip filter INPUT`: the firewall to whose chains it leads, and which of them has rules while
    it is active: ufw, once disabled, leaves empty ones. Twice empty for none. ValueError.
    """
    for rule in _entries(printed, "rule"):
        for statement in rule.get("expr", ()):
            jump = statement.get("jump") if isinstance(statement, dict) else None
            if isinstance(jump, dict) and (found := _firewall_of(str(jump.get("target", "")))) != _NO_FIREWALL:
                return found
    return _NO_FIREWALL


def has_rules(printed: bytes) -> bool:
    """Of `nft -j list chain`. ValueError."""
    return bool(list(_entries(printed, "rule")))


def firewall_of_legacy(printed: bytes) -> str:
    """Of `iptables-legacy-save`, the old xtables' rules, which nft does not show: the active firewall, or empty."""
    rules = [words for line in printed.decode("utf-8", "replace").splitlines() if (words := line.split())[:1] == ["-A"]]
    chains = {words[1] for words in rules if len(words) > 1}
    for words in rules:
        if words[1:2] == ["INPUT"] and "-j" in words[:-1]:
            name, chain = _firewall_of(words[words.index("-j") + 1])
            if chain in chains:
                return name
    return ""


def _firewall_of(chain: str) -> tuple[str, str]:
    return next((found for prefix, found in _FIREWALLS.items() if chain.startswith(prefix)), _NO_FIREWALL)


class _Row(NamedTuple):
    """A line of ss: its columns, name and number of each process that has the socket, and whether root made it."""

    columns: list[str]
    owners: list[tuple[str, int]]
    is_roots: bool


def _rows(printed: bytes) -> Iterator[_Row]:
    # By newlines alone: ss prints a name with all else that splitlines() takes for the end of a line.
    for line in printed.decode("utf-8", "replace").split("\n"):
        columns, _, more = line.partition("users:((")
        owners = [(name, int(pid)) for name, pid in _OWNER.findall(f"({more}")]
        yield _Row(columns.split(), owners, _OF_OTHERS.search(line) is None)


def _listener(row: _Row) -> Listener | None:
    # State, Recv-Q, Send-Q, local, peer. A process may have newlines in its name, but no room there for all of it.
    end = _endpoint(row.columns[3]) if len(row.columns) >= 5 and row.columns[0] == "LISTEN" else None
    name = row.owners[0][0] if row.owners else ""
    return Listener(port=end[2], address=end[0], process=name) if end is not None else None


def _is_sshd(row: _Row, names: Collection[str], processes: Mapping[int, Process]) -> bool:
    return row.is_roots and any(name in names and _is_roots(processes.get(pid)) for name, pid in row.owners)


def _is_roots(process: Process | None) -> bool:
    return process is not None and process.uids == {0}


def _is_login(row: _Row, processes: Mapping[int, Process], account: int | None) -> bool | None:
    """Whether somebody is logged in by a connection; None where it is not clear, as while its process starts or ends.

    Until a login it is one of the account that talks to the peer; before that, one whose title says so.
    """
    found = [processes[pid] for _, pid in row.owners if pid in processes]
    titles = [one.title for one in found if _is_roots(one)]
    if _NOT_ACCEPTED in row.columns or any(one.uids == {account} for one in found) or _ACCEPTED.intersection(titles):
        return False
    is_login = any(map(_LOGGED_IN.fullmatch, titles)) or not all(map(_is_roots, found))
    return True if is_login else None


def _endpoint(text: str) -> tuple[Address | None, str, int] | None:
    """Address (None: all), scope and port of `[fe80::1]%eth0:22`; None for what is no such thing."""
    found = _ENDPOINT.fullmatch(text)
    if found is None or found[5] == "*":
        return None
    try:
        address = None if found[3] else ipaddress.ip_address(found[1] or found[2])
    except ValueError:
        return None
    return address, found[4] or "", int(found[5])


def _list(printed: bytes) -> list[dict[str, Any]]:
    # ip prints nothing at all for no routes, in some versions.
    decoded = json.loads(printed) if printed.strip() else []
    if not isinstance(decoded, list) or not all(isinstance(one, dict) for one in decoded):
        raise ValueError("no listing of ip")
    return [one for one in decoded if one]


def _entries(printed: bytes, kind: str) -> Iterator[dict[str, Any]]:
    decoded = json.loads(printed)
    if not isinstance(decoded, dict) or not isinstance(decoded.get("nftables"), list):
        raise ValueError("no listing of nft")  # noqa: TRY004 - of a text
    for entry in decoded["nftables"]:
        if isinstance(entry, dict) and isinstance(entry.get(kind), dict):
            yield entry[kind]
