"""What a change of a monitor's state produces: the notification, in the name of the plugin that owns the monitor, and
the audit event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from latticed.kit import clock
from latticed.ledger.notifications import NotificationRow
from latticed.model.audit import Actor, Event

if TYPE_CHECKING:
    from latticed.host.monitor.spec import MonitorSpec
    from latticed.ledger.monitors import Result

Alert = Literal["up", "down"]
"""The state that a monitor has changed to."""


def message(alert: Alert, name: str, spec: MonitorSpec, result: Result, *, key: int, since_us: int) -> NotificationRow:
    """The notification of a change to `alert`, not yet in the ledger.

    `result` is the one that caused the change, with its number; `key` is that of the monitor's row. `since_us`: start
    of the previous state, wall clock in µs; 0 when that was `unknown`, and the body then has no such line.

    `dedupe` is unique to this transition, so that no alert is dropped as a duplicate of another.
    """
    # Without the URL's query (`MonitorSpec.shown`): notifications and audit events are also read by others than the
    # owner, and a query may contain a token.
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
    """The audit event `monitor.alert` of a change to `alert`, caused by `result`.

    `notification`: the id of the notification, or the code of the Problem that prevented it (`quota_exceeded`).
    """
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
