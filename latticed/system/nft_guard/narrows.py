"""Whether a new intent only takes away from the one that an operator approved (contracts §12).

Such a change needs no approval of its own: a ban more, or one that lasts longer; a rule fewer that accepted, or one
that accepts less; a rule more that drops; a zone that is trusted no more, or guarded from now on. An earlier end of a
ban is none: it lets packets through that were dropped. When in doubt the answer is no, and the operator is asked.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from latticed.system.nft_guard import compile as compiler
from latticed.system.nft_guard import table as tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latticed.model.addresses import Network
    from latticed.system.nft_guard.intent import Intent, Ports, Rate
    from latticed.system.nft_guard.table import Chain, Line, Table

MAX_WORK: Final = 1_000_000
"""Comparisons of fields, at most some 2 s: the root helper must not be kept busy by intents made for it."""


def narrows(approved: Intent, new: Intent, *, now_s: int | None = None) -> bool:
    """True only when no packet passes with `new` that `approved` stops. Both must have passed `check`.

    A ban of `approved` may be left out once it is over at `now_s` (seconds since 1970); without that, never.
    """
    if approved == new:
        return True
    # `never` protects the operator from bans, which are what a change without approval may add.
    if set(approved.never) != set(new.never) or approved.bindings.managed != new.bindings.managed:
        return False
    if not _bans_kept(approved, new, now_s):
        return False
    old_table, new_table = compiler.table(approved), compiler.table(new)
    if old_table is None or new_table is None:
        return True
    return _tables_narrow(old_table, new_table)


def _bans_kept(approved: Intent, new: Intent, now_s: int | None) -> bool:
    until = {ban.network: ban.expires_at for ban in new.bans}
    return all(
        until.get(ban.network, -1) >= ban.expires_at or (now_s is not None and ban.expires_at <= now_s)
        for ban in approved.bans
    )


def _tables_narrow(old: Table, new: Table) -> bool:
    if not _limits_kept(old, new):
        return False
    rates = (dict(old.limits), dict(new.limits))
    if not all(_chains_narrow(old.chain(name), new.chain(name), rates) for name in (tables.INPUT, tables.OUTPUT)):
        return False
    # Forwarded: the lines that jump say which traffic is guarded, and the guarded chain what of it passes.
    was, now = _jumps(old), _jumps(new)
    if not set(was) <= set(now):
        if _weight(was) * _weight(now) > MAX_WORK:
            return False
        if not all(any(_covers(later, line) for later in now) for line in was):
            return False
    return not was or _chains_narrow(old.chain(tables.GUARDED), new.chain(tables.GUARDED), rates)


def _jumps(table: Table) -> list[Line]:
    return [line for line in table.chain(tables.FORWARD).lines if line.verdict == tables.GUARDED]


def _chains_narrow(old: Chain, new: Chain, rates: tuple[dict[str, Rate], dict[str, Rate]]) -> bool:
    """Whether all that `new` accepts was accepted: its lines are those of `old`, some of them changed to less.

    There is a walk through both at once, in which every line of `new` that accepts stands at a line of `old` that
    accepts at least as much, and every line of `old` that denies at a line of `new` that denies at least as much. A
    packet that `new` accepts at such a line then passed `old`: whatever denies it earlier in `old` has its equal
    earlier in `new`, which would have denied it there.
    """
    before, after = _deciding(old), _deciding(new)
    if _weight(before) * _weight(after) > MAX_WORK:
        before, after = _differing(before, after)
    if _weight(before) * _weight(after) > MAX_WORK:
        return False
    # The lines of `old` to which a walk can have come, for each line of `new`; both ends included.
    reached = _skipped({0}, before)
    for line in after:
        if line.verdict == "accept":
            reached = {place for place in reached if place < len(before) and _accepted(before[place], line, rates)}
        elif line.verdict == "drop" or any(replace(line, comment="") == replace(one, comment="") for one in before):
            reached = _denied(reached, before, line)
        else:
            return False  # a new reject answers where nothing did
        reached = _skipped(reached, before)
        if not reached:
            return False
    return len(before) in reached


def _deciding(chain: Chain) -> list[Line]:
    """The lines that accept or deny, with the chain's policy as the last."""
    policy = [tables.Line(verdict=chain.policy)] if chain.policy else []
    return [line for line in (*chain.lines, *policy) if line.verdict]


def _differing(before: list[Line], after: list[Line]) -> tuple[list[Line], list[Line]]:
    """Both without the lines at the beginning and at the end that are equal, which stand at each other in a walk.

    Fewer walks are found so: a line that is left out can be where others stand too. Limits have numbers for names: a
    line with one is not equal only because of its name.
    """
    shortest = min(len(before), len(after))
    same = (one == other and not one.limit for one, other in zip(before, after, strict=False))
    start = next((index for index, equal in enumerate(same) if not equal), shortest)
    same = (one == other and not one.limit for one, other in zip(reversed(before), reversed(after), strict=False))
    end = next((index for index, equal in enumerate(same) if not equal), shortest)
    end = min(end, shortest - start)
    return before[start : len(before) - end], after[start : len(after) - end]


def _weight(lines: Sequence[Line]) -> int:
    """What comparing a line with each of these costs, in comparisons of one field."""
    return sum(
        1 + len(one.source) + len(one.destination) + len(one.dport) + len(one.inbound) + len(one.outbound)
        for one in lines
    )


def _skipped(reached: set[int], before: Sequence[Line]) -> set[int]:
    """With every place behind lines that accept: those may be left out."""
    found = set(reached)
    for place in range(len(before)):
        if place in found and before[place].verdict == "accept":
            found.add(place + 1)
    return found


def _denied(reached: set[int], before: Sequence[Line], line: Line) -> set[int]:
    """With every place behind lines that deny no more than `line`, and those that accept, which may be left out."""
    found = set(reached)
    if line.limit:
        return found
    for place in range(len(before)):
        if place in found and (before[place].verdict == "accept" or _covers(line, before[place])):
            found.add(place + 1)
    return found


def _accepted(was: Line, now: Line, rates: tuple[dict[str, Rate], dict[str, Rate]]) -> bool:
    if was.verdict != "accept" or not _covers(was, now):
        return False
    if not was.limit:
        return True
    # _limits_kept has seen that no more limits of this content exist than before.
    return bool(now.limit) and rates[1][now.limit].lower_or_equal(rates[0][was.limit])


def _limits_kept(old: Table, new: Table) -> bool:
    """Whether limits were neither multiplied nor divided: two rules of 10/s for one would let 20/s pass.

    A limit stands for all lines that share it. Those of `new` whose lines are the same as of one in `old` are counted;
    others may be there only for what was not limited before, which `_accepted` sees to for lines that were.
    """
    was, now = _sharing(old), _sharing(new)
    limited = {line for lines in was for line in lines}
    more = {line for lines, count in now.items() if count > was[lines] for line in lines}
    if len(more) * len(limited) > MAX_WORK:
        return False
    return not any(_overlap(line, other) for line in more for other in limited)


def _sharing(table: Table) -> Counter[frozenset[tuple[str, Line]]]:
    """For each limit the lines that share it, without its name; how many limits have the same lines."""
    lines: dict[str, set[tuple[str, Line]]] = {name: set() for name, _ in table.limits}
    for chain in table.chains:
        for line in chain.lines:
            if line.limit:
                lines[line.limit].add((chain.name, replace(line, limit="", comment="")))
    return Counter(frozenset(found) for found in lines.values())


def _overlap(one: tuple[str, Line], other: tuple[str, Line]) -> bool:
    """Whether a packet could fit both; where that takes thought, yes."""
    (chain, line), (other_chain, other_line) = one, other
    protos = {line.proto, other_line.proto} - {""}
    return chain == other_chain and len(protos) < 2


def _covers(wide: Line, narrow: Line) -> bool:
    """Whether every packet that fits `narrow` fits `wide`; limits, logs and comments aside."""
    return (
        wide.proto in {"", narrow.proto}
        and _one_of(wide.states, narrow.states)
        and (not wide.reply or narrow.reply)
        and _one_of(wide.inbound, narrow.inbound)
        and _one_of(wide.outbound, narrow.outbound)
        and wide.family in {0, narrow.family}
        and _networks_cover(wide.source, narrow.source)
        and _networks_cover(wide.destination, narrow.destination)
        and (not wide.banned or narrow.banned)
        and _ports_cover(wide.sport, narrow.sport)
        and _ports_cover(wide.dport, narrow.dport)
        and _one_of(wide.icmp, narrow.icmp)
        and wide.hop_limit in {0, narrow.hop_limit}
    )


def _one_of(wide: tuple[str, ...], narrow: tuple[str, ...]) -> bool:
    return not wide or (bool(narrow) and set(narrow) <= set(wide))


def _networks_cover(wide: tuple[Network, ...], narrow: tuple[Network, ...]) -> bool:
    # Neighbours are joined in both, so that what is covered at all is covered by one network.
    return not wide or (bool(narrow) and all(any(_subnet(one, other) for other in wide) for one in narrow))


def _subnet(inner: Network, outer: Network) -> bool:
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]


def _ports_cover(wide: tuple[Ports, ...], narrow: tuple[Ports, ...]) -> bool:
    return not wide or (
        bool(narrow) and all(any(other.low <= one.low and one.high <= other.high for other in wide) for one in narrow)
    )
