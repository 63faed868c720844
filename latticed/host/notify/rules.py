"""What a delivery changes for its channel, and which of latticed's own events become notifications. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal

from latticed.kit import text
from latticed.kit.value import Value
from latticed.ledger.notifications import LONGEST_WAIT_US, NotificationRow, Severity
from latticed.model.audit import DAEMON

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.ledger.deliveries import Channel

SENDER: Final = str(DAEMON)
"""Who sends latticed's own notifications. No plugin can have this id (`ids.is_reserved_plugin`)."""
FANOUT: Final = "latticed.notify"
"""The built-in plugin that routes and delivers."""
DEGRADED: Final = "channel.degraded"
"""The event of the notification that tells of a degraded channel. It is never sent to a degraded one."""
GONE: Final = "no_such_channel"
"""The code for a channel that the configuration has no more."""
DEGRADED_AFTER_US: Final = 3_600 * 1_000_000
"""A channel that has failed for so long, or is to be left alone for so long, is degraded."""
_TITLE: Final = 200


class Outcome(Value, frozen=True, kw_only=True):
    """How an attempt ended. `done`: the other side has it; `retry`: later, after `retry_after_s` at the earliest;
    `fail`: not this message.

    `blames_channel`: the next message would fare alike (a token that is refused, a server that is down). `pause_s`:
    how long the channel sends nothing after this, for its rate.
    """

    outcome: Literal["done", "retry", "fail"]
    code: str = ""
    reason: str = ""
    retry_after_s: float = 0.0
    pause_s: float = 0.0
    blames_channel: bool = True


def after(channel: Channel, found: Outcome, *, now_us: int, backoff_s: Callable[[int], float]) -> Channel:
    """The state of a channel after an attempt. `backoff_s` gives the pause after so many failures in a row."""
    if found.outcome == "done":
        pause_us = _us(found.pause_s)
        return replace(
            channel,
            paused_until=now_us + pause_us,
            # After an outage what waited goes together, too.
            crowded=pause_us > 0 or channel.failures > 0,
            failures=0,
            failing_since=0,
            degraded=False,
            code="",
            reason="",
            last_success=now_us,
        )
    if not found.blames_channel:
        # Only what the attempt itself asks for: the channel may be fine. What waits for one that is gone goes together.
        paused_until = now_us + _us(max(found.retry_after_s, found.pause_s))
        return replace(channel, paused_until=paused_until, crowded=channel.crowded or found.code == GONE)
    failures = channel.failures + 1
    pause_us = _us(max(backoff_s(failures), found.retry_after_s, found.pause_s))
    since = channel.failing_since or now_us
    return replace(
        channel,
        paused_until=now_us + pause_us,
        crowded=True,
        failures=failures,
        failing_since=since,
        degraded=channel.degraded
        or found.outcome == "fail"
        or now_us - since >= DEGRADED_AFTER_US
        or pause_us >= DEGRADED_AFTER_US,
        code=found.code,
        reason=found.reason,
    )


def told(before: Channel, now: Channel, *, now_us: int) -> tuple[Channel, NotificationRow | None]:
    """The notification about a channel that has become degraded, and the channel with a mark that it was told.

    Once while it fails; one that changes back and forth is told of once an hour.
    """
    is_told = before.told_at >= now.failing_since
    recently = 0 <= now_us - before.told_at < DEGRADED_AFTER_US
    if not now.degraded or is_told or recently:
        return now, None
    why = f"{now.code}: {now.reason}" if now.reason else now.code
    row = NotificationRow(
        title=text.sanitise(f"channel {now.name} is degraded: {why}", _TITLE),
        body=f"what waits for it: latticectl notify list\nafter a change: latticectl notify test {now.name}",
        severity="error",
        event=DEGRADED,
    )
    return replace(now, told_at=now_us), row


_PLAN: Final[dict[str, tuple[str, Severity, str]]] = {
    "plan.apply": ("plan.unconfirmed", "warning", "waits for its confirmation: latticectl plan confirm {short}"),
    "plan.rollback": ("plan.rolled-back", "error", "was rolled back"),
    "plan.drift": ("plan.drift", "warning", "is not what is live any more: something else changed it"),
}
_LOST: Final = frozenset({"audit.lost", "ledger.recovered"})


def own(event: dict[str, Any]) -> NotificationRow | None:
    """The notification about one audit event (contracts §11), or None for what nobody is told of.

    Nothing about the plugin that delivers, nor about deliveries: trouble of the fan-out would feed itself.
    """
    action, target = str(event["action"]), str(event["target"])
    code, detail = str(event["code"]), event["detail"]
    found: tuple[str, Severity, str] | None = None
    if target == FANOUT:
        found = None
    elif action == "plugin.runtime" and detail.get("state") == "failed":
        is_open = bool(detail.get("breaker"))
        words = "failed too often and is not started again" if is_open else "failed"
        found = ("plugin.breaker", "critical", words) if is_open else ("plugin.failed", "error", words)
    elif action == "plugin.upgrade" and event["decision"] == "deny" and code != "rolled_back":
        # Not of an operator's own decision.
        found = "plugin.rolled-back", "error", f"is at version {detail.get('before')} again"
    elif action in {"plugin.verdict", "bundle.verdict"} and event["decision"] == "deny":
        severity: Severity = "error" if action == "plugin.verdict" else "warning"
        found = "bundle.refused", severity, "is refused"
    elif action == "trust.revoked":
        found = "trust.revoked", "warning", "is revoked"
    elif action in _PLAN and event["decision"] != "deny":
        # Nobody has to confirm what only takes away; an operator who undoes a change knows of it.
        if (action == "plan.apply" and detail.get("narrows")) or (action == "plan.rollback" and code == "operator"):
            return None
        name, severity, words = _PLAN[action]
        found = name, severity, words.format(short=target[:12])
    elif action in _LOST:
        found = "disk.lost", "critical", "could not be written for a while, or was damaged"
    if found is None:
        return None
    name, severity, words = found
    shown = f"plan {target[:12]}" if action in _PLAN else target
    title = f"{shown} {words}" + (f" ({code})" if code else "")
    # The seq makes the key: told once, whatever is lost of what was read.
    dedupe = f"audit:{event['seq']}:{str(event['hash'])[:16]}"
    return NotificationRow(
        title=text.sanitise(title, _TITLE), body=str(event["reason"]), severity=severity, event=name, dedupe=dedupe
    )


def _us(seconds: float) -> int:
    """A pause in microseconds, none longer than what the queue waits for a retry."""
    return min(round(max(seconds, 0.0) * 1_000_000), LONGEST_WAIT_US)
