"""What a format of sources has to do: bring an index that counts, and files that it names.

Judging what a release may be is the market's; how a file is known to be the source's is the format's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from latticed.ledger.floors import SeenIndex
    from latticed.market.fetch import Fetched, FetchProgress
    from latticed.market.sources import MarketSource
    from latticed.trust.index import Index, JudgedIndex
    from latticed.trust.index_revocations import SourceRevocation


REVOCATIONS: Final = "revocations"
"""In `expires`: what a source takes back, once it ever had any."""
ROLES: Final = ("root", "timestamp", "snapshot", "targets")
"""That every TUF repository has, in the order in which they are read; here for those who do without python-tuf."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedSource:
    """An index that may be shown. `expires`: seconds since 1970 by what ends then ("index", a role of a repository);
    nothing is installed from the first of them on. `seen`: what to remember, by the name it is remembered under.
    """

    index: Index
    judged: JudgedIndex
    expires: Mapping[str, int]
    seen: Mapping[str, SeenIndex]


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenBack:
    """What a source takes back; `refused` are entries that cannot be read, and why. `seen` as of `JudgedSource`."""

    found: tuple[SourceRevocation, ...]
    refused: tuple[str, ...]
    seen: Mapping[str, SeenIndex]


class SourceFormat(Protocol):
    """One format. `now_s`: the one moment by which all is judged, in seconds since 1970."""

    async def refresh(self, source: MarketSource, now_s: int) -> JudgedSource:
        """Ask the source for its index, and put it on the shelf in one step if it may take the last one's place.

        Problems fetch_…, index_…, source_invalid, store_unavailable: the last one is left as it was.
        """
        ...

    async def revocations(self, source: MarketSource, now_s: int) -> TakenBack | None:
        """What the source takes back by now; None when it never took anything back. Problems as `refresh`."""
        ...

    async def read(self, source: MarketSource, now_s: int) -> JudgedSource:
        """The index on the shelf, judged anew, however old; asks nobody. Problems index_…."""
        ...

    def stamp(self, source: MarketSource) -> tuple[int, ...]:
        """What tells the index on the shelf from another, without reading it; empty when there is none. Blocks."""
        ...

    async def fetch(
        self, source: MarketSource, url: str, to: Path, *, max_bytes: int, progress: FetchProgress | None = None
    ) -> Fetched:
        """Write the new file `to` with what the index names as `url`. Problems fetch_…, store_unavailable, and
        digest_mismatch when the source itself says that it is another file; then there is no `to`.
        """
        ...
