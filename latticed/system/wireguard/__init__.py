"""WireGuard: this host's tunnels and who is in them, from an intent that an operator reviews.

Pure: `decode` reads an intent strictly, `check` says what is wrong with it (with and without facts of the live
host), `allocate` finds addresses, `render` writes interfaces, peers and the table that enforces `may_reach` as one
text, `applied` reads that text again and makes of it what wg(8), ip(8) and nft(8) are given, `dump` reads `wg show`,
`conf` writes a device's file and reads one to be adopted, `narrows` says whether a new intent only takes away,
`devices` is what the plugin keeps. None of them opens a file, starts a program or reads a clock. `plugin` plans with
them; the root helper's kind `wireguard` (`latticed.plans.wireguard`) applies.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from latticed.system.builtin import Builtin

if TYPE_CHECKING:
    from latticed.system.plugin import SystemPlugin


def _load() -> type[SystemPlugin]:
    from latticed.system.wireguard.plugin import Wireguard

    return Wireguard


BUILTIN = Builtin(folder=Path(__file__).parent, load=_load)
