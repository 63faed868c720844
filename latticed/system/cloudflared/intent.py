"""What an operator wants of the plugin cloudflared: the typed model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from latticed.model.tunnel import TunnelRule

MAX_TUNNELS: Final = 16
"""More than the operator allows one plugin by default (`tunnel.plugin_tunnels`), which the host service says."""
MONITOR_S: Final = 30
MONITOR_RANGE: Final = (10, 86_400)
"""Seconds between two checks of an origin; 0 besides: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedTunnel:
    """One tunnel. `tunnel`: the provider's id of it; `credentials` or `token`: a file in the operator's directory;
    `ingress`: rules in normal form, of which the first that matches counts.
    """

    name: str
    tunnel: str
    credentials: str = ""
    token: str = ""
    ingress: tuple[TunnelRule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelIntent:
    """`monitor_s`: seconds between two checks of each origin; 0: they are not checked."""

    tunnels: tuple[WantedTunnel, ...] = ()
    monitor_s: int = MONITOR_S

    @property
    def origins(self) -> tuple[str, ...]:
        """The services that rules of any tunnel lead to, each once, without those that are a status."""
        every = (rule for one in self.tunnels for rule in one.ingress)
        return tuple(sorted({rule.service for rule in every if rule.origin is not None}))
