"""Facts of the live host from what programs print: ss(8), ip(8), sshd(8) -T and nft -j. Pure.

What is not understood is left out where that is harmless, and is ValueError where it is not: a listing of interfaces
that cannot be read must not look like a host that has none.
"""

from __future__ import annotations

import ipaddress
import json
import re
from typing import TYPE_CHECKING, Any, Final

from latticed.system.nft_guard import table as tables
from latticed.system.nft_guard.facts import Interface, Listener, SshSession

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from latticed.model.addresses import Address

MAX_LISTENERS: Final = 2_000
MAX_SESSIONS: Final = 1_000
SSH_PORT: Final = 22
"""Where sshd is when it is installed and cannot say (sshd_config(5))."""
_SSHD: Final = frozenset({"sshd", "sshd-session", "sshd-auth"})
"""Names of its processes; since OpenSSH 9.8 each connection has an sshd-session."""
_PROCESS: Final = re.compile(r'users:\(\("([^"]*)"')
_PID: Final = re.compile(r",pid=([0-9]{1,9}),")
_ENDPOINT: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)|(\*))(?:%([^:\]\s]+))?:([0-9]+|\*)")
_FIREWALLS: Final = {"ufw-": ("ufw", "ufw-before-input"), "INPUT_ZONES": ("firewalld", "INPUT_ZONES")}
"""By how the chains begin that the input chain leads to; firewalld has them where its backend is iptables."""
_NO_FIREWALL: Final = ("", "")


def listeners(printed: bytes) -> tuple[Listener, ...]:
    """Of `ss -Htlnp`: TCP sockets that listen, each once, with the name of their first process."""
    found = {one for one, _ in owned(printed)}
    ordered = sorted(found, key=lambda one: (one.process not in _SSHD, one.port, str(one.address)))
    return tuple(ordered[:MAX_LISTENERS])


def owned(printed: bytes) -> tuple[tuple[Listener, frozenset[int]], ...]:
    """The same as they are printed, each with the numbers of all processes that have it."""
    found = []
    for line in printed.decode("utf-8", "replace").splitlines():
        columns, process = _row(line)
        # State, Recv-Q, Send-Q, local, peer
        end = _endpoint(columns[3]) if len(columns) >= 5 else None
        if end is not None:
            pids = frozenset(map(int, _PID.findall(line)))
            found.append((Listener(port=end[2], address=end[0], process=process), pids))
    return tuple(found)


def sessions(printed: bytes, ports: Collection[int]) -> tuple[SshSession, ...]:
    """Of `ss -Htnp state established`: connections to one of sshd's `ports`, or that a process of sshd has accepted.

    Without the ports (another sshd listens elsewhere) the process tells.
    """
    found: set[SshSession] = set()
    for line in printed.decode("utf-8", "replace").splitlines():
        columns, process = _row(line)
        # Recv-Q, Send-Q, local, peer
        if len(columns) < 4:
            continue
        local, peer = _endpoint(columns[2]), _endpoint(columns[3])
        if local is None or peer is None or local[0] is None or peer[0] is None:
            continue
        if local[2] in ports or process in _SSHD:
            found.add(SshSession(peer=peer[0], local=local[0], interface=peer[1] or local[1]))
    return tuple(sorted(found, key=lambda one: (str(one.peer), str(one.local), one.interface))[:MAX_SESSIONS])


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


def _row(line: str) -> tuple[list[str], str]:
    """The columns of a line of ss, and the name of its first process."""
    process = _PROCESS.search(line)
    return line.split("users:((", 1)[0].split(), process[1] if process else ""


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
