"""The built-in plugins of this version of latticed, which the daemon's entry point hands on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.system import cloudflared, nft_guard, nginx, notify, proxy, ssh_alerts, sub_store, wireguard

if TYPE_CHECKING:
    from latticed.system.builtin import Builtin

BUILTINS: Final[tuple[Builtin, ...]] = (
    cloudflared.BUILTIN,
    nft_guard.BUILTIN,
    nginx.BUILTIN,
    notify.BUILTIN,
    proxy.BUILTIN,
    ssh_alerts.BUILTIN,
    sub_store.BUILTIN,
    wireguard.BUILTIN,
)
"""One `BUILTIN` of each package; a start lists all of them, and loads the code of those that are active."""
