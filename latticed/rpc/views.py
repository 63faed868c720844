"""Converts records to the API's JSON: times as RFC 3339, absent values left out, no local paths."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from latticed import wire
from latticed.kit.clock import rfc3339
from latticed.kit.text import escape
from latticed.lifecycle import advance, granting, presence
from latticed.model.accepted import LIMITS
from latticed.model.capability import RISKS
from latticed.model.runtime import Health
from latticed.model.verdict import Refused, Verified
from latticed.rpc.api import ListedPlugin

if TYPE_CHECKING:
    from latticed.ledger.versions import BadVersion
    from latticed.lifecycle.presence import Presence
    from latticed.lifecycle.upgrades import UpgradeState
    from latticed.model.accepted import Accepted
    from latticed.model.lifecycle import Record
    from latticed.model.manifest import ManifestLimits
    from latticed.model.runtime import Runtime
    from latticed.model.verdict import Verdict
    from latticed.rpc import responses
    from latticed.rpc.api import Api


ROWS_KEPT: Final = 1_024
"""Rows that are kept as JSON; those of the plugins beyond are made each time, which costs less than holding them."""


_COMPACT: Final = json.JSONEncoder(separators=(",", ":"))
_AILING: Final = frozenset({Health.DEGRADED, Health.UNHEALTHY})


def plugin(api: Api, record: Record) -> dict[str, Any]:
    """One row of the lifecycle list, as `wire.PluginView` in JSON values."""
    facts, seen = record.facts, api.lifecycle.presence(record.id)
    # None stands for what is absent: `wire.encode` leaves it out.
    view = wire.PluginView(
        id=record.id,
        name=facts.name,
        type=facts.type,
        version=facts.version or None,
        entrypoint=_entrypoint(api, record, seen),
        publisher=facts.publisher or None,
        capabilities=list(facts.capabilities),
        artifact_sha256=facts.artifact_sha256,
        available=seen.available,
        status=record.status.value,
        runtime=_runtime(record.id, api.supervisor.runtime(record.id), api.runner_of(record)),
        candidate=_candidate(api, record, seen),
        upgrade=_upgrade(api.lifecycle.upgrades.shown.get(record.id)),
        granted=list(record.granted),
        withheld=_withheld(api, record) or None,
        builtin=record.builtin,
        verified_at=_time(record.verified_at),
        installed_at=_time(record.installed_at),
        activated_at=_time(record.activated_at),
        disabled_at=_time(record.disabled_at),
        created_at=_time(record.created_at),
        updated_at=_time(record.updated_at),
        unrecorded=record.id in api.lifecycle.write_behind.unrecorded or None,
    )
    return wire.encode(view)


def _withheld(api: Api, record: Record) -> list[str]:
    """What else an accepted plugin's manifest asks for and was not granted, as `kind=value`: its hosts among it."""
    hosts = granting.withheld_hosts(record, presence.manifest_of(record.facts))
    return [*(f"host={one}" for one in hosts), *granting.withheld(record, api.lifecycle.deps.defaults)]


def plugin_row(api: Api, record: Record) -> bytes:
    """`plugin` as JSON bytes, cached until what it is made of changes; ROWS_KEPT rows at most.

    What a listing costs: `docs/operate/performance.md`, P7.
    """
    upgraded = api.lifecycle.upgrades.shown.get(record.id)
    unrecorded = record.id in api.lifecycle.write_behind.unrecorded
    source = record, api.lifecycle.presence(record.id), api.supervisor.runtime(record.id), upgraded, unrecorded
    known = api.shown.get(record.id)
    if known is None or known.source != source:
        row = _COMPACT.encode(plugin(api, record)).encode("ascii")
        # Full: nothing is evicted, since a listing of more plugins would evict each row before it is asked for again.
        if known is None and len(api.shown) >= ROWS_KEPT:
            return row
        known = api.shown[record.id] = ListedPlugin(source=source, row=row)
    return known.row


def brief_row(api: Api, record: Record) -> bytes:
    """What a table of all plugins shows of one, as `responses.PluginBrief` in JSON bytes."""
    facts, seen, runtime = record.facts, api.lifecycle.presence(record.id), api.supervisor.runtime(record.id)
    about: responses.BriefRuntime = {"state": runtime.state.value, "health": runtime.health.value}
    if runtime.health in _AILING:
        about["message"] = runtime.message
    if (error := runtime.last_error) is not None:
        about["last_error"] = {"code": error.code, "message": error.reason}  # type: ignore[typeddict-item] # as encoded
    row: responses.PluginBrief = {
        "id": record.id,
        "name": facts.name,
        "capabilities": list(facts.capabilities),
        "granted": list(record.granted),
        "available": seen.available,
        "status": record.status.value,
        "builtin": record.builtin,
        "runtime": about,
    }
    if facts.version:
        row["version"] = facts.version
    if facts.publisher:
        row["publisher"] = facts.publisher
    if (found := seen.candidate(record)) is not None:
        row["candidate"] = {"identity": found.identity}
        if found.manifest.version:
            row["candidate"]["version"] = found.manifest.version
    return _COMPACT.encode(row).encode("ascii")


def verdict(path: str, found: Verdict) -> dict[str, Any]:
    """The answer of `verify`; absent values are null."""
    manifest = found.manifest
    refused = found if isinstance(found, Refused) else None
    return {
        "path": escape(path),
        "ok": refused is None,
        "code": refused.code.value if refused else None,
        "reason": refused.reason if refused else None,
        "hint": refused.hint if refused else None,
        "id": manifest.id if manifest else None,
        "version": manifest.version or None if manifest else None,
        "digest_sha256": found.artifact_sha256 if isinstance(found, Verified) else None,
        "capabilities": [{"name": c, "risk": RISKS[c].word} for c in manifest.capabilities if c in RISKS]
        if manifest
        else [],
    }


def rejected(name: str, found: Refused) -> dict[str, Any]:
    """A row of the list of rejected bundles; `name` is the bundle directory's name."""
    manifest = found.manifest
    view = wire.RejectedView(
        name=escape(name),
        code=found.code.value,
        reason=found.reason,
        hint=found.hint,
        id=manifest.id if manifest else None,
        version=manifest.version or None if manifest else None,
        publisher=manifest.publisher or None if manifest else None,
    )
    return wire.encode(view)


def foreseen(api: Api, before: Record, after: Record) -> dict[str, Any]:
    """`plugin` for the record `after` an upgrade, with `adds` and `drops` relative to `before`."""
    adds, drops = advance.changes(before.facts, after.facts, api.lifecycle.deps.defaults)
    return {**plugin(api, after), "adds": list(adds), "drops": list(drops)}


def resources(api: Api, plugin_id: str) -> dict[str, Any] | None:
    """What the processes of a plugin use; None when it has had none since the daemon started."""
    usage = api.spawner.usage
    return asdict(usage.of(plugin_id)) if usage.known(plugin_id) else None


def grants(api: Api, record: Record) -> dict[str, Any]:
    """A plugin's declared and granted capabilities and accepted terms, as `responses.GrantsView`."""
    seen = api.lifecycle.presence(record.id).winner
    # Before the install a record keeps no manifest.
    there = seen.verdict.manifest if seen is not None and not record.accepted else None
    manifest = presence.manifest_of(record.facts) or there
    usual = api.lifecycle.deps.defaults
    unrecorded = {"unrecorded": True} if record.id in api.lifecycle.write_behind.unrecorded else {}
    return {
        "id": record.id,
        "declared": list(record.facts.capabilities),
        "granted": list(record.granted),
        "masked": [c for c in record.facts.capabilities if c in record.masked],
        "hosts": list(record.hosts),
        "permits": list(record.permits),
        "accepted": _accepted(record.terms),
        "usual": {"level": usual.level, "limits": _limits(usual.limits)},
        "withheld": list(granting.withheld(record, usual)),
        "withheld_hosts": list(granting.withheld_hosts(record, manifest)),
        "declares_hosts": manifest is None or manifest.declared_hosts is not None,
        **unrecorded,
    }


def schedules(api: Api, record: Record) -> list[dict[str, Any]]:
    """The schedules of a plugin that are accepted, as `responses.ScheduleView`."""
    plugin = api.lifecycle.plugins.get(record.id)
    if plugin is None or not plugin.manifest.schedules:
        return []
    return api.schedules.view(record.id, plugin.manifest.schedules)


def _accepted(terms: Accepted | None) -> dict[str, Any] | None:
    """None before an install. A limit or sandbox level that is absent here is taken from the settings."""
    if terms is None:
        return None
    return {
        "type": terms.type,
        "protocol": terms.protocol,
        "interpreter": terms.interpreter,
        "args": list(terms.args),
        "features": sorted(terms.features),
        "level": terms.level,
        "limits": _limits(terms.limits),
        "prefixes": sorted(terms.prefixes),
        "dependencies": sorted(terms.dependencies),
        "schedules": sorted(terms.schedules),
    }


def _limits(limits: ManifestLimits) -> dict[str, int]:
    return {name: value for name in LIMITS if (value := getattr(limits, name)) is not None}


def _entrypoint(api: Api, record: Record, seen: Presence) -> str | None:
    """The manifest's entrypoint; None when the plugin was never accepted and its bundle is gone."""
    if plugin := api.lifecycle.plugins.get(record.id):
        return plugin.manifest.entrypoint or None
    return seen.winner.verdict.manifest.entrypoint or None if seen.winner is not None else None


def _runtime(plugin_id: str, runtime: Runtime, runner: str) -> wire.RuntimeView:
    """The runtime state as the API shows it; before the first start `runner` is that of the plugin's type."""
    error = runtime.last_error
    return wire.RuntimeView(
        plugin_id=plugin_id,
        state=runtime.state.value,
        runner=runtime.runner or runner,
        health=runtime.health.value,
        message=runtime.message,
        pid=runtime.pid or None,
        restart_count=runtime.restart_count or None,
        next_retry_at=_time(runtime.next_retry_at),
        last_error=wire.ErrorInfo(code=error.code, message=error.reason) if error else None,
        started_at=_time(runtime.started_at),
        stopped_at=_time(runtime.stopped_at),
        updated_at=_time(runtime.updated_at),
        sandbox=runtime.sandbox or None,
    )


def kept(api: Api, record: Record) -> list[dict[str, Any]]:
    """The versions that a rollback can return to, newest first, as `responses.KeptView`."""
    bad = api.lifecycle.state.bad.get(record.id, {})
    others = [one for one in api.lifecycle.state.kept.get(record.id, ()) if one.identity != record.facts.identity]
    return [
        {
            "version": one.version or None,
            "identity": one.identity,
            "kept_at": rfc3339(one.kept_at),
            "bad": wire.encode(_bad(bad[one.identity])) if one.identity in bad else None,
        }
        for one in reversed(others)
    ]


def _upgrade(found: UpgradeState | None) -> wire.UpgradeView | None:
    """What became of the last upgrade; None before the first one since the start."""
    if found is None:
        return None
    return wire.UpgradeView(
        state=found.state,
        version=found.version,
        before=found.before,
        until=_time(found.until_us),
        at=_time(found.at_us),
        code=found.fault.code if found.fault else None,
        reason=found.fault.reason if found.fault else None,
    )


def _bad(found: BadVersion) -> wire.BadView:
    return wire.BadView(code=found.code, reason=found.reason, at=rfc3339(found.marked_at))


def _candidate(api: Api, record: Record, seen: Presence) -> wire.CandidateView | None:
    """The bundle that an upgrade would take, with what it adds and drops; None when there is none."""
    found, usual = seen.candidate(record), api.lifecycle.deps.defaults
    if found is None:
        return None
    bad = api.lifecycle.state.bad.get(record.id, {}).get(found.identity)
    adds, drops = advance.upgrade_changes(record, found, usual)
    return wire.CandidateView(
        version=found.manifest.version or None,
        artifact_sha256=found.artifact_sha256,
        identity=found.identity,
        adds=list(adds),
        drops=list(drops),
        must_name=list(advance.must_name(record, found, usual)) or None,
        needs_downgrade=advance.needs_downgrade(record, found.manifest.version),
        bad=_bad(bad) if bad is not None else None,
    )


def _time(wall_us: int) -> str | None:
    """RFC 3339 of microseconds since the epoch; None for 0, which is never."""
    return rfc3339(wall_us) if wall_us else None
