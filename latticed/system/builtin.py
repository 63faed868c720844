"""What a package of `latticed.system` says of itself.

In its `__init__.py`, so that listing it does not load its code:

    def _load() -> type[SystemPlugin]:
        from latticed.system.nft_guard.plugin import NftGuard

        return NftGuard

    BUILTIN = Builtin(folder=Path(__file__).parent, load=_load)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from latticed.system.plugin import SystemPlugin

MANIFEST: Final = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Builtin:
    """One built-in plugin: the `folder` of its package, and how to import its class.

    `folder` holds manifest.json: a manifest of version 2 whose id begins with `latticed.`, without `version`,
    `publisher`, `digest_sha256` and `signature_ed25519`, which latticed puts in (contracts §3). Its identity covers
    that and every file in `folder`. `load` is called on a thread, when the plugin is first started.
    """

    folder: Path
    load: Callable[[], type[SystemPlugin]]
