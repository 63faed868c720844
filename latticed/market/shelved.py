"""A source's last index, and why nothing of it can be installed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from latticed.kit.clock import rfc3339
from latticed.market.formats import REVOCATIONS
from latticed.model.errors import Problem
from latticed.trust import index as indexes

if TYPE_CHECKING:
    from latticed.market.formats import JudgedSource
    from latticed.market.sources import MarketSource
    from latticed.trust.index import Index, JudgedIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelved:
    """A source's last index, as it is judged now; `stamp` tells whether the file is still the one that was read."""

    source: MarketSource
    found: JudgedSource
    stamp: tuple[int, ...]

    @property
    def index(self) -> Index:
        """What it says."""
        return self.found.index

    @property
    def judged(self) -> JudgedIndex:
        """What it is worth."""
        return self.found.judged

    def fault(self, now_s: int) -> Problem | None:
        """Why nothing of it can be installed now; None when it can."""
        document = self.index.document
        if self.judged.browse_only:
            return Problem(
                "index_browse_only",
                f"expected an official index, signed by a pinned key, of the source {self.source.name}, "
                f"found that {self.judged.browse_only}",
                "it can be searched and shown, not installed from",
            )
        hint = f"latticectl market refresh {self.source.name}; what is installed keeps running"
        if indexes.too_old(document, max_age_s=self.source.index_age_s, now_s=now_s):
            return Problem(
                "index_expired",
                f"expected an index of the source {self.source.name} that is at most "
                f"{self.source.index_age_s // 86_400} days old, found one of {document.generated_at}",
                hint,
            )
        for what, at_s in self.found.expires.items():
            if at_s < now_s:
                expected = f"expected the {what} of the source {self.source.name} to hold"
                code = "revocations_expired" if what == REVOCATIONS else "index_expired"
                return Problem(code, f"{expected}, found that it did until {rfc3339(at_s * 1_000_000)}", hint)
        return None
