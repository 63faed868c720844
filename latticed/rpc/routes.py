"""Every route of the control API and the scope it takes: the security of the API on one screen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from latticed.rpc import (
    audit,
    backup,
    delegated,
    events,
    forms,
    kv,
    metrics,
    notifications,
    plugins,
    running,
    secrets,
    status,
    tasks,
    usage,
)
from latticed.rpc import policy_preview as foresight
from latticed.rpc.access import Scope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from latticed.rpc.api import Ask
    from latticed.rpc.forms import Form


@dataclass(frozen=True, slots=True)
class Route:
    """Some consents in a body take `host` besides: see `Consent.needs_host_scope`."""

    method: str
    path: str
    scope: Scope
    handle: Callable[[Ask], Awaitable[Any]]
    form: Form


async def describe(ask: Ask) -> dict[str, Any]:
    """This description of the API."""
    from latticed.rpc import openapi  # its cost is for those who ask

    return openapi.document(ROUTES, ask.api.version)


ROUTES: Final = (
    Route("GET", "/api/health", Scope.NONE, status.health, forms.HEALTH),
    Route("GET", "/api/status", Scope.READ, status.status, forms.STATUS),
    Route("GET", "/api/plugins", Scope.READ, plugins.listing, forms.PLUGINS),
    Route("GET", "/api/plugins/lifecycle", Scope.OPERATE, plugins.listing, forms.PLUGINS),
    Route("POST", "/api/plugins/lifecycle", Scope.OPERATE, plugins.decide, forms.DECIDE),
    Route("GET", "/api/plugins/rejected", Scope.READ, plugins.rejected, forms.REJECTED),
    Route("POST", "/api/plugins/verify", Scope.OPERATE, plugins.verify, forms.VERIFY),
    Route("GET", "/api/plugins/by-id/{id}", Scope.READ, plugins.show, forms.PLUGIN),
    Route("POST", "/api/plugins/by-id/{id}/upgrade", Scope.OPERATE, plugins.upgrade, forms.UPGRADE),
    Route("POST", "/api/plugins/by-id/{id}/restart", Scope.OPERATE, plugins.restart, forms.RESTART),
    Route("POST", "/api/plugins/by-id/{id}/invoke", Scope.OPERATE, running.invoke, forms.INVOKE),
    Route("GET", "/api/plugins/by-id/{id}/logs", Scope.OPERATE, running.logs, forms.LOGS),
    Route("POST", "/api/plugins/by-id/{id}/forget", Scope.OPERATE, plugins.forget, forms.FORGET),
    Route("GET", "/api/plugins/by-id/{id}/grants", Scope.READ, plugins.grants, forms.GRANTS),
    Route("PUT", "/api/plugins/by-id/{id}/grants", Scope.OPERATE, plugins.regrant, forms.REGRANT),
    Route("GET", "/api/plugins/by-id/{id}/usage", Scope.OPERATE, usage.usage, forms.USAGE),
    Route("GET", "/api/audit", Scope.OPERATE, audit.query, forms.AUDIT),
    Route("GET", "/api/audit/verify", Scope.OPERATE, audit.verify, forms.CHAIN),
    Route("GET", "/api/kv/{bucket}", Scope.OPERATE, kv.keys, forms.KEYS),
    Route("GET", "/api/kv/{bucket}/{key}", Scope.OPERATE, kv.get, forms.VALUE),
    Route("PUT", "/api/kv/{bucket}/{key}", Scope.OPERATE, kv.put, forms.PUT_VALUE),
    Route("DELETE", "/api/kv/{bucket}/{key}", Scope.OPERATE, kv.delete, forms.DELETE_VALUE),
    Route("GET", "/api/secrets", Scope.HOST, secrets.listing, forms.SECRETS),
    Route("PUT", "/api/secrets/{name}", Scope.HOST, secrets.put, forms.SET_SECRET),
    Route("DELETE", "/api/secrets/{name}", Scope.HOST, secrets.delete, forms.DELETE_SECRET),
    Route("PUT", "/api/secrets/{name}/plugins/{id}", Scope.HOST, secrets.bind, forms.BIND_SECRET),
    Route("DELETE", "/api/secrets/{name}/plugins/{id}", Scope.HOST, secrets.unbind, forms.UNBIND_SECRET),
    Route("GET", "/api/notifications", Scope.OPERATE, notifications.listing, forms.NOTIFICATIONS),
    Route("POST", "/api/notifications/prune", Scope.OPERATE, notifications.prune, forms.PRUNE),
    Route("POST", "/api/notifications/{item}/retry", Scope.OPERATE, notifications.reopen, forms.REOPEN),
    Route("GET", "/api/tasks", Scope.OPERATE, tasks.listing, forms.TASKS),
    Route("POST", "/api/tasks/cancel", Scope.OPERATE, tasks.cancel_all, forms.CANCEL_TASKS),
    Route("GET", "/api/tasks/{task}", Scope.OPERATE, tasks.show, forms.TASK),
    Route("POST", "/api/tasks/{task}/approve", Scope.HOST, tasks.approve, forms.APPROVE_TASK),
    Route("POST", "/api/tasks/{task}/cancel", Scope.OPERATE, tasks.cancel, forms.CANCEL_TASK),
    Route("GET", "/api/ddns", Scope.OPERATE, delegated.ddns, forms.DDNS),
    Route("POST", "/api/ddns/{id}/{name}/retry", Scope.OPERATE, delegated.retry_ddns, forms.RETRY_DDNS),
    Route("GET", "/api/monitors", Scope.OPERATE, delegated.monitors, forms.MONITORS),
    Route("GET", "/api/services", Scope.OPERATE, delegated.services, forms.SERVICES),
    Route("GET", "/api/routes", Scope.OPERATE, delegated.routes, forms.ROUTES),
    Route("GET", "/api/events", Scope.READ, events.stream, forms.EVENTS),
    Route("GET", "/metrics", Scope.READ, metrics.metrics, forms.METRICS),
    Route("GET", "/openapi.json", Scope.READ, describe, forms.OPENAPI),
    Route("GET", "/api/backup", Scope.ALL, backup.download, forms.BACKUP),
    Route("GET", "/api/trust", Scope.READ, status.trust, forms.TRUST),
    Route("POST", "/api/trust/foresee", Scope.OPERATE, foresight.foresee, forms.FORESEE),
    Route("POST", "/api/trust/lift", Scope.TRUST, status.lift, forms.LIFT),
)
