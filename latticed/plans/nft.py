"""Plans of kind `nft`: the table of nft guard, made of a reviewed intent.

What is decided is pure and in `latticed.system.nft_guard`; here programs are run, and what they print is handed on.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from latticed.model.errors import Problem
from latticed.plans import sshd
from latticed.plans.effects import finding, parsed, ran
from latticed.plans.kind import Live
from latticed.system import findings
from latticed.system.nft_guard import applied, decode, sources
from latticed.system.nft_guard import check as checker
from latticed.system.nft_guard import facts as live_facts
from latticed.system.nft_guard import narrows as narrower
from latticed.system.nft_guard import render as renderer
from latticed.system.nft_guard import table as tables
from latticed.system.nft_guard.facts import LiveFacts
from latticed.system.nft_guard.intent import MAX_BANS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.plans.kind import Intent, ProgramEnd, Tools
    from latticed.plans.protocol import Finding

TABLE: Final = (tables.FAMILY, tables.NAME)
PACKAGES: Final = MappingProxyType({"nft": "nftables", "ss": "iproute2", "ip": "iproute2"})
"""The Debian package of each program that there has to be."""
_LEGACY: Final = ("iptables-legacy-save", "ip6tables-legacy-save")


@dataclass(frozen=True, slots=True)
class NftKind:
    """The one table `inet latticed_guard`; other tables are looked at, never touched."""

    @property
    def name(self) -> str:
        return "nft"

    @property
    def target(self) -> str:
        return f"table {' '.join(TABLE)}"

    @property
    def programs(self) -> Mapping[str, str]:
        """`sshd` and the last two need not be there."""
        return {
            "nft": "/usr/sbin/nft",
            "ss": "/usr/bin/ss",
            "ip": "/usr/bin/ip",
            "sshd": "/usr/sbin/sshd",
            "iptables-legacy-save": "/usr/sbin/iptables-legacy-save",
            "ip6tables-legacy-save": "/usr/sbin/ip6tables-legacy-save",
        }

    # Pure

    def secrets(self, intent: Intent) -> Mapping[str, str]:
        """None: a firewall has no secrets, and a reference has no place in the form of an intent."""
        del intent
        return {}

    def check(self, intent: Intent, live: Live | None, source: str) -> tuple[Finding, ...]:
        """As `nft_guard.check` has them; a lockout may be overridden."""
        try:
            read = decode.read(intent)
        except findings.IntentRefused as refused:
            return tuple(finding(one) for one in refused.findings)
        try:
            facts = None if live is None else live_facts.from_plain(live.facts, source=source)
        except ValueError as error:
            raise Problem("bad_request", "source: expected the address of the operator's session, or none") from error
        return tuple(finding(one) for one in checker.check(read, facts))

    def render(self, intent: Intent, live: Live | None, secrets: Mapping[str, str]) -> bytes:
        """The file that is reviewed. Bans are comments in it: what remains to them changes by itself."""
        del live, secrets
        return renderer.render(decode.read(intent))

    def narrows(self, approved: Intent, new: Intent, *, now_s: int) -> bool:
        """See `nft_guard.narrows`; a ban that is over at `now_s` may be left out."""
        return narrower.narrows(decode.read(approved), decode.read(new), now_s=now_s)

    def holds(self, rendering: bytes, live: Live) -> bool:
        """Whether the table is as rendered; bans, their ends and counters are no drift."""
        return applied.holds(rendering, live.basis)

    # On the host

    def observe(self, tools: Tools) -> Live:
        """Table, listeners, sessions of ssh, interfaces and other tables.

        Facts: as `nft_guard.facts.plain` has them, `table`: `{present, understood, bans}`, and `unfinished`, as `Live`:
        bans outlast their end.
        """
        foreign, present = parsed(sources.foreign_tables, _nft(tools, "-j", "list", "tables").stdout)
        found = applied.Seen()
        if present:
            listing, stateless = _listed(tools)
            found = parsed(applied.seen, listing, stateless)
        facts = live_facts.plain(_facts(tools, foreign))
        # Anyone who is root may have put in more than any intent has.
        bans = [{"network": str(one.network), "remaining_s": one.remaining_s} for one in found.bans[:MAX_BANS]]
        table = {"present": present, "understood": found.understood, "bans": bans}
        unfinished = applied.outlast(found.bans, found.until, _now_s())
        facts |= {"table": table, "unfinished": unfinished}
        return Live(facts=facts, basis=found.basis, text=found.text, unfinished=unfinished)

    def validate(self, rendering: bytes, tools: Tools) -> None:
        """`nft -c`: it finds little of what is meant wrong, which `check` does, but what this kernel has not."""
        _nft(tools, "-c", "-f", "-", stdin=rendering)

    def snapshot(self, tools: Tools) -> bytes:
        """See `applied.snapshot`. Problem apply_failed for a table that somebody made unfit to be put back."""
        listing, stateless = _listed(tools) if _is_there(tools) else (None, b"")
        try:
            kept: bytes = parsed(applied.snapshot, listing, stateless, _boottime_s())
        except applied.Unrestorable as error:
            raise self._unrestorable(str(error)) from error
        # An undo that nft refuses would be tried for ever, with the change in place.
        if tools.run("nft", "-c", "-f", "-", stdin=applied.restored(kept, _boottime_s())).status != 0:
            raise self._unrestorable("nft does not take its own listing of it")
        return kept

    def _unrestorable(self, why: str) -> Problem:
        return Problem(
            "apply_failed",
            f"{self.target} was edited by hand and could not be put back as it is: {why}",
            f"nft delete {self.target}, then apply again",
        )

    def commit(self, rendering: bytes, tools: Tools, *, may_wait: bool = False, live: Live | None = None) -> None:
        """One transaction: table and bans are replaced together, or nothing is."""
        del may_wait, live
        listing = _listed(tools)[0] if _is_there(tools) else None
        _nft(tools, "-f", "-", stdin=parsed(applied.transaction, rendering, listing, _now_s()))

    def self_check(self, rendering: bytes, tools: Tools) -> None:
        """That the kernel has the rules that were checked, policy and all, and the bans."""
        present = _is_there(tools)
        listing, stateless = _listed(tools) if present else (None, b"")
        found = parsed(applied.seen, listing, stateless) if present else applied.Seen()
        if not applied.holds(rendering, found.basis):
            raise Problem("apply_failed", f"{self.target} is not what was loaded: something else changes it")
        if present and (lost := applied.missing(rendering, listing, _now_s())):
            raise Problem("apply_failed", f"the ban of {lost[0]} is not in {self.target}")

    def restore(self, snapshot: bytes, tools: Tools) -> None:
        """Replace the table by the one of the snapshot; bans have the time less that has gone by."""
        _nft(tools, "-f", "-", stdin=applied.restored(snapshot, _boottime_s()))


def _facts(tools: Tools, foreign: tuple[str, ...]) -> LiveFacts:
    ssh = sshd.seen(tools)
    routes = [ran(tools, PACKAGES, "ip", "-j", family, "route", "show", "default").stdout for family in ("-4", "-6")]
    return LiveFacts(
        interfaces=parsed(sources.interfaces, ran(tools, PACKAGES, "ip", "-j", "address", "show").stdout, routes),
        listeners=ssh.listeners,
        sshd_ports=ssh.ports,
        sessions=ssh.sessions,
        foreign_tables=foreign,
        active_firewalls=_firewalls(tools, foreign),
    )


def _firewalls(tools: Tools, foreign: tuple[str, ...]) -> tuple[str, ...]:
    """Of ufw and firewalld, those whose rules are in the kernel, whatever started them."""
    found = {"firewalld"} if "inet firewalld" in foreign else set()
    found |= {_firewall(tools, family) for family in ("ip", "ip6") if f"{family} filter" in foreign}
    for program in _LEGACY:
        # Without a table named it loads no module of the kernel, and prints nothing where there is none.
        saved = _ran_if_there(tools, program)
        found |= {sources.firewall_of_legacy(saved.stdout)} if saved is not None else set()
    return tuple(sorted(found - {""}))


def _firewall(tools: Tools, family: str) -> str:
    """The firewall that the input chain of `filter` leads to, if it is active; else empty."""
    of_chain = ("-j", "list", "chain", family, "filter")
    ended = ran(tools, PACKAGES, "nft", *of_chain, "INPUT", ends=(0, 1))
    name, chain = parsed(sources.firewall, ended.stdout) if ended.status == 0 else ("", "")
    if not name:
        return ""
    ended = ran(tools, PACKAGES, "nft", *of_chain, chain, ends=(0, 1))
    return name if ended.status == 0 and parsed(sources.has_rules, ended.stdout) else ""


def _ran_if_there(tools: Tools, program: str, *arguments: str) -> ProgramEnd | None:
    """As `Tools.run`; None where the program is not installed."""
    try:
        return tools.run(program, *arguments)
    except Problem as problem:
        if problem.code == "tool_missing":
            return None
        raise


def _is_there(tools: Tools) -> bool:
    _, present = parsed(sources.foreign_tables, _nft(tools, "-j", "list", "tables").stdout)
    return bool(present)


def _listed(tools: Tools) -> tuple[Any, bytes]:
    """The decoded `nft -j list table`, and `nft -s list table`."""
    listing = parsed(json.loads, _nft(tools, "-j", "list", "table", *TABLE).stdout)
    return listing, _nft(tools, "-s", "list", "table", *TABLE).stdout


def _nft(tools: Tools, *arguments: str, stdin: bytes = b"") -> ProgramEnd:
    return ran(tools, PACKAGES, "nft", *arguments, stdin=stdin)


def _now_s() -> int:
    return int(time.time())


def _boottime_s() -> int:
    return int(time.clock_gettime(time.CLOCK_BOOTTIME))
