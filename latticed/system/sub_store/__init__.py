"""Sub-Store: its Node backend runs in a network of its own, behind a login, with backups of its files.

Pure: `intent` is what an operator wants, `check` says what is wrong with it, `render` makes of it what is asked of the
host, and judges what the backend answers. `plugin` asks. None of them opens a file, starts Node or reads a clock.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from latticed.system.builtin import Builtin

if TYPE_CHECKING:
    from latticed.system.plugin import SystemPlugin


def _load() -> type[SystemPlugin]:
    from latticed.system.sub_store.plugin import SubStore

    return SubStore


BUILTIN = Builtin(folder=Path(__file__).parent, load=_load)
