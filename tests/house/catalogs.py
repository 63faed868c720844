"""A real catalog over real directories, read by a real reader; waiting is for a condition, with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from latticed.bundle.read import ReadLimits
from latticed.catalog import Catalog, Sighting
from latticed.kit.clock import SystemClock
from latticed.model.verdict import Refused, Verdict, Verified
from latticed.settings import WatchSettings
from latticed.trust import policy as policies
from tests.house import bundles, processes

DEADLINE_S = processes.PATIENCE_S
HOST_VERSION = "0.1.0"
SWIFT = WatchSettings(quiet_s=0.05, max_wait_s=0.5, rescan_s=60.0)


def plain(verdict: Verdict) -> str:
    """A verdict as one word: the code of a refusal, the identity of what verifies."""
    match verdict:
        case Verified():
            return verdict.identity
        case Refused():
            return verdict.code.value


def verdicts(catalog: Catalog) -> dict[str, Verdict]:
    """The verdict on every bundle there is now, by name."""
    directories = catalog._directories.items()
    return {f"{label}/{name}": entry.verdict for label, one in directories for name, entry in one.entries.items()}


def view(verdicts: Mapping[str, Verdict]) -> dict[str, str]:
    return {name: plain(verdict) for name, verdict in verdicts.items()}


class Seen:
    """What the one reader of a catalog was told, batch after batch."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.batches: list[tuple[Sighting, ...]] = []
        self.now: dict[str, Verdict] = {}

    async def read(self) -> None:
        async for batch in self.catalog.changes():
            self.batches.append(batch)
            for sighting in batch:
                if sighting.verdict is None:
                    del self.now[sighting.name]
                else:
                    self.now[sighting.name] = sighting.verdict

    def told(self, name: str) -> list[str]:
        """All sightings of `name` that were reported, in order."""
        said = [sighting for batch in self.batches for sighting in batch if sighting.name == name]
        return ["gone" if one.verdict is None else plain(one.verdict) for one in said]

    def code(self, name: str) -> str | None:
        """`verified`, a refusal's code, or None for what is not there."""
        verdict = self.now.get(name)
        if verdict is None:
            return None
        return "verified" if isinstance(verdict, Verified) else plain(verdict)


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait for `condition` to hold; fail when it does not within DEADLINE_S."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what or condition}"
        await asyncio.sleep(0.01)


def trusting(*authors: bundles.Author, **fields: object) -> policies.TrustPolicy:
    return policies.decode(json.dumps(bundles.policy(*authors, **fields)).encode())


@contextlib.asynccontextmanager
async def watching(
    directory: Path | Mapping[str, Path],
    *authors: bundles.Author,
    policy: Callable[[], policies.TrustPolicy] | None = None,
    watch: WatchSettings = SWIFT,
    limits: ReadLimits | None = None,
    **options: object,
) -> AsyncIterator[Seen]:
    """A catalog (label `plugins` unless labels are given) that trusts `authors`, and its reader."""
    trusted = trusting(*authors)
    catalog = Catalog(
        {"plugins": directory} if isinstance(directory, Path) else directory,
        policy=policy or (lambda: trusted),
        host_version=HOST_VERSION,
        limits=limits,
        watch=watch,
        clock=SystemClock(),
        **options,  # type: ignore[arg-type]
    )
    async with catalog:
        seen = Seen(catalog)
        reader = asyncio.create_task(seen.read())
        try:
            await until(lambda: seen.batches, "the first batch")
            yield seen
            assert not reader.done(), reader
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)


async def fresh_view(directory: Path, *authors: bundles.Author) -> dict[str, str]:
    """The verdicts of a catalog that reads the directory for the first time."""
    async with watching(directory, *authors) as seen:
        return view(seen.now)


async def settled(seen: Seen, directory: Path, *authors: bundles.Author) -> None:
    """Wait until the catalog, and the sightings that its reader got, equal what a new catalog sees."""
    truth = await fresh_view(directory, *authors)
    await until(lambda: view(verdicts(seen.catalog)) == truth and view(seen.now) == truth, f"equal to {truth}")


def age(directory: Path) -> None:
    """Wait until the clock has passed the files' times: only then does a fingerprint show every change."""
    newest = max(path.stat().st_ctime_ns for path in directory.rglob("*"))
    while time.time_ns() - newest < 200_000_000:
        time.sleep(0.01)
