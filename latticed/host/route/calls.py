"""route.*: HTTP routes that a plugin puts for itself (system-plugins.md, worker:route and Sub-Store's proxy rules)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from latticed.host.call import Caller, Params, Served
from latticed.host.route import spec as route_spec

if TYPE_CHECKING:
    from latticed.host.route.keeper import RouteKeeper


class RouteDelete(Params, frozen=True):
    """Parameters of route.delete; the slash at the end of `path` may be left out."""

    path: str
    """The path as it was put; the slash at its end may be left out."""


class RouteCalls:
    """Serves route.put and route.delete."""

    def __init__(self, routes: RouteKeeper) -> None:
        self._routes = routes

    def calls(self) -> tuple[Served, ...]:
        """The calls with their parameters and handlers, for `host.call.table`."""
        return (
            Served(method="route.put", params=route_spec.RoutePut, serve=self._put),
            Served(method="route.delete", params=RouteDelete, serve=self._delete),
        )

    async def _put(self, caller: Caller, asked: route_spec.RoutePut) -> dict[str, Any]:
        """Serve route.put: `url` is null while nothing listens there, and `message` says why."""
        # In a thread: it parses a template of up to 256 KiB.
        spec = await asyncio.to_thread(route_spec.checked, asked)
        listener = await self._routes.put(caller.plugin_id, spec)
        url = f"{listener.url}{spec.path}" if listener.url else None
        return {"ok": True, "path": spec.path, "url": url, "message": listener.fault}

    async def _delete(self, caller: Caller, asked: RouteDelete) -> dict[str, Any]:
        return {"ok": await self._routes.delete(caller.plugin_id, asked.path)}
