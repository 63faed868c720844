"""The notification (in the owner's name) and the audit event of a transition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from latticed.kit import clock
from latticed.ledger.notifications import NotificationRow
from latticed.model.audit import Actor, Event

if TYPE_CHECKING:
    from latticed.host.monitor.spec import MonitorSpec
    from latticed.ledger.monitors import Result

Alert = Literal["up", "down"]


def message(alert: Alert, name: str, spec: MonitorSpec, result: Result, *, key: int, since_us: int) -> NotificationRow:
    """`since_us`: start of the previous state, wall clock in µs; 0 when that was `unknown`.

    `dedupe` is unique to this transition, so that no alert is dropped as a duplicate of another.
    """
    lines = [f"{spec.kind} {spec.shown}"]
    if result.code or result.reason:
        lines.append(": ".join(part for part in (result.code, result.reason) if part))
    if since_us:
        lines.append(f"it was {'up' if alert == 'down' else 'down'} since {clock.rfc3339(since_us)}")
    return NotificationRow(
        title=f"{name} is {alert}",
        body="\n".join(lines),
        severity="critical" if alert == "down" else "info",
        event=f"monitor.{alert}",
        dedupe=f"monitor:{key}:{result.number}",
    )


def event(alert: Alert, plugin_id: str, name: str, spec: MonitorSpec, result: Result, *, notification: str) -> Event:
    """`notification`: its id, or the code of the error for which there is none."""
    detail: dict[str, str | int | bool] = {
        "state": alert,
        "kind": spec.kind,
        "target": spec.shown,
        "check": result.number,
        "notification": notification,
    }
    return Event(
        actor=str(Actor(kind="plugin", name=plugin_id)),
        action="monitor.alert",
        target=name,
        code=result.code,
        reason=result.reason,
        detail=detail,
    )
