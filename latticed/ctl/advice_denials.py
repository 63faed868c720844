"""Which of a plugin's denials it still suffers from, and what lifts it. Pure."""

from __future__ import annotations

import shlex
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import replies
from latticed.ctl.advice_failures import Advice
from latticed.model import egress, hostcall

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from latticed import wire

_BY_CODE: Final = MappingProxyType(
    {
        "rate_limited": "latticectl top",
        "quota_exceeded": "latticectl caps list",
        "service_unavailable": "latticectl health",
        "audit_unavailable": "latticectl health",
    }
)
"""Where to look at what no grant lifts; else what the plugin says."""


def suffered(
    plugin_id: str,
    denials: Sequence[wire.AuditRow],
    grants: Mapping[str, Any],
    causes: Mapping[str, Any],
    started_at: str | None,
) -> Advice | None:
    """About the newest denial that would come again: what is granted by now, or went well since, is over.

    What a grant lifts comes first. The rest counts in the plugin's present life alone, which began at `started_at`.
    """
    working = replies.texts(causes.get("working"))
    calls = [row for row in denials if row.action == "host.call"]
    for row in calls:
        if (found := _access(plugin_id, row, grants)) is not None:
            return found
    for row in calls:
        if row.target in working or _granted(row, grants) or row.ts < (started_at or ""):
            continue
        if (found := _of_call(plugin_id, row)) is not None:
            return found
    return None


def of_dns(plugin_id: str, causes: Mapping[str, Any]) -> Advice | None:
    """A DNS record that its provider denied: it is not tried again until an operator asks for it."""
    records = causes.get("denied_records")
    for one in records if isinstance(records, list) else []:
        name = str(one.get("name") or "")
        why = f"its DNS record {name} was denied: {one.get('code')}: {one.get('reason')}; once that is mended"
        return Advice(why, shlex.join(["latticectl", "ddns", "retry", plugin_id, name]))
    return None


def _access(plugin_id: str, row: wire.AuditRow, grants: Mapping[str, Any]) -> Advice | None:
    """A capability that is missing still."""
    needed = hostcall.CAPABILITY_OF.get(row.target, "")
    if row.code == hostcall.Denial.CAPABILITY_NOT_GRANTED and needed in replies.texts(grants.get("masked")):
        why = f"it was denied {needed}, which it declares and nobody granted"
        return Advice(why, _grant(plugin_id, f"cap={needed}"))
    if row.code == hostcall.Denial.CAPABILITY_DENIED and needed not in replies.texts(grants.get("declared")):
        why = f"it calls {row.target}, and its manifest does not declare {needed}: its publisher must declare it"
        command = shlex.join(["latticectl", "upgrade", plugin_id, "--accept", needed])
        return Advice(f"{why}; with that bundle in the plugin directory", command)
    fix = str(row.detail.get(hostcall.FIX) or "")
    if fix.startswith(("host=", "origin=")) and not _granted(row, grants):
        return Advice(f"{row.target} was denied: {row.reason}", _grant(plugin_id, fix))
    return None


def _granted(row: wire.AuditRow, grants: Mapping[str, Any]) -> bool:
    """Whether what was missing at this denial is there by now."""
    if row.code in {hostcall.Denial.CAPABILITY_NOT_GRANTED, hostcall.Denial.CAPABILITY_DENIED}:
        return True  # else `_access` has said so
    kind, _, value = str(row.detail.get(hostcall.FIX) or "").partition("=")
    if kind == "origin":
        return f"origin={value}" in replies.texts(grants.get("permits") or [])
    return kind == "host" and _covered(value, replies.texts(grants.get("hosts")), row.reason)


def _covered(value: str, granted: Sequence[str], reason: str) -> bool:
    host, _, port = value.rpartition(":")
    if egress.ANY in granted and not reason.startswith("port not granted"):
        return True
    return any(one == value or egress.covers(one, host.strip("[]"), int(port or 0)) for one in granted)


def _of_call(plugin_id: str, row: wire.AuditRow) -> Advice | None:
    """A call that did not go well when it was last made."""
    why = f"{row.target} was denied when it last called it: {row.code}: {row.reason}"
    kind, _, value = str(row.detail.get(hostcall.FIX) or "").partition("=")
    if kind == "secret":
        return Advice(why, shlex.join(["latticectl", "secret", "bind", value, plugin_id]))
    if row.target not in hostcall.CAPABILITY_OF:
        return Advice(f"it calls {row.target}, which this version of latticed does not have", "latticectl version")
    if row.code == hostcall.Denial.NOT_FOUND:  # an answer like any other
        return None
    if row.code == hostcall.Denial.EGRESS_BLOCKED and row.reason.startswith("host not declared"):
        upgrade = shlex.join(["latticectl", "upgrade", plugin_id])
        return Advice(f"{why}: its publisher must declare it; with that bundle in the plugin directory", upgrade)
    return Advice(why, _BY_CODE.get(row.code, shlex.join(["latticectl", "logs", plugin_id])))


def _grant(plugin_id: str, permit: str) -> str:
    return shlex.join(["latticectl", "caps", "grant", plugin_id, permit])
