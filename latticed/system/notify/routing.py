"""Which channels get an item, and what is held back. Pure: the time is an argument."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING, Final

from latticed.system.notify import check
from latticed.system.notify.intent import NotifyRule

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from latticed.system.notify.intent import FanoutIntent, NotifyItem, Quiet

QUIET: Final = "quiet"
"""The bundle of what quiet hours held back: one message when they are over."""
_SENDER: Final = "latticed"
_DEGRADED: Final = "channel.degraded"
_PLAIN: Final = NotifyRule(channels=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """One channel of an item. Items of one `bundle` within `window_s` become one message; `hold_s`: not before."""

    name: str
    bundle: str
    window_s: float = 0.0
    hold_s: float = 0.0


def route(intent: FanoutIntent, item: NotifyItem, now: datetime, *, avoid: Collection[str] = ()) -> list[Routed]:
    """The channels of an item: those of all rules that match, else the default ones.

    What is critical is never held back, and a rule without channels does not take it. News of a degraded channel goes
    to none of `avoid`, and to any other one where the rules leave none.
    """
    names = _names(intent, item)
    if item.sender == _SENDER and item.event == _DEGRADED:
        names = [name for name in names if name not in avoid] or [one for one in intent.channels if one not in avoid][
            :1
        ]
    return [_held(intent, item, name, now) for name in names]


def rule_of(intent: FanoutIntent, item: NotifyItem, channel: str) -> NotifyRule:
    """The rule by which an item is written for a channel: the first that matches and names it, else a plain one."""
    return next((one for one in _matching(intent, item) if channel in one.channels), _PLAIN)


def quiet_for_s(quiet: Quiet, now: datetime) -> float:
    """Seconds until the quiet hours end that `now` is in; 0 when it is in none.

    By the wall clock of the zone: a night in which clocks change is longer or shorter.
    """
    zone = check.zone(quiet.zone) or UTC
    start, end = time.fromisoformat(quiet.start), time.fromisoformat(quiet.end)
    local = now.astimezone(zone)
    clock = local.time().replace(tzinfo=None)
    if start < end:
        within, days = start <= clock < end, 0
    else:
        within, days = clock >= start or clock < end, int(clock >= start)
    if not within:
        return 0.0
    over = datetime.combine(local.date() + timedelta(days=days), end, tzinfo=zone)
    # Compared as instants: within one zone, subtraction would ignore that clocks change.
    return max(over.timestamp() - now.timestamp(), 1.0)


def _names(intent: FanoutIntent, item: NotifyItem) -> list[str]:
    matching = list(_matching(intent, item))
    found = list(dict.fromkeys(name for rule in matching for name in rule.channels))
    if found or (matching and item.severity != "critical"):
        return found
    return list(dict.fromkeys(intent.default))


def _held(intent: FanoutIntent, item: NotifyItem, name: str, now: datetime) -> Routed:
    is_critical = item.severity == "critical"
    quiet = rule_of(intent, item, name).quiet
    if quiet is not None and not is_critical and (hold_s := quiet_for_s(quiet, now)):
        return Routed(name=name, bundle=QUIET, hold_s=hold_s)
    # Of what is critical only the very same is a repeat: another disk that fails is told at once.
    parts = [item.sender, item.event, *([item.title] if is_critical else [])]
    bundle = "\n".join(parts) if intent.window_s else ""
    return Routed(name=name, bundle=bundle, window_s=intent.window_s)


def _matching(intent: FanoutIntent, item: NotifyItem) -> Iterable[NotifyRule]:
    return (one for one in intent.rules if _matches(one, item))


def _matches(rule: NotifyRule, item: NotifyItem) -> bool:
    return (
        (not rule.severities or item.severity in rule.severities)
        and (not rule.events or any(_fits(one, item.event) for one in rule.events))
        and (not rule.senders or any(_fits(one, item.sender) for one in rule.senders))
    )


def _fits(pattern: str, text: str) -> bool:
    """Whether a text is the pattern, or begins with what stands before its `*`."""
    return text.startswith(pattern[:-1]) if pattern.endswith("*") else text == pattern
