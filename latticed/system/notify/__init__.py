"""The notification fan-out: which channels get an item, how each service writes it, what its answer means.

What waits, is retried and is told once is the host's (`latticed.host.notify`); this package decides and renders.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from latticed.system.builtin import Builtin

if TYPE_CHECKING:
    from latticed.system.plugin import SystemPlugin


def _load() -> type[SystemPlugin]:
    from latticed.system.notify.plugin import NotifyFanout

    return NotifyFanout


BUILTIN = Builtin(folder=Path(__file__).parent, load=_load)
