"""nft guard: a default-drop firewall in one nftables table of its own, from an intent that an operator reviews.

Pure: `decode` reads an intent strictly, `check` says what is wrong with it (with and without facts of the live host),
`compile` makes the table's lines of it, `render` writes them as one nft file, `parse` reads them back from `nft -j`,
`applied` says what is committed and put back, `sources` reads facts from what programs print, `packets` says which line
decides for a packet, and `narrows` whether a new intent only takes away. None of them opens a file, starts nft or reads
a clock. `plugin` plans with them; the root helper's kind `nft` (`latticed.plans.nft`) applies.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from latticed.system.builtin import Builtin

if TYPE_CHECKING:
    from latticed.system.plugin import SystemPlugin


def _load() -> type[SystemPlugin]:
    from latticed.system.nft_guard.plugin import NftGuard

    return NftGuard


BUILTIN = Builtin(folder=Path(__file__).parent, load=_load)
