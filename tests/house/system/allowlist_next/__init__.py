"""The built-in `allowlist` as a later latticed would bring it: it asks for more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from latticed.system.builtin import Builtin

if TYPE_CHECKING:
    from latticed.system.plugin import SystemPlugin


def _load() -> type[SystemPlugin]:
    from tests.house.system.allowlist.plugin import Allowlist

    return Allowlist


BUILTIN = Builtin(folder=Path(__file__).parent, load=_load)
