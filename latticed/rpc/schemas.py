"""The types of each route's query, body and answer: they decode requests and make up the OpenAPI document."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Final

from latticed import wire
from latticed.kit.value import Value
from latticed.model.verdict import Code
from latticed.rpc import (
    audit,
    config,
    delegated,
    events,
    kv,
    market_shapes,
    notifications,
    plans,
    plugins,
    policy_preview,
    problems,
    responses,
    running,
    secrets,
    status,
    tasks,
    usage,
)
from latticed.rpc import service_responses as service_answers
from latticed.rpc.api import QueryParams

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from latticed.rpc.access import Scope
    from latticed.rpc.api import Ask


@dataclass(frozen=True, slots=True)
class Form:
    """What a route takes and answers.

    `answer` is the type that 200 carries as JSON, or the media type of anything else; `also` is another media type that
    it may come in, on request. `query` and `body` are what is taken (a body of `bytes` as it is), `codes` the problems
    that may be answered besides those of every such route (`openapi._problems`).
    """

    answer: Any
    _: KW_ONLY
    query: type[QueryParams] = QueryParams
    body: Any = None
    codes: tuple[str, ...] = ()
    also: str = ""


class ApiRoute(Value, frozen=True):
    """One route of the control API: method, path with `{parts}`, scope, handler and form.

    Some consents in a body take the scope `host` besides `scope`: see `Consent.needs_host_scope`.
    """

    method: str
    path: str
    scope: Scope
    handle: Callable[[Ask], Awaitable[Any]]
    form: Form


# Codes that several routes share.
_UNRECORDED: Final = ("ledger_unavailable", "deadline_exceeded")
_UNKNOWN: Final = ("not_found", *_UNRECORDED)
_REFUSED_HERE: Final = ("sandbox_unavailable", "source_blocked", "route_taken", "protocol_unsupported")
_CONSENT: Final = ("needs_consent", "metadata_origin")
_DECIDED: Final = (
    "invalid_transition",
    "not_available",
    "dependency_unmet",
    "version_downgrade",
    "no_candidate",
    "identity_mismatch",
    "candidate_bad",
    "needs_config",
    *_CONSENT,
)
_DECIDING: Final = (*_UNKNOWN, *_DECIDED, *_REFUSED_HERE, "store_unavailable", *(code.value for code in Code))

# One form for each route of `routes.ROUTES`.
HEALTH: Final = Form(responses.HealthReport)
STATUS: Final = Form(responses.Glance)
METRICS: Final = Form("text/plain")
OPENAPI: Final = Form(dict[str, Any])
EVENTS: Final = Form("text/event-stream", query=events.StreamRequest, codes=("too_many_streams",))

PLUGINS: Final = Form(list[wire.PluginView])
BRIEF: Final = Form(list[responses.PluginBrief])
PLUGIN: Final = Form(responses.PluginReport, query=plugins.About, codes=_UNKNOWN)
REJECTED: Final = Form(list[wire.RejectedView], query=plugins.RejectedFilter)
VERIFY: Final = Form(wire.VerdictView, body=plugins.PathName, codes=_UNKNOWN)
DECIDE: Final = Form(wire.PluginView, body=plugins.Decision, codes=_DECIDING)
UPGRADE: Final = Form(wire.PluginView, body=plugins.Upgrade, codes=_DECIDING)
ROLLBACK: Final = Form(wire.PluginView, body=plugins.RollbackBody, codes=_DECIDING)
RESTART: Final = Form(wire.PluginView, body=plugins.Nothing, codes=_DECIDING)
FORGET: Final = Form(responses.Forgotten, body=plugins.Forget, codes=_DECIDING)
INVOKE: Final = Form(
    responses.Reply,
    body=running.Invoke,
    codes=("not_armed", "busy", *problems.OF_PLUGINS, "sandbox_failed", "too_many_children", *_UNKNOWN),
)
LOGS: Final = Form(responses.LogPage, query=running.LogStream, codes=_UNKNOWN)
GRANTS: Final = Form(responses.GrantsView, codes=_UNKNOWN)
REGRANT: Final = Form(responses.GrantsView, body=plugins.Grants, codes=(*_UNKNOWN, *_CONSENT))

_CONFIG: Final = ("sandbox_unavailable", "sandbox_failed", "too_many_children", "out_of_memory", "not_available")
CONFIG: Final = Form(responses.ConfigView, codes=("not_available", *_UNKNOWN))
SET_CONFIG: Final = Form(
    responses.ConfigSet, body=config.NewConfig, codes=("config_invalid", "invalid_transition", *_CONFIG, *_UNKNOWN)
)

USAGE: Final = Form(service_answers.UsageReport, query=usage.Lookback, codes=_UNKNOWN)
HISTORY: Final = Form(responses.HistoryReport, codes=_UNKNOWN)

AUDIT: Final = Form(responses.AuditPage, query=audit.Filter, codes=_UNRECORDED)
CHAIN: Final = Form(
    responses.ChainReport,
    query=audit.Verify,
    codes=("too_many_streams", "stopping", *_UNRECORDED),
    also="application/x-ndjson",
)

KEYS: Final = Form(responses.KeyPage, query=kv.Span)
VALUE: Final = Form("application/octet-stream", codes=_UNKNOWN)
PUT_VALUE: Final = Form(responses.ValueSet, body=bytes, codes=("quota_exceeded", *_UNKNOWN))
DELETE_VALUE: Final = Form(responses.ValueDeleted, body=plugins.Nothing, codes=_UNKNOWN)

_SECRET: Final = ("secret_unavailable", "quota_exceeded", *_UNKNOWN)
SECRETS: Final = Form(service_answers.SecretList, codes=_SECRET)
SET_SECRET: Final = Form(service_answers.SecretSet, body=bytes, codes=_SECRET)
DELETE_SECRET: Final = Form(
    service_answers.SecretDeleted, query=secrets.Deletion, body=plugins.Nothing, codes=("secret_bound", *_SECRET)
)
BIND_SECRET: Final = Form(service_answers.SecretBound, body=plugins.Nothing, codes=_SECRET)
UNBIND_SECRET: Final = Form(service_answers.SecretBound, body=plugins.Nothing, codes=_SECRET)

NOTIFICATIONS: Final = Form(service_answers.NotificationPage, query=notifications.Shelf, codes=_UNKNOWN)
PRUNE: Final = Form(service_answers.NotificationsPruned, body=notifications.Prune, codes=_UNKNOWN)
TEST_CHANNEL: Final = Form(
    service_answers.ChannelTested,
    body=notifications.Test,
    codes=("not_armed", "busy", *problems.OF_PLUGINS, *_UNRECORDED),
)
REOPEN: Final = Form(service_answers.NotificationReopened, body=plugins.Nothing, codes=("quota_exceeded", *_UNKNOWN))

_TASK: Final = ("invalid_transition", "digest_mismatch", "quota_exceeded", *_UNKNOWN)
TASKS: Final = Form(tasks.TaskPage, query=tasks.Sought, codes=_UNKNOWN)
TASK: Final = Form(tasks.TaskWhole, codes=_UNKNOWN)
APPROVE_TASK: Final = Form(tasks.TaskRow, body=tasks.Approval, codes=_TASK)
CANCEL_TASK: Final = Form(tasks.TaskRow, body=plugins.Nothing, codes=_TASK)
CANCEL_TASKS: Final = Form(tasks.TasksCancelled, body=plugins.Nothing, codes=_UNRECORDED)

PLANS: Final = Form(plans.PlanPage, query=plans.PlanFilter, codes=_UNKNOWN)
PLAN: Final = Form(plans.PlanWhole, codes=_UNKNOWN)

_INDEX: Final = (
    "source_invalid",
    "source_ambiguous",
    "index_missing",
    "index_invalid",
    "index_unsigned",
    "index_signature_invalid",
    "index_from_future",
    "index_rolled_back",
    "index_changed",
)
_FETCH: Final = (
    "fetch_blocked",
    "fetch_missing",
    "revocations_invalid",
    "revocations_unsigned",
    "fetch_failed",
    "fetch_too_large",
    "store_unavailable",
    *_INDEX,
    *_UNKNOWN,
)
_TAKE: Final = (
    "index_browse_only",
    "index_expired",
    "revocations_expired",
    "index_mismatch",
    "unsupported",
    "too_young",
    "release_revoked",
    "held",
    "busy",
    "needs_consent",
    "version_downgrade",
    "audit_unavailable",
    *_REFUSED_HERE,
    *(code.value for code in Code),
    *_FETCH,
)
MARKET: Final = Form(market_shapes.MarketGlance, codes=_UNRECORDED)
MARKET_REFRESH: Final = Form(
    market_shapes.MarketGlance, body=market_shapes.RefreshSource, codes=(*_FETCH, "audit_unavailable")
)
MARKET_SEARCH: Final = Form(market_shapes.OfferPage, query=market_shapes.MarketSearch, codes=(*_INDEX, *_UNKNOWN))
MARKET_SHOW: Final = Form(market_shapes.MarketOffer, query=market_shapes.MarketChoice, codes=_FETCH)
MARKET_BUNDLE: Final = Form("application/x-tar", query=market_shapes.MarketChoice, codes=("too_many_streams", *_TAKE))
MARKET_OUTDATED: Final = Form(market_shapes.OutdatedList, codes=_UNRECORDED)
MARKET_INSTALL: Final = Form(market_shapes.TakenRow, body=market_shapes.MarketInstall, codes=_TAKE)
MARKET_IMPORT: Final = Form(
    market_shapes.TakenRow,
    body=market_shapes.MarketImport,
    codes=(
        "import_off",
        "import_invalid",
        "import_mismatch",
        "held",
        "busy",
        "needs_consent",
        "version_downgrade",
        "candidate_bad",
        "not_found",
        "store_unavailable",
        "audit_unavailable",
        "ledger_unavailable",
        *_REFUSED_HERE,
        *(code.value for code in Code),
    ),
)
MARKET_HOLD: Final = Form(market_shapes.HoldSet, body=plugins.Nothing, codes=_UNKNOWN)

DDNS: Final = Form(delegated.DdnsPage, query=delegated.Of, codes=("not_found",))
RETRY_DDNS: Final = Form(delegated.DdnsRetried, body=delegated.Retry, codes=("quota_exceeded", *_UNKNOWN))
MONITORS: Final = Form(delegated.MonitorPage, query=delegated.Of, codes=("not_found",))
SERVICES: Final = Form(delegated.ServicePage, query=delegated.Of, codes=("not_found",))
ROUTES: Final = Form(delegated.RoutePage, query=delegated.Of, codes=("not_found",))

BACKUP: Final = Form(
    "application/x-tar",
    codes=(
        "backup_running",
        "too_many_streams",
        "store_unavailable",
        "ledger_damaged",
        "audit_unavailable",
        *_UNRECORDED,
    ),
)

TRUST: Final = Form(responses.Trust)
FORESEE: Final = Form(responses.Foreseen, body=policy_preview.Foresee)
LIFT: Final = Form(responses.Lifted, body=status.Lift, codes=("still_revoked", *_UNKNOWN))
