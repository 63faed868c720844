"""The table of routes of the service listener: whose services are proxied there.

It is one origin to a browser: a page of one service can do there whatever its user may. So it belongs to one plugin at
a time, the first that claims a route.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latticed.host.route.table import RouteTable
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable


class UpstreamTable(RouteTable):
    """See `host.routes.Routes`. `on`: whether the operator has set where it listens."""

    def __init__(self, *, on: bool) -> None:
        super().__init__()
        self.on = on

    def check(self, plugin_id: str, prefixes: Iterable[str], *, granted_prefixes: frozenset[str] = frozenset()) -> None:
        """As for any route, and Problem("route_taken") while another plugin has services."""
        holder = next((one.plugin_id for one in self._claims.values()), plugin_id)
        if holder != plugin_id:
            raise Problem(
                "route_taken",
                f"cannot serve this route: the service listener is one origin, and {holder} has services there",
                f"disable {holder} first",
            )
        super().check(plugin_id, prefixes, granted_prefixes=granted_prefixes)
