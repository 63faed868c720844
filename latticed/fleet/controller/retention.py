"""What a controller need not keep any more: rollouts that are over, used invitations, bundles that nothing names, and
intents that have expired and that nobody has.

Decided over what is known (`outdated`), then dropped from database, directory and message system by whoever leads: the
other controllers have it until they lead, but for intents. What was not dropped everywhere, because something failed,
is learnt again, and dropped at the next look.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from latticed.fleet import enrolment
from latticed.fleet.controller import holding, records, store
from latticed.kit import logs
from latticed.kit.value import Value

if TYPE_CHECKING:
    from pathlib import Path

    from latticed.fleet.controller.core import FleetCore
    from latticed.fleet.controller.database import Connection
    from latticed.fleet.controller.leader import Leader
    from latticed.fleet.controller.records import JoinedRecord

log = logs.get_logger()


class Outdated(Value, frozen=True, kw_only=True):
    """Names of rollouts, tokens of invitations, SHA-256 of bundles' files."""

    rollouts: tuple[str, ...]
    tokens: tuple[str, ...]
    bundles: tuple[str, ...]


def outdated(core: FleetCore, *, now_s: int, keep_s: int) -> Outdated:
    """What was over, expired or without use `keep_s` seconds ago.

    Of a node that there is, the request by which it joined stays: it proves its key, and says by which key it connects;
    and its first one, by which it has its name before others (`holding`).
    """
    before_s = now_s - keep_s
    needed = _needed(core)
    return Outdated(
        rollouts=tuple(one.name for one in core.rollouts.values() if one.over and one.changed < before_s),
        tokens=tuple(
            one.token
            for one in core.tokens.values()
            if one.token not in needed and max(one.expires, core.revoked_since.get(one.key, 0)) < before_s
        ),
        bundles=_without_use(core, now_s=now_s, before_s=before_s),
    )


def _needed(core: FleetCore) -> frozenset[str]:
    """Tokens of the first request of each key that a node has, and of the newest of each of its users."""
    newest: dict[tuple[str, str], JoinedRecord] = {}
    first: dict[str, JoinedRecord] = {}
    for one in core.tokens.values():
        node = core.nodes.get(one.node)
        if node is None or node.key != one.key:
            continue
        place = (one.key, enrolment.user_of(one.request) if one.request else "")
        if place not in newest or newest[place].expires < one.expires:
            newest[place] = one
        first[one.node] = min(one, first.get(one.node, one), key=holding.age)
    return frozenset(one.token for one in (*newest.values(), *first.values()))


def _without_use(core: FleetCore, *, now_s: int, before_s: int) -> tuple[str, ...]:
    old = [one for one in core.bundles.values() if one.received < before_s]
    if not old:
        return ()
    meant = _meant(core)
    used = {
        source.sha256
        for intent in core.shelf.intents
        if intent in meant or not core.shelf.counts(intent, now_s=now_s)
        for source in core.sources_for(intent)
    }
    return tuple(one.sha256 for one in old if one.sha256 not in used)


def _meant(core: FleetCore) -> set[str]:
    """Intents that nodes are to have, or may be given by a rollout that is known still."""
    meant = {one.intent for one in core.assignments.values()}
    for record in core.rollouts.values():
        meant |= {record.release, record.before, *record.befores}
    return meant


def outdated_intents(core: FleetCore, *, before_s: int) -> frozenset[str]:
    """Those that expired before then and that no node has or is to have; of all the newest stays, as its generation is
    the one that others have to be above.
    """
    intents = core.shelf.intents
    needed = _meant(core) | {one.intent for one in core.statuses.values()}
    newest = max((one.document.generation for one in intents.values()), default=0)
    return frozenset(
        name
        for name, one in intents.items()
        if one.document.expires < before_s and name not in needed and one.document.generation < newest
    )


async def drop_intents(core: FleetCore, *, keep_s: int) -> None:
    """Drop intents that are outdated here; each controller does. Problem store_unavailable."""
    async with core.changing:  # the thread goes through what the loop changes
        found = await asyncio.to_thread(outdated_intents, core, before_s=core.now_s() - keep_s)
        if found:
            await core.forget_intents(found)
            log.info("intents_dropped", intents=len(found))


async def drop(core: FleetCore, leader: Leader, bundles: Path, *, keep_s: int) -> Outdated:
    """Drop what is outdated, wherever it is. Problem store_unavailable; EngineUnavailable, Conflict, OSError.

    What fails is for the next look.
    """
    await leader.forget_documents(before_s=core.now_s() - keep_s)
    async with core.changing:
        found = await asyncio.to_thread(outdated, core, now_s=core.now_s(), keep_s=keep_s)
        if found == Outdated(rollouts=(), tokens=(), bundles=()):
            return found

        def change(connection: Connection) -> None:
            store.drop(connection, rollouts=found.rollouts, tokens=found.tokens, bundles=found.bundles)

        await leader.forget((), found.bundles)
        await core.write(change)
        shared = [records.name_of(core.rollouts.pop(name)) for name in found.rollouts]
        shared += [records.name_of(core.tokens.pop(token)) for token in found.tokens]
        for sha256 in found.bundles:
            core.bundles.pop(sha256, None)
    counts = {"rollouts": len(found.rollouts), "tokens": len(found.tokens), "bundles": len(found.bundles)}
    log.info("outdated_dropped", **counts)
    for sha256 in found.bundles:
        await asyncio.to_thread((bundles / f"{sha256}.tar").unlink, missing_ok=True)
    await leader.forget(shared, ())
    return found
