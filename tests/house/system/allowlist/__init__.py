"""A complete built-in plugin for tests: intent, pure check and render, an async plugin; latticed's own look like it.

An operator names who may enter which doors; the plugin renders that as text and keeps it in its kv bucket.
"""

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
