"""Every route of the control API and the scope it takes: the security of the API on one screen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from latticed.rpc import audit, events, kv, metrics, plugins, status
from latticed.rpc.access import Scope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from latticed.rpc.api import Ask


@dataclass(frozen=True, slots=True)
class Route:
    """Some consents in a body take `host` besides: see `Consent.needs_host_scope`."""

    method: str
    path: str
    scope: Scope
    handle: Callable[[Ask], Awaitable[Any]]


ROUTES: Final = (
    Route("GET", "/api/health", Scope.NONE, status.health),
    Route("GET", "/api/status", Scope.READ, status.status),
    Route("GET", "/api/plugins", Scope.READ, plugins.listing),
    Route("GET", "/api/plugins/lifecycle", Scope.OPERATE, plugins.listing),
    Route("POST", "/api/plugins/lifecycle", Scope.OPERATE, plugins.decide),
    Route("GET", "/api/plugins/rejected", Scope.READ, plugins.rejected),
    Route("POST", "/api/plugins/verify", Scope.OPERATE, plugins.verify),
    Route("GET", "/api/plugins/by-id/{id}", Scope.READ, plugins.show),
    Route("POST", "/api/plugins/by-id/{id}/upgrade", Scope.OPERATE, plugins.upgrade),
    Route("POST", "/api/plugins/by-id/{id}/restart", Scope.OPERATE, plugins.restart),
    Route("POST", "/api/plugins/by-id/{id}/forget", Scope.OPERATE, plugins.forget),
    Route("GET", "/api/plugins/by-id/{id}/grants", Scope.READ, plugins.grants),
    Route("PUT", "/api/plugins/by-id/{id}/grants", Scope.OPERATE, plugins.regrant),
    Route("GET", "/api/audit", Scope.OPERATE, audit.query),
    Route("GET", "/api/audit/verify", Scope.OPERATE, audit.verify),
    Route("GET", "/api/kv/{bucket}", Scope.OPERATE, kv.keys),
    Route("GET", "/api/kv/{bucket}/{key}", Scope.OPERATE, kv.get),
    Route("PUT", "/api/kv/{bucket}/{key}", Scope.OPERATE, kv.put),
    Route("DELETE", "/api/kv/{bucket}/{key}", Scope.OPERATE, kv.delete),
    Route("GET", "/api/events", Scope.READ, events.stream),
    Route("GET", "/metrics", Scope.READ, metrics.metrics),
    Route("GET", "/api/trust", Scope.READ, status.trust),
    Route("POST", "/api/trust/lift", Scope.TRUST, status.lift),
)
