"""What was seen last of each source, in the ledger and in the signed floors: of both the stricter counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latticed.ledger import market as rows
from latticed.ledger.floors import SeenIndex
from latticed.trust.signed_document import SeenDocument

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from latticed.ledger import Ledger, Transaction


class RememberedSources:
    """Of `ledger`."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def newest(self, name: str, keys: Iterable[str]) -> SeenIndex | None:
        """The newest that was remembered under `name`. What held under none of `keys` counts for nothing: whoever had
        such a key could have set it far ahead (docs/adr/0028).
        """
        both = (self._ledger.read(lambda db: rows.seen(db, name)), self._ledger.sources.get(name))
        wanted = frozenset(keys)
        counting = [one for one in both if one is not None and wanted.intersection(one.keys)]
        return max(counting, key=lambda one: one.generated_s, default=None)

    def last(self, name: str) -> SeenIndex | None:
        """What was taken last under `name`, whatever its keys: to tell of it, never to judge by it."""
        return self._ledger.read(lambda db: rows.seen(db, name)) or self._ledger.sources.get(name)

    def document(self, name: str, keys: Iterable[str]) -> SeenDocument | None:
        """As `newest`, of a signed document."""
        found = self.newest(name, keys)
        if found is None:
            return None
        return SeenDocument(
            generated_at=found.generated_at,
            generated_s=found.generated_s,
            sha256=found.sha256,
            keys=frozenset(found.keys),
        )

    async def keep(self, seen: Mapping[str, SeenIndex]) -> frozenset[str]:
        """Remember what is not remembered yet, and return its names. Problem ledger_unavailable."""
        fresh = {
            name: one
            for name, one in seen.items()
            for known in (self._ledger.read(lambda db, name=name: rows.seen(db, name)), self._ledger.sources.get(name))  # type: ignore[misc]
            if known is None or known.sha256 != one.sha256
        }

        def change(tx: Transaction) -> None:
            for name, one in fresh.items():
                rows.remember(tx, name, one)

        if fresh:
            await self._ledger.write(change, durable=True)
            await self._ledger.remember_sources(fresh)
        return frozenset(fresh)


def kept(seen: SeenDocument) -> SeenIndex:
    """What the ledger and the floors remember of a document."""
    return SeenIndex(
        generated_at=seen.generated_at,
        generated_s=seen.generated_s,
        sha256=seen.sha256,
        keys=tuple(sorted(seen.keys)),
    )
