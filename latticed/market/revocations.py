"""What sources take back reaches what was ever taken of them, for good."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING

from latticed.kit import tasks
from latticed.ledger import market as rows
from latticed.ledger.revocations import RevocationRows
from latticed.market import rules
from latticed.trust.index_revocations import covering

if TYPE_CHECKING:
    from latticed.market.deps import MarketDeps
    from latticed.trust.index import Release
    from latticed.trust.index_revocations import SourceRevocation


class SourceRevocations:
    """See the module.

    `placing`: placing a bundle and reaching what was placed exclude each other. What is revoked while it is fetched is
    refused, and a fix that was just placed is not removed for what it mends.
    """

    def __init__(self, deps: MarketDeps) -> None:
        self._deps = deps
        self.placing = asyncio.Lock()

    def check(self, source: str, plugin_id: str, release: Release) -> None:
        """Problem release_revoked for a release that its source has taken back."""
        meant = covering(plugin_id, release.version, release.artifact_sha256)
        found = self._deps.ledger.read(lambda db: rows.revocations_of(db, source, meant))
        rules.check_revoked(release, plugin_id, found)

    async def apply(self, source: str, found: tuple[SourceRevocation, ...], now_us: int) -> None:
        """Have what a source takes back now count for good. Problem ledger_unavailable: what is to stop has stopped."""
        ledger = self._deps.ledger
        listed = [(one.kind, one.value, one.action, one.reason) for one in found]
        async with self.placing:
            # First what stops something; the disk may be full.
            await self._reach(source, found)
            await ledger.write(
                lambda tx: rows.note_revocations(tx, source, listed, now_us=now_us), durable=True, essential=True
            )

    async def _reach(self, source: str, found: tuple[SourceRevocation, ...]) -> None:
        """Stop what was ever taken of `source` and is frozen or killed by it; a killed one's bundle is removed, too.

        What is kept for a rollback counts as well: a release that was taken back never starts again.
        """
        stopping: dict[tuple[str, str], list[SourceRevocation]] = {}
        for one in found:
            if one.action != "block-install":
                stopping.setdefault((one.kind, one.value), []).append(one)
        taken = self._deps.ledger.read(lambda db: rows.taken_of(db, source)) if stopping else []
        named = [(meant, it) for it in taken for meant in covering(it.id, it.version, it.sha256) if meant in stopping]
        # Of what is known those alone are read: there may be 100,000.
        known = self._deps.ledger.read(lambda db: rows.revocations_of(db, source, {meant for meant, _ in named}))
        done = {row[:3] for row in known}
        # Not again what an operator may have lifted since.
        hits = [
            (one, it) for meant, it in named for one in stopping[meant] if (one.kind, one.value, one.action) not in done
        ]
        if not hits:
            return
        # The versions that were taken, not `id@*`: others may have come from elsewhere, where it has no say.
        plugins = frozenset(f"{it.id}@{it.version}" for one, it in hits if one.kind == "plugins")
        digests = frozenset(one.value for one, _ in hits if one.kind == "digests")
        await self._deps.revoke(RevocationRows(plugins=plugins, digests=digests), source)
        shelf = self._deps.shelf

        def remove(it: rows.Taken) -> None:
            if shelf.digest(it.id) == it.sha256:
                shelf.remove(it.id)

        for one, it in hits:
            if one.action == "kill":
                # Whole, also when cancelled: later it would remove what is placed meanwhile.
                await tasks.in_thread(functools.partial(remove, it))
