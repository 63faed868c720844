"""Proxies: this host's inbounds and who may use them, from an intent that an operator reviews.

Pure: `decode` reads an intent strictly, `check` says what is wrong with it (with and without facts of the live host),
`render` writes the core's configuration (`singbox`, `xray`), `applied` reads that again and leaves out who is over,
`links` writes and reads share links, `subscriptions` puts them together for a device, `usage` counts bytes from what
the core tells, `devices` gives a user his links, `accounts` is what the plugin keeps of a user, `ends` takes away what
has to end, `narrows` says whether a new intent only takes away. None of them opens a file, starts a program or reads a
clock. `plugin` plans with them; the root helper's kind `proxy` (`latticed.plans.proxy`) runs the core.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from latticed.system.builtin import Builtin

if TYPE_CHECKING:
    from latticed.system.plugin import SystemPlugin


def _load() -> type[SystemPlugin]:
    from latticed.system.proxy.plugin import ProxyCores

    return ProxyCores


BUILTIN = Builtin(folder=Path(__file__).parent, load=_load)
