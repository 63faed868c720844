"""Shared by `latticed --recover` and `latticed --restore`: file ownership, and the lines they print."""

from __future__ import annotations

import os
import pwd
import sys
from typing import TYPE_CHECKING

from latticed.bundle.read import ReadLimits
from latticed.kit.clock import SystemClock
from latticed.lifecycle import recovery, restore_needs
from latticed.lifecycle import restore as restoring
from latticed.lifecycle.recovery import RecoveryPlace
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack
    from pathlib import Path

    from latticed.kit.tar import TarSource
    from latticed.settings import Settings
    from latticed.system.builtin import Builtin


def opened(name: str, stack: ExitStack) -> TarSource:
    """The backup `name` open for reading, `-` for stdin; closed by `stack`. Problem not_found.

    Open it before `become_owner`, whose user may not be able to read it.
    """
    if name == "-":
        return sys.stdin.buffer
    try:
        return stack.enter_context(open(name, "rb"))
    except OSError as error:
        raise Problem("not_found", f"cannot read the backup {name}: {error.strerror or error}") from error


def become_owner(state_dir: Path) -> None:
    """Switch from root to the owner of the state directory: the daemon could not use files owned by root.

    Does nothing when not run as root, without a state directory, or when root owns it. OSError when the kernel refuses.
    """
    if os.geteuid() != 0 or not state_dir.exists():
        return
    owner = state_dir.stat()
    if owner.st_uid == 0:
        return
    try:
        os.initgroups(pwd.getpwuid(owner.st_uid).pw_name, owner.st_gid)
    # A uid without an entry in passwd(5), as in containers: no supplementary groups, instead of root's.
    except KeyError:
        os.setgroups([])
    # Groups before the uid: without root neither may be changed any more (setgid(2), setgroups(2)).
    os.setgid(owner.st_gid)
    os.setuid(owner.st_uid)


def recover(place: RecoveryPlace, *, without_floors: bool) -> Iterator[str]:
    """Recover while the lines are read, which say what was done. Problems of `recovery.recover`.

    A generator: nothing happens before its first line is asked for.
    """
    done = recovery.recover(place, SystemClock(), without_floors=without_floors)
    # From here on it is done: the lines only report.
    yield f"the ledger was damaged: {done.damage}"
    yield f"set aside in {place.state_dir}: {', '.join(done.set_aside) or 'nothing was there'}"
    yield f"plugins that came back as verified, to be installed again: {done.verified}"
    yield f"ids of which only publisher, floor and masks are known: {done.tombstones}"
    yield f"revocations in force: {done.revocations}"
    if done.policy:
        yield f"the trust policy could not be used, so no stored plugin could be verified: {done.policy}"
    yield "key-value data and the audit chain before this are in what was set aside"


def restore(
    place: RecoveryPlace, settings: Settings, source: TarSource, *, public_key: str, without_floors: bool
) -> Iterator[str]:
    """Restore while the lines are read, which say what was done and what is missing. Problems of `restore.restore`.

    A generator: nothing happens before its first line is asked for, so `source` has to stay open until the last.
    """
    consent = restoring.RestoreConsent(public_key=public_key, without_floors=without_floors)
    done = restoring.restore(place, source, SystemClock(), consent)
    # From here on the restore is done: the lines only report.
    yield f"restored the backup of {done.created_at}, signed by {done.public_key}"
    yield f"plugins: {done.records}"
    if done.stricter:
        yield f"came back stricter than the backup has them: {', '.join(done.stricter)}"
    yield f"stored pairs: {done.pairs}"
    aside = settings.state_dir / done.set_aside
    if any(aside.iterdir()):  # a new machine had nothing
        yield f"what was there before: {aside}"
    if done.placed:
        yield f"bundles put into {settings.state_dir / restore_needs.BUNDLES}: {', '.join(done.placed)}"
    lacking = restore_needs.missing(place, settings, records=done.restored, sealed=done.sealed, were_set=done.settings)
    for words in lacking:
        yield f"missing: {words}"


def place(settings: Settings, builtins: tuple[Builtin, ...], version: str) -> RecoveryPlace:
    """Where recovery and restore work, and with which limits, by the settings, for a latticed of `version` that brings
    `builtins`.
    """
    limits = settings.limits
    return RecoveryPlace(
        state_dir=settings.state_dir,
        plugin_dir=settings.plugin_dir,
        trust=settings.trust,
        limits=ReadLimits(
            manifest_bytes=limits.manifest_bytes,
            artifact_bytes=limits.artifact_bytes,
            deadline_s=limits.read_deadline_s,
        ),
        version=version,
        builtins=builtins,
    )
