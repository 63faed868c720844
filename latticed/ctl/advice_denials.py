"""Which of a plugin's denied host calls would be denied again, and the command that changes that. Pure."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import codes, replies
from latticed.ctl.advice_failures import Advice
from latticed.model import egress, hostcall, permits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from latticed import wire

_NOT_OF_PLUGIN: Final = frozenset({"rate_limited", "quota_exceeded", "service_unavailable", "audit_unavailable"})
"""Codes of denials that no grant would lift and the plugin's logs do not explain."""

_CHECK: Final = "latticed --check-config"


def suffered(
    plugin_id: str,
    denials: Sequence[wire.AuditRow],
    grants: Mapping[str, Any],
    causes: Mapping[str, Any],
    started_at: str | None,
) -> Advice | None:
    """Advice on the newest denial that would happen again, or None; those that a grant lifts come first.

    Other denials are ignored if the call succeeded since, if what it needed is granted by now, or if they are older
    than the plugin's present instance (`started_at`, RFC 3339).
    """
    working = replies.texts(causes.get("working"))
    calls = [row for row in denials if row.action == "host.call"]
    # First pass: only what a grant lifts, however old: it stays denied until it is granted.
    for row in calls:
        if (found := _access(plugin_id, row, grants)) is not None:
            return found
    for row in calls:
        # Second pass: other failures, as far as they are of this instance and have not gone away.
        if row.target in working or _granted(row, grants) or row.ts < (started_at or ""):
            continue
        if (found := _of_call(plugin_id, row, replies.texts(causes.get("missing_secrets") or []))) is not None:
            return found
    return None


def of_dns(plugin_id: str, causes: Mapping[str, Any]) -> Advice | None:
    """Advice on a DNS record that its provider denied: the daemon retries it only when an operator asks."""
    records = causes.get("denied_records")
    for one in records if isinstance(records, list) else []:
        name = str(one.get("name") or "")
        why = f"its DNS record {name} was denied: {one.get('code')}: {one.get('reason')}; once that is mended"
        return Advice(why, shlex.join(["latticectl", "ddns", "retry", plugin_id, name]))
    return None


def of_services(plugin_id: str, causes: Mapping[str, Any]) -> Advice | None:
    """Advice on a service that failed for good or may not run; the daemon does not start it again by itself."""
    services = causes.get("failed_services")
    for one in services if isinstance(services, list) else []:
        code = str(one.get("code") or "")
        known = codes.text_of(code)
        why = f"its service {one.get('name')} does not run: {code}: {one.get('reason')}"
        if known is None:
            return Advice(why, shlex.join(["latticectl", "service", "list", plugin_id]))
        return Advice(f"{why}; {known.why}", known.command.replace("{id}", plugin_id))
    return None


def _access(plugin_id: str, row: wire.AuditRow, grants: Mapping[str, Any]) -> Advice | None:
    """Advice on a denial for want of a capability, host or permit that is still not effective, else None."""
    needed = hostcall.CAPABILITY_OF.get(row.target, "")
    if row.code == hostcall.Denial.CAPABILITY_NOT_GRANTED and needed in replies.texts(grants.get("masked")):
        why = f"it was denied {needed}, which it declares and nobody granted"
        return Advice(why, _grant(plugin_id, f"cap={needed}"))
    if row.code == hostcall.Denial.CAPABILITY_DENIED and needed not in replies.texts(grants.get("declared")):
        why = f"it calls {row.target}, and its manifest does not declare {needed}: its publisher must declare it"
        command = shlex.join(["latticectl", "upgrade", plugin_id, "--accept", needed])
        return Advice(f"{why}; with that bundle in the plugin directory", command)
    fix = str(row.detail.get(hostcall.FIX) or "")
    # What the plugin named need not be what can be granted.
    if (fix.startswith("host=") or permits.fault(fix) is None) and not _granted(row, grants):
        return Advice(f"{row.target} was denied: {row.reason}", _grant(plugin_id, fix))
    return None


def _granted(row: wire.AuditRow, grants: Mapping[str, Any]) -> bool:
    """Whether what this denied call needed is granted by now. Call `_access` first: it handles missing capabilities."""
    if row.code in {hostcall.Denial.CAPABILITY_NOT_GRANTED, hostcall.Denial.CAPABILITY_DENIED}:
        return True  # otherwise `_access` would have returned advice
    kind, _, value = str(row.detail.get(hostcall.FIX) or "").partition("=")
    if kind in permits.EXPECTED:
        return f"{kind}={value}" in replies.texts(grants.get("permits") or []) or (
            kind == permits.PREFIX and value in replies.texts((grants.get("accepted") or {}).get("prefixes") or [])
        )
    return kind == "host" and _covered(value, replies.texts(grants.get("hosts")), row.reason)


def _covered(value: str, granted: Sequence[str], reason: str) -> bool:
    """Whether a granted pattern covers `value` (host:port); `*` does, unless the denial was about the port."""
    host, _, port = value.rpartition(":")
    if egress.ANY in granted and not reason.startswith("port not granted"):
        return True
    return any(one == value or egress.covers(one, host.strip("[]"), int(port or 0)) for one in granted)


def _of_call(plugin_id: str, row: wire.AuditRow, missing_secrets: Sequence[str]) -> Advice | None:
    """Advice on a call that failed for another reason than a missing grant."""
    why = f"{row.target} was denied when it last called it: {row.code}: {row.reason}"
    kind, _, value = str(row.detail.get(hostcall.FIX) or "").partition("=")
    if kind == "secret":
        set_ = f"{shlex.join(['latticectl', 'secret', 'set', value])} && " if value in missing_secrets else ""
        return Advice(why, set_ + shlex.join(["latticectl", "secret", "bind", value, plugin_id]))
    if kind == "setting":
        return Advice(f"{why}; change {value} in the settings, check them, and reload the daemon", _CHECK)
    if row.target not in hostcall.CAPABILITY_OF:
        return Advice(f"it calls {row.target}, which this version of latticed does not have", "latticectl version")
    if row.code == hostcall.Denial.NOT_FOUND:  # an ordinary answer, such as for a missing key
        return None
    if row.code == hostcall.Denial.EGRESS_BLOCKED and row.reason.startswith("host not declared"):
        upgrade = shlex.join(["latticectl", "upgrade", plugin_id])
        return Advice(f"{why}: its publisher must declare it; with that bundle in the plugin directory", upgrade)
    known = codes.text_of(row.code) if row.code in _NOT_OF_PLUGIN else None
    return Advice(why, known.command if known is not None else shlex.join(["latticectl", "logs", plugin_id]))


def _grant(plugin_id: str, permit: str) -> str:
    """The command that grants one permit."""
    kind, _, value = permit.partition("=")
    force = ["--force"] if kind == permits.ORIGIN and egress.is_metadata(egress.origin(value)) else []
    return shlex.join(["latticectl", "caps", "grant", plugin_id, permit, *force])
