"""Every route of the control API and the scope it takes: the security of the API on one screen."""

from __future__ import annotations

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
from latticed.rpc.forms import ApiRoute

if TYPE_CHECKING:
    from latticed.rpc.api import Ask


async def describe(ask: Ask) -> dict[str, Any]:
    """This description of the API."""
    from latticed.rpc import openapi  # imported when first asked for: it takes long

    return openapi.document(ROUTES, ask.api.version)


ROUTES: Final = (
    ApiRoute("GET", "/api/health", Scope.NONE, status.health, forms.HEALTH),
    ApiRoute("GET", "/api/status", Scope.READ, status.status, forms.STATUS),
    ApiRoute("GET", "/api/plugins", Scope.READ, plugins.listing, forms.PLUGINS),
    ApiRoute("GET", "/api/plugins/lifecycle", Scope.OPERATE, plugins.listing, forms.PLUGINS),
    ApiRoute("POST", "/api/plugins/lifecycle", Scope.OPERATE, plugins.decide, forms.DECIDE),
    ApiRoute("GET", "/api/plugins/rejected", Scope.READ, plugins.rejected, forms.REJECTED),
    ApiRoute("POST", "/api/plugins/verify", Scope.OPERATE, plugins.verify, forms.VERIFY),
    ApiRoute("GET", "/api/plugins/by-id/{id}", Scope.READ, plugins.show, forms.PLUGIN),
    ApiRoute("POST", "/api/plugins/by-id/{id}/upgrade", Scope.OPERATE, plugins.upgrade, forms.UPGRADE),
    ApiRoute("POST", "/api/plugins/by-id/{id}/restart", Scope.OPERATE, plugins.restart, forms.RESTART),
    ApiRoute("POST", "/api/plugins/by-id/{id}/invoke", Scope.OPERATE, running.invoke, forms.INVOKE),
    ApiRoute("GET", "/api/plugins/by-id/{id}/logs", Scope.OPERATE, running.logs, forms.LOGS),
    ApiRoute("POST", "/api/plugins/by-id/{id}/forget", Scope.OPERATE, plugins.forget, forms.FORGET),
    ApiRoute("GET", "/api/plugins/by-id/{id}/grants", Scope.READ, plugins.grants, forms.GRANTS),
    ApiRoute("PUT", "/api/plugins/by-id/{id}/grants", Scope.OPERATE, plugins.regrant, forms.REGRANT),
    ApiRoute("GET", "/api/plugins/by-id/{id}/usage", Scope.OPERATE, usage.usage, forms.USAGE),
    ApiRoute("GET", "/api/audit", Scope.OPERATE, audit.query, forms.AUDIT),
    ApiRoute("GET", "/api/audit/verify", Scope.OPERATE, audit.verify, forms.CHAIN),
    ApiRoute("GET", "/api/kv/{bucket}", Scope.OPERATE, kv.keys, forms.KEYS),
    ApiRoute("GET", "/api/kv/{bucket}/{key}", Scope.OPERATE, kv.get, forms.VALUE),
    ApiRoute("PUT", "/api/kv/{bucket}/{key}", Scope.OPERATE, kv.put, forms.PUT_VALUE),
    ApiRoute("DELETE", "/api/kv/{bucket}/{key}", Scope.OPERATE, kv.delete, forms.DELETE_VALUE),
    ApiRoute("GET", "/api/secrets", Scope.HOST, secrets.listing, forms.SECRETS),
    ApiRoute("PUT", "/api/secrets/{name}", Scope.HOST, secrets.put, forms.SET_SECRET),
    ApiRoute("DELETE", "/api/secrets/{name}", Scope.HOST, secrets.delete, forms.DELETE_SECRET),
    ApiRoute("PUT", "/api/secrets/{name}/plugins/{id}", Scope.HOST, secrets.bind, forms.BIND_SECRET),
    ApiRoute("DELETE", "/api/secrets/{name}/plugins/{id}", Scope.HOST, secrets.unbind, forms.UNBIND_SECRET),
    ApiRoute("GET", "/api/notifications", Scope.OPERATE, notifications.listing, forms.NOTIFICATIONS),
    ApiRoute("POST", "/api/notifications/prune", Scope.OPERATE, notifications.prune, forms.PRUNE),
    ApiRoute("POST", "/api/notifications/{item}/retry", Scope.OPERATE, notifications.reopen, forms.REOPEN),
    ApiRoute("GET", "/api/tasks", Scope.OPERATE, tasks.listing, forms.TASKS),
    ApiRoute("POST", "/api/tasks/cancel", Scope.OPERATE, tasks.cancel_all, forms.CANCEL_TASKS),
    ApiRoute("GET", "/api/tasks/{task}", Scope.OPERATE, tasks.show, forms.TASK),
    ApiRoute("POST", "/api/tasks/{task}/approve", Scope.HOST, tasks.approve, forms.APPROVE_TASK),
    ApiRoute("POST", "/api/tasks/{task}/cancel", Scope.OPERATE, tasks.cancel, forms.CANCEL_TASK),
    ApiRoute("GET", "/api/ddns", Scope.OPERATE, delegated.ddns, forms.DDNS),
    ApiRoute("POST", "/api/ddns/{id}/{name}/retry", Scope.OPERATE, delegated.retry_ddns, forms.RETRY_DDNS),
    ApiRoute("GET", "/api/monitors", Scope.OPERATE, delegated.monitors, forms.MONITORS),
    ApiRoute("GET", "/api/services", Scope.OPERATE, delegated.services, forms.SERVICES),
    ApiRoute("GET", "/api/routes", Scope.OPERATE, delegated.routes, forms.ROUTES),
    ApiRoute("GET", "/api/events", Scope.READ, events.stream, forms.EVENTS),
    ApiRoute("GET", "/metrics", Scope.READ, metrics.metrics, forms.METRICS),
    ApiRoute("GET", "/openapi.json", Scope.READ, describe, forms.OPENAPI),
    ApiRoute("GET", "/api/backup", Scope.ALL, backup.download, forms.BACKUP),
    ApiRoute("GET", "/api/trust", Scope.READ, status.trust, forms.TRUST),
    ApiRoute("POST", "/api/trust/foresee", Scope.OPERATE, foresight.foresee, forms.FORESEE),
    ApiRoute("POST", "/api/trust/lift", Scope.TRUST, status.lift, forms.LIFT),
)
