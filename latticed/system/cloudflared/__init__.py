"""cloudflared: publishes origins that the operator bound under names on the internet, by Cloudflare's tunnels.

Pure: `decode` reads the configuration strictly, `check` says what is wrong with its meaning, `render` makes the host
calls of it, `states` says of each tunnel what an operator can do about it, `alerts` what they are told. `plugin` acts
by them; cloudflared itself is run by the host service (`tunnel.*`), and monitors by `monitor.*`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from latticed.system.builtin import Builtin

if TYPE_CHECKING:
    from latticed.system.plugin import SystemPlugin


def _load() -> type[SystemPlugin]:
    from latticed.system.cloudflared.plugin import Cloudflared

    return Cloudflared


BUILTIN = Builtin(folder=Path(__file__).parent, load=_load)
