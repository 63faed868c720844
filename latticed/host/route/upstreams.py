"""The route table of the service listener: which upstreams (the services of plugins) are proxied there.

To a browser the listener is one origin, so a page of one upstream could act as its user at another. It therefore
belongs to one plugin at a time, the first that claims a route.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latticed.host.route.table import RouteTable
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable


class UpstreamTable(RouteTable):
    """A RouteTable for one plugin. `enabled`: whether the operator has set an address for the listener."""

    def __init__(self, *, enabled: bool) -> None:
        super().__init__()
        self.enabled = enabled

    def check(self, plugin_id: str, prefixes: Iterable[str], *, granted_prefixes: frozenset[str] = frozenset()) -> None:
        """As for any route, and Problem("route_taken") while another plugin has services."""
        # Any claim shows the holder: all are of one plugin, since this check precedes each.
        holder = next((one.plugin_id for one in self._claims.values()), plugin_id)
        if holder != plugin_id:
            raise Problem(
                "route_taken",
                f"cannot serve this route: the service listener is one origin, and {holder} has services there",
                f"disable {holder} first",
            )
        super().check(plugin_id, prefixes, granted_prefixes=granted_prefixes)
