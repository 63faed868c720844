"""`latticed --recover`: replace a damaged ledger by a new one, from the store and the signed floors file.

Rows of the damaged ledger are not trusted: what can be read of them may add masks, revocations and higher floors, but
grants nothing. No plugin comes back active; the operator decides again. Key-value data and the old audit chain stay in
the file that is set aside. Runs with the daemon stopped; blocks.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from latticed.catalog.builtins import Builtins
from latticed.catalog.store import Store
from latticed.kit.clock import rfc3339
from latticed.ledger import floors, integrity, rebuild, records, revocations, state
from latticed.lifecycle import merge_after_loss
from latticed.lifecycle.policy import PolicyKeeper
from latticed.lifecycle.revocations import floors_of
from latticed.model import ids
from latticed.model.audit import DAEMON, Event
from latticed.model.errors import Problem
from latticed.model.verdict import Verified
from latticed.trust.policy import Revoked

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from latticed.bundle.read import ReadLimits
    from latticed.kit.clock import Clock
    from latticed.ledger.rebuild import RecoveredRows
    from latticed.ledger.transaction import Transaction
    from latticed.model.chain import Head
    from latticed.model.lifecycle import Record
    from latticed.system.builtin import Builtin

FRESH: Final = f"{state.DATABASE}.fresh"
"""File name of the new ledger until it is complete; in the same directory, so that renaming it is one step."""
_NO_FLOORS: Final = (
    "keep a copy of the state directory; put floors.json and host.key back from a backup, or restore the backup, or, "
    "forgetting version floors, masks and lifted grants: latticed --recover --without-floors"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPlace:
    """Paths and limits to work with.

    `trust` is the policy file, `version` the host version to verify pairs for, `limits` those for reading a stored
    pair, `builtins` the plugins that this latticed brings.
    """

    state_dir: Path
    plugin_dir: Path
    trust: Path
    limits: ReadLimits
    version: str
    builtins: tuple[Builtin, ...] = ()

    def store(self) -> Store:
        """The pairs of the state directory, and of the built-in plugins."""
        builtins = Builtins(self.builtins, version=self.version)
        return Store(self.state_dir / "store", limits=self.limits, builtins=builtins)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryReport:
    """What recovery did, for the lines that it prints.

    `damage` says what was wrong; `set_aside` are the new names of what was renamed. `verified`, `tombstones` and
    `revocations` are counts. `policy` says why the trust policy could not be used, empty when it could.
    """

    damage: str
    set_aside: tuple[str, ...]
    verified: int
    tombstones: int
    revocations: int
    policy: str = ""


def recover(place: RecoveryPlace, clock: Clock, *, without_floors: bool = False) -> RecoveryReport:
    """Replace the damaged ledger. Problems: ledger_sound, floors_invalid, state_in_use, state_unusable.

    `without_floors` continues when the floors file is lost or not genuine; a genuine one is still used.
    """
    with state.locked(place.state_dir):
        found = rebuild.diagnosis(place.state_dir)
        # A sound ledger is never replaced: recovery would lose every decision that is not in the floors.
        if not found:
            _forget_note(place.state_dir)
            detail = f"the ledger in {place.state_dir} is not damaged: it was checked wholly"
            raise Problem("ledger_sound", detail, "start latticed as ever")
        # Before anything is written: without genuine floors the operator has to say so (`without_floors`).
        kept = _floors(place.state_dir, without_floors=without_floors)
        try:
            return _Recovery(place, clock, found, without_floors=kept is None).perform(kept or floors.Floors())
        except OSError as error:
            detail = f"cannot write in {place.state_dir}: {error.strerror or error}"
            raise Problem("state_unusable", detail, "nothing is lost: mend it and run this again") from error


class _Recovery:
    """One recovery, under the lock of the state directory; `found` says what is wrong with the ledger."""

    def __init__(self, place: RecoveryPlace, clock: Clock, found: str, *, without_floors: bool) -> None:
        self._place = place
        self._clock = clock
        self._damage = found
        self._without_floors = without_floors
        self._database = place.state_dir / state.DATABASE
        self._label = f"damaged-{_stamp(clock)}"
        """Appended to the names of what is set aside."""

    def perform(self, kept: floors.Floors) -> RecoveryReport:
        """Build the new ledger and floors beside the damaged ledger, then swap; the report. OSError when a write fails.

        The damaged ledger stays in place until the renames at its end, so that recovery can be run again after a
        failure.
        """
        directory = self._place.state_dir
        # What can still be read of the damaged ledger; its hash goes on record, so that what was set aside can be
        # recognized.
        salvage = rebuild.read_damaged(self._database)
        before = rebuild.fingerprint(self._database)
        # Revocations of both count: they only take away.
        revoked = Revoked(**{kind: getattr(kept.revoked, kind) for kind in revocations.KINDS})
        revoked |= Revoked(**{kind: getattr(salvage.revoked, kind) for kind in revocations.KINDS})
        # Every id that a stored pair, the floors or the old rows know gets a record.
        policy = self._policy(revoked)
        rebuilt = self._records(policy, kept, salvage)
        # The key that signs the new chain: the old one if it can be read.
        set_aside = self._set_aside_key()
        key = state.load_key(directory)
        report = RecoveryReport(
            damage=self._damage,
            set_aside=set_aside,
            verified=sum(not record.forgotten for record in rebuilt),
            tombstones=sum(record.forgotten for record in rebuilt),
            revocations=sum(len(getattr(policy.current.revoked, kind)) for kind in revocations.KINDS),
            policy=str(policy.problem.reason) if policy.problem else "",
        )
        # The ledger first, since the floors name its newest head.
        head = self._write(key, rebuilt, policy.current.revoked, self._event(report, salvage, before))
        wanted = replace(floors_of(rebuilt, policy.current.revoked), sources=kept.sources)
        replaced, now = (*salvage.heads, *kept.replaced), rfc3339(self._clock.wall_us())
        floors.write(directory, floors.of_replaced(wanted, head, now, replaced), key)
        # Floors and new ledger are complete before the renames; a start refuses a host key without a ledger.
        moved = rebuild.set_aside(directory, self._label)
        rebuild.put_in_place(directory, directory / FRESH)
        return _with(report, moved)

    def _policy(self, revoked: Revoked) -> PolicyKeeper:
        """The policy file of now, joined with these revocations; with a bad file nothing verifies."""
        keeper = PolicyKeeper(self._place.trust, owners=frozenset({0, os.geteuid()}), remembered=revoked)
        keeper.look(always=True)
        return keeper

    def _records(self, policy: PolicyKeeper, kept: floors.Floors, salvage: RecoveredRows) -> list[Record]:
        """A record for every id that is known from anywhere, sorted by id (`merge_after_loss.rebuilt`)."""
        pairs = self._pairs(policy)
        # Rows of a damaged database may hold anything: an id that cannot be one is left out.
        remembered = {record.id: record for record in salvage.records if ids.is_valid(record.id)}
        known = {*pairs, *remembered, *kept.pins, *kept.versions, *kept.masked}
        now_us = self._clock.wall_us()
        return [
            merge_after_loss.rebuilt(one, pairs.get(one, ()), kept, remembered.get(one), now_us=now_us)
            for one in sorted(known)
        ]

    def _pairs(self, policy: PolicyKeeper) -> Mapping[str, list[Verified]]:
        """The stored pairs that verify under `policy`, by plugin id."""
        store = self._place.store()
        found: defaultdict[str, list[Verified]] = defaultdict(list)
        for identity in store.identities():
            verdict = store.verify(identity, policy.current, host_version=self._place.version)
            if isinstance(verdict, Verified):
                found[verdict.manifest.id].append(verdict)
        return found

    def _set_aside_key(self) -> tuple[str, ...]:
        """Rename floors that are not genuine, and replace a host key that cannot be loaded; the new names of both."""
        directory = self._place.state_dir
        moved = []
        if self._without_floors and floors.present(directory):
            os.rename(directory / floors.FILE, directory / f"{floors.FILE}.{self._label}")
            moved.append(f"{floors.FILE}.{self._label}")
        try:
            # It may be missing, be no key, or be readable by others: a new one is made in each case.
            state.load_key(directory)
        except Problem:
            if (directory / state.HOST_KEY).exists():
                os.rename(directory / state.HOST_KEY, directory / f"{state.HOST_KEY}.{self._label}")
                moved.append(f"{state.HOST_KEY}.{self._label}")
            state.make_key(directory)
        return tuple(moved)

    def _event(self, report: RecoveryReport, salvage: RecoveredRows, before: str) -> Event:
        """The first event of the new chain: what was found, and where the lost chains ended as far as could be read.

        `before` is the SHA-256 of the damaged database, empty when there was none to be read.
        """
        return Event(
            actor=str(DAEMON),
            action="ledger.recovered",
            target="ledger",
            reason=self._damage,
            detail={
                "verified": report.verified,
                "tombstones": report.tombstones,
                "revocations": report.revocations,
                "without_floors": self._without_floors,
                "set_aside": f"{state.DATABASE}.{self._label}" if before else "",
                "sha256": before,
                "last_seq": salvage.last_seq,
                "last_hash": salvage.last_hash,
                "calls_seq": salvage.calls_seq,
                "calls_hash": salvage.calls_hash,
            },
        )

    def _write(self, key: Ed25519PrivateKey, rebuilt: list[Record], revoked: Revoked, event: Event) -> Head | None:
        """Make the new ledger with these rows; the signed head of its chain."""
        seen = revocations.RevocationRows(**{kind: getattr(revoked, kind) for kind in revocations.KINDS})

        def change(tx: Transaction) -> None:
            tx.append_audit(event)
            for record in rebuilt:
                records.put(tx, record)
            revocations.remember(tx, seen, now_us=self._clock.wall_us())

        fresh = self._place.state_dir / FRESH
        rebuild.discard(fresh)  # left by an interrupted recovery
        return rebuild.write(fresh, key, self._clock, change)


def _floors(directory: Path, *, without_floors: bool) -> floors.Floors | None:
    """The signed floors; None if they cannot be used and `without_floors` allows that, else Problem floors_invalid."""
    try:
        return rebuild.trusted_floors(directory, state.load_key(directory))
    except Problem as problem:
        if without_floors:
            return None
        raise Problem("floors_invalid", f"cannot recover: {problem.reason}", _NO_FLOORS) from problem


def _forget_note(directory: Path) -> None:
    """Remove the note of damage that a start left: the ledger reads well again."""
    (directory / integrity.NOTE).unlink(missing_ok=True)


def _stamp(clock: Clock) -> str:
    """The time, for file names: RFC 3339 without its colons and dashes."""
    return rfc3339(clock.wall_us()).replace(":", "").replace("-", "")


def _with(report: RecoveryReport, moved: tuple[str, ...]) -> RecoveryReport:
    """`report` with the names of the ledger's own files added, which are known only after the swap."""
    return RecoveryReport(
        damage=report.damage,
        set_aside=(*moved, *report.set_aside),
        verified=report.verified,
        tombstones=report.tombstones,
        revocations=report.revocations,
        policy=report.policy,
    )
