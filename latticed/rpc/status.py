"""Handlers for the daemon itself: health, status, trust."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any, Final, Literal

from aiohttp import web

from latticed.kit.clock import rfc3339
from latticed.kit.value import Value
from latticed.ledger import audit as rows
from latticed.model import chain
from latticed.model.chain import CALLS, DECISIONS
from latticed.model.errors import Problem
from latticed.model.runtime import Health, RuntimeState
from latticed.rpc import counts
from latticed.rpc.access import Scope
from latticed.rpc.api import Body

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latticed.ledger import Connection
    from latticed.model.lifecycle import Record
    from latticed.rpc.api import Api, Ask
    from latticed.rpc.responses import AuditHead, Glance, HealthReport, Lifted, SandboxReport, Trouble, Trust
    from latticed.sandbox.levels import Level, Provided


class Lift(Body, frozen=True):
    """What is lifted: `value` as the trust policy writes it."""

    kind: Literal["key", "digest", "plugin"]
    value: str


async def health(ask: Ask) -> web.Response:
    """200 when all is well, 503 when not. A caller without the scope `read` gets the status only."""
    found = troubles(ask.api)
    answer: HealthReport = {"status": "degraded" if found else "ok"}
    # Checked here, as the route requires no scope: everybody may ask for the status.
    if Scope.READ in ask.scopes:
        answer["problems"] = [{"code": code, "detail": detail} for code, detail in found]
        answer["not_running"] = await counts.not_running(ask.api)
        answer["notes"] = notes(ask.api)
        answer["sandbox"] = _sandbox(ask.api.spawner.probed.provided, ask.api.spawner.floor)
    return web.Response(status=503 if found else 200, body=_encoded.of(answer), content_type="application/json")


class _Encoded:
    """The JSON of an answer, kept while answers are equal: whoever watches asks often, and hears the same."""

    def __init__(self) -> None:
        self._answer: Any = None
        self._body = b""

    def of(self, answer: Any) -> bytes:
        if answer != self._answer:
            self._answer, self._body = answer, json.dumps(answer).encode("ascii")
        return self._body


_encoded: Final = _Encoded()


@functools.lru_cache(maxsize=1)
def _sandbox(provided: Provided, floor: Level) -> SandboxReport:
    """The sandbox as probed at the daemon's start."""
    return {
        "level": provided.level.token,
        "features": sorted(provided.features),
        "floor": floor.token,
        "missing": [{"token": one.token, "step": one.words, "fix": one.fix} for one in provided.failures],
    }


def troubles(api: Api) -> list[tuple[str, str]]:
    """The (code, detail) of each problem that makes the daemon degraded; empty when it is healthy."""
    # First what other parts have found: the trust policy, reloads of the settings, the environment.
    found = [
        (problem.code, problem.reason)
        for problem in (api.policy.problem, *api.trouble, *api.around())
        if problem is not None
    ]
    found += [("catalog_degraded", detail) for detail in api.catalog.problems()]
    # Then what waits or has ended without an error of its own.
    if not api.lifecycle.alive:
        found.append(("lifecycle_failed", "changes on disk are not followed any more, see the log"))
    if waiting := api.lifecycle.write_behind.refused:
        found.append(("ledger_unavailable", f"{waiting} changes wait to be recorded"))
    if waiting := api.ledger.refused:
        found.append(("audit_unavailable", f"{waiting} events wait to be recorded"))
    if (unwritten := api.ledger.unwritten) is not None:
        found.append((unwritten.code, f"decisions are refused: {unwritten.reason}"))
    if api.ledger.trouble is not None:
        found.append((api.ledger.trouble.code, api.ledger.trouble.reason))
    if not api.settings.supervision.ignore_critical:
        ill = [record.id for record in api.lifecycle.critical() if not _well(api, record)]
        found += [("critical_plugin", f"{plugin_id} is critical and not healthy") for plugin_id in ill]
    return found


def notes(api: Api) -> list[Trouble]:
    """Facts for the operator that do not make the daemon degraded."""
    found: list[Trouble] = [{"code": code, "detail": detail} for code, detail in api.undelivered()]
    found += _ended_sources(api)
    # Calls only: they are removed by default settings, decisions only where an operator wants it.
    removed = api.ledger.read_kept("calls removed", lambda db: rows.checkpoint(db, chain=CALLS))
    if removed is None:
        return found
    limits = api.settings.audit.calls
    detail = (
        f"host calls up to {removed['seq']} were removed, last at {removed['ts']}: "
        f"audit.calls.max_bytes is {limits.max_bytes}, audit.calls.keep_days {limits.keep_days}"
    )
    return [*found, {"code": "audit_calls_removed", "detail": detail}]


def _ended_sources(api: Api) -> list[Trouble]:
    """Sources of the market from which nothing new is installed any more, for the age of what was fetched last."""
    now_s = api.clock.wall_us() // 1_000_000
    return [_ended(one.code, one.detail, one.source) for one in source_ends(api) if one.ends_s < now_s]


class SourceEnd(Value, frozen=True, kw_only=True):
    """Until when, in seconds since the epoch, a document of a source lets anything be installed; `code` and `detail` of
    what is said afterwards.
    """

    source: str
    document: str
    ends_s: int
    code: str
    detail: str


def source_ends(api: Api) -> Iterator[SourceEnd]:
    """One for each document that was fetched of a source of the market.

    By what is remembered of them: no index and no metadata is read, as this is asked often.
    """
    if not api.settings.market.sources:
        return
    from latticed.market import remembered, sources
    from latticed.market.formats import REVOCATIONS, ROLES
    from latticed.trust import signed_document

    seen = remembered.RememberedSources(api.ledger)
    for source in sources.of_settings(api.settings.market.sources).values():
        if isinstance(source, Problem):
            continue
        if source.format == "tuf":
            for role in ROLES:
                last = seen.last(f"{source.name}/{role}")
                ends_s = signed_document.moment(last.generated_at) if last is not None else None
                if last is not None and ends_s is not None:
                    detail = f"{role} role of the source {source.name} held until {last.generated_at}"
                    yield SourceEnd(
                        source=source.name, document=role, ends_s=ends_s, code="index_expired", detail=detail
                    )
            continue
        for what, name in (("index", source.name), (REVOCATIONS, f"{source.name}/{REVOCATIONS}")):
            last = seen.newest(name, source.keys)
            if last is not None:
                detail = f"{what} of the source {source.name} from {last.generated_at}"
                ends_s = last.generated_s + source.index_age_s
                yield SourceEnd(source=source.name, document=what, ends_s=ends_s, code=f"{what}_expired", detail=detail)


def _ended(code: str, what: str, source: str) -> Trouble:
    detail = f"{what}: nothing new is installed from it, what runs keeps running; latticectl market refresh {source}"
    return {"code": code, "detail": detail}


def _well(api: Api, record: Record) -> bool:
    """Whether a critical plugin runs and reports itself healthy."""
    runtime = api.supervisor.runtime(record.id)
    return runtime.state is RuntimeState.ARMED and runtime.health is Health.HEALTHY


async def status(ask: Ask) -> Glance:
    """Version, problems, counts of plugins, and the newest events of both audit chains."""
    api = ask.api
    counted = await counts.count_plugins(api)
    ends = {name: api.ledger.read(lambda db, name=name: _end(db, name)) for name in chain.NAMES}  # type: ignore[misc]
    found = troubles(api)
    return {
        "version": api.version,
        "state": "degraded" if found else "ok",
        "problems": [{"code": code, "detail": detail} for code, detail in found],
        "started_at": rfc3339(api.started_at),
        "uptime_s": int(api.clock.monotonic_s() - api.started_s),  # `started_at` is wall-clock time, which may jump
        "plugins": dict(counted.statuses),
        "rejected": counted.refused.total(),
        "runtime": dict(counted.states),
        "not_running": counted.not_running,
        "audit": ends[DECISIONS],
        "calls": ends[CALLS],
        "public_key": api.ledger.public_key,
    }


def _end(db: Connection, name: chain.Name) -> AuditHead:
    """The newest event of a chain."""
    last = rows.query(db, chain=name, newest_first=True, limit=1)
    return {"seq": last[0]["seq"] if last else 0, "head": last[0]["hash"] if last else None}


async def trust(ask: Ask) -> Trust:
    """The trust policy in force, and all that was ever seen revoked.

    Answered once everything that this policy refuses has been stopped.
    """
    # `latticectl trust` takes this answer for the sign that its edit has effect (ctl/policy_wait.py).
    await ask.api.lifecycle.pairs.in_effect()
    policy, problem = ask.api.policy.current, ask.api.policy.problem
    return {
        "ok": problem is None,
        "error": problem.reason if problem else None,
        "publishers": [
            {
                "publisher": name,
                "keys": list(one.keys),
                "ids": list(one.ids),
                "max_risk": one.max_risk.word if one.max_risk is not None else None,
            }
            for name, one in sorted(policy.publishers.items())
        ],
        "require_signature": policy.require_signature,
        "allow_unsigned_host_risk": policy.allow_unsigned_host_risk,
        "revoked": {
            "keys": sorted(policy.revoked.keys),
            "digests": sorted(policy.revoked.digests),
            "plugins": sorted(policy.revoked.plugins),
        },
    }


async def lift(ask: Ask) -> Lifted:
    """Lift one remembered revocation, which the trust policy must not have any more."""
    body = await ask.body(Lift)
    await ask.api.revocations.lift(ask.actor, body.kind, body.value)
    await ask.api.lifecycle.policy_changed()
    # Answered only then, so that what was refused for this revocation can be activated at once.
    await ask.api.lifecycle.pairs.judged()
    return {"kind": body.kind, "value": body.value, "lifted": True}
