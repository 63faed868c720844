"""Changes that the reader of the catalog has not taken yet: the latest verdict of each name, if it differs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from latticed.kit.value import Value
from latticed.model.verdict import Verdict, Verified

if TYPE_CHECKING:
    from collections.abc import Iterable


class Sighting(Value, frozen=True, kw_only=True):
    """What is known of one bundle now: `verdict` None means that it is gone.

    `name` is `<directory label>/<bundle name>`; bytes that are not UTF-8 are surrogate escapes (os.fsdecode).
    """

    name: str
    verdict: Verdict | None


def same(one: Verdict | None, other: Verdict | None) -> bool:
    """Whether `other` after `one` is no change: the same identity, artifact and key, the same refusal, or gone.

    Of a refusal all counts: `latticectl rejected` shows its reason, its hint, and what the bundle claims to be.
    """
    match one, other:
        case Verified(), Verified():
            # The key, too: the same content may come signed by another key, which replaces the stored signature.
            return (one.identity, one.artifact_sha256, one.key) == (other.identity, other.artifact_sha256, other.key)
        case _:
            return one == other


class Coalescer:
    """Coalesces for one reader: however slow it is, no more than one sighting per name waits for it."""

    def __init__(self) -> None:
        self._reported: dict[str, Verdict] = {}
        """What the reader knows, by name; a name that is gone is not in it."""
        self._pending: dict[str, Verdict | None] = {}
        """What it is to take next, by name; None: the bundle is gone."""
        self._news = asyncio.Event()

    def post(self, found: Iterable[tuple[str, Verdict | None]]) -> None:
        """Take in the verdicts on these names; what the reader knows already is dropped."""
        for name, verdict in found:
            if same(self._reported.get(name), verdict):
                # Changed and changed back before the reader took it: no change any more.
                self._pending.pop(name, None)
            else:
                self._pending[name] = verdict
        if self._pending:
            self._news.set()

    def wake(self) -> None:
        """Have `wait` return even without changes."""
        self._news.set()

    async def wait(self) -> None:
        """Return when there may be changes."""
        await self._news.wait()

    def take(self) -> tuple[Sighting, ...]:
        """All changes since the last call; the reader is taken to know them from now on."""
        self._news.clear()
        batch = tuple(Sighting(name=name, verdict=verdict) for name, verdict in self._pending.items())
        self._pending.clear()
        for sighting in batch:
            if sighting.verdict is None:
                # Memory is bounded by what is there now, not by all that ever was.
                self._reported.pop(sighting.name, None)
            else:
                self._reported[sighting.name] = sighting.verdict
        return batch
