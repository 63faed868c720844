"""The table of the control API's routes, each with the scope that it takes (contracts §7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from latticed.rpc import (
    audit,
    backup,
    config,
    delegated,
    events,
    history,
    kv,
    market,
    market_offers,
    metrics,
    notifications,
    plans,
    plugins,
    policy_preview,
    running,
    schemas,
    secrets,
    status,
    tasks,
    usage,
)
from latticed.rpc.access import Scope
from latticed.rpc.schemas import ApiRoute

if TYPE_CHECKING:
    from latticed.rpc.api import Ask


async def describe(ask: Ask) -> dict[str, Any]:
    """This description of the API, in OpenAPI 3.1."""
    from latticed.rpc import openapi  # imported when first asked for: it takes long

    return openapi.document(ROUTES, ask.api.version)


ROUTES: Final = (
    ApiRoute("GET", "/api/health", Scope.NONE, status.health, schemas.HEALTH),
    ApiRoute("GET", "/api/status", Scope.READ, status.status, schemas.STATUS),
    ApiRoute("GET", "/api/plugins", Scope.READ, plugins.listing, schemas.PLUGINS),
    ApiRoute("GET", "/api/plugins/lifecycle", Scope.OPERATE, plugins.listing, schemas.PLUGINS),
    ApiRoute("POST", "/api/plugins/lifecycle", Scope.OPERATE, plugins.decide, schemas.DECIDE),
    ApiRoute("GET", "/api/plugins/brief", Scope.READ, plugins.brief, schemas.BRIEF),
    ApiRoute("GET", "/api/plugins/rejected", Scope.READ, plugins.rejected, schemas.REJECTED),
    ApiRoute("POST", "/api/plugins/verify", Scope.OPERATE, plugins.verify, schemas.VERIFY),
    ApiRoute("GET", "/api/plugins/by-id/{id}", Scope.READ, plugins.show, schemas.PLUGIN),
    ApiRoute("POST", "/api/plugins/by-id/{id}/upgrade", Scope.OPERATE, plugins.upgrade, schemas.UPGRADE),
    ApiRoute("POST", "/api/plugins/by-id/{id}/rollback", Scope.OPERATE, plugins.rollback, schemas.ROLLBACK),
    ApiRoute("POST", "/api/plugins/by-id/{id}/restart", Scope.OPERATE, plugins.restart, schemas.RESTART),
    ApiRoute("POST", "/api/plugins/by-id/{id}/invoke", Scope.OPERATE, running.invoke, schemas.INVOKE),
    ApiRoute("GET", "/api/plugins/by-id/{id}/logs", Scope.OPERATE, running.logs, schemas.LOGS),
    ApiRoute("POST", "/api/plugins/by-id/{id}/forget", Scope.OPERATE, plugins.forget, schemas.FORGET),
    ApiRoute("GET", "/api/plugins/by-id/{id}/grants", Scope.READ, plugins.grants, schemas.GRANTS),
    ApiRoute("PUT", "/api/plugins/by-id/{id}/grants", Scope.OPERATE, plugins.regrant, schemas.REGRANT),
    ApiRoute("GET", "/api/plugins/by-id/{id}/config", Scope.HOST, config.show, schemas.CONFIG),
    ApiRoute("PUT", "/api/plugins/by-id/{id}/config", Scope.HOST, config.put, schemas.SET_CONFIG),
    ApiRoute("GET", "/api/plugins/by-id/{id}/usage", Scope.OPERATE, usage.usage, schemas.USAGE),
    ApiRoute("GET", "/api/plugins/by-id/{id}/history", Scope.READ, history.history, schemas.HISTORY),
    ApiRoute("GET", "/api/audit", Scope.OPERATE, audit.query, schemas.AUDIT),
    ApiRoute("GET", "/api/audit/verify", Scope.OPERATE, audit.verify, schemas.CHAIN),
    ApiRoute("GET", "/api/kv/{bucket}", Scope.OPERATE, kv.keys, schemas.KEYS),
    ApiRoute("GET", "/api/kv/{bucket}/{key}", Scope.OPERATE, kv.get, schemas.VALUE),
    ApiRoute("PUT", "/api/kv/{bucket}/{key}", Scope.OPERATE, kv.put, schemas.PUT_VALUE),
    ApiRoute("DELETE", "/api/kv/{bucket}/{key}", Scope.OPERATE, kv.delete, schemas.DELETE_VALUE),
    ApiRoute("GET", "/api/secrets", Scope.HOST, secrets.listing, schemas.SECRETS),
    ApiRoute("PUT", "/api/secrets/{name}", Scope.HOST, secrets.put, schemas.SET_SECRET),
    ApiRoute("DELETE", "/api/secrets/{name}", Scope.HOST, secrets.delete, schemas.DELETE_SECRET),
    ApiRoute("PUT", "/api/secrets/{name}/plugins/{id}", Scope.HOST, secrets.bind, schemas.BIND_SECRET),
    ApiRoute("DELETE", "/api/secrets/{name}/plugins/{id}", Scope.HOST, secrets.unbind, schemas.UNBIND_SECRET),
    ApiRoute("GET", "/api/notifications", Scope.OPERATE, notifications.listing, schemas.NOTIFICATIONS),
    ApiRoute("POST", "/api/notifications/prune", Scope.OPERATE, notifications.prune, schemas.PRUNE),
    ApiRoute("POST", "/api/notifications/test", Scope.OPERATE, notifications.test, schemas.TEST_CHANNEL),
    ApiRoute("POST", "/api/notifications/{item}/retry", Scope.OPERATE, notifications.reopen, schemas.REOPEN),
    ApiRoute("GET", "/api/tasks", Scope.OPERATE, tasks.listing, schemas.TASKS),
    ApiRoute("POST", "/api/tasks/cancel", Scope.OPERATE, tasks.cancel_all, schemas.CANCEL_TASKS),
    ApiRoute("GET", "/api/tasks/{task}", Scope.OPERATE, tasks.show, schemas.TASK),
    ApiRoute("POST", "/api/tasks/{task}/approve", Scope.HOST, tasks.approve, schemas.APPROVE_TASK),
    ApiRoute("POST", "/api/tasks/{task}/cancel", Scope.OPERATE, tasks.cancel, schemas.CANCEL_TASK),
    ApiRoute("GET", "/api/plans", Scope.READ, plans.listing, schemas.PLANS),
    ApiRoute("GET", "/api/plans/{sha}", Scope.READ, plans.show, schemas.PLAN),
    ApiRoute("GET", "/api/market", Scope.READ, market.glance, schemas.MARKET),
    ApiRoute("POST", "/api/market/refresh", Scope.OPERATE, market.refresh, schemas.MARKET_REFRESH),
    ApiRoute("GET", "/api/market/plugins", Scope.READ, market_offers.search, schemas.MARKET_SEARCH),
    ApiRoute("GET", "/api/market/plugins/{id}", Scope.OPERATE, market_offers.show, schemas.MARKET_SHOW),
    ApiRoute("GET", "/api/market/plugins/{id}/bundle", Scope.OPERATE, market.download, schemas.MARKET_BUNDLE),
    ApiRoute("GET", "/api/market/outdated", Scope.READ, market_offers.outdated, schemas.MARKET_OUTDATED),
    ApiRoute("POST", "/api/market/install", Scope.OPERATE, market.install, schemas.MARKET_INSTALL),
    ApiRoute("POST", "/api/market/import", Scope.OPERATE, market.take_in, schemas.MARKET_IMPORT),
    ApiRoute("PUT", "/api/market/holds/{id}", Scope.OPERATE, market.hold, schemas.MARKET_HOLD),
    ApiRoute("DELETE", "/api/market/holds/{id}", Scope.OPERATE, market.release, schemas.MARKET_HOLD),
    ApiRoute("GET", "/api/ddns", Scope.OPERATE, delegated.ddns, schemas.DDNS),
    ApiRoute("POST", "/api/ddns/{id}/{name}/retry", Scope.OPERATE, delegated.retry_ddns, schemas.RETRY_DDNS),
    ApiRoute("GET", "/api/monitors", Scope.OPERATE, delegated.monitors, schemas.MONITORS),
    ApiRoute("GET", "/api/services", Scope.OPERATE, delegated.services, schemas.SERVICES),
    ApiRoute("GET", "/api/routes", Scope.OPERATE, delegated.routes, schemas.ROUTES),
    ApiRoute("GET", "/api/events", Scope.READ, events.stream, schemas.EVENTS),
    ApiRoute("GET", "/metrics", Scope.READ, metrics.metrics, schemas.METRICS),
    ApiRoute("GET", "/openapi.json", Scope.READ, describe, schemas.OPENAPI),
    ApiRoute("GET", "/api/backup", Scope.ALL, backup.download, schemas.BACKUP),
    ApiRoute("GET", "/api/trust", Scope.READ, status.trust, schemas.TRUST),
    ApiRoute("POST", "/api/trust/foresee", Scope.OPERATE, policy_preview.foresee, schemas.FORESEE),
    ApiRoute("POST", "/api/trust/lift", Scope.TRUST, status.lift, schemas.LIFT),
)
