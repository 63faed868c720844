"""The fleet as its controller has it: what the templates of its two pages get. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from latticed.console import plain

if TYPE_CHECKING:
    from latticed.model.errors import Problem

PER_PAGE: Final = 100
EVENTS: Final = 50
STATES: Final = MappingProxyType(
    {
        "settled": ("as it is to be", "good"),
        "pending": ("takes it up", ""),
        "unwell": ("not well", "bad"),
        "refused": ("refuses", "bad"),
        "waiting": ("waits for a plan", "warn"),
        "unassigned": ("has nothing to have", ""),
        "away": ("away", "warn"),
    }
)
"""Of nodes: each is in one; in words, and with its tone."""
_ROLLOUTS: Final = MappingProxyType({"running": "good", "halted": "warn", "returning": "bad", "returned": "bad"})
_LATEST_S: Final = 1 << 37


def overview(found: Any, page: Any, *, problem: Problem | None, after: str) -> dict[str, Any]:
    """The page of all nodes; `page` is one of the controller's list, `after` what it was asked for."""
    nodes = plain.mapping(found, "nodes")
    return {
        "problem": problem,
        "fleet": plain.text(found, "fleet"),
        "acting": _acting(found) if found else None,
        "counts": [(says, plain.number(nodes, name), tone) for name, (says, tone) in STATES.items()],
        "alarms": [_alarm(one) for one in plain.rows(found, "alarms")],
        "rollouts": [_rollout(one) for one in plain.rows(found, "rollouts")],
        "nodes": [_node(one) for one in plain.rows(page, "nodes")],
        "next": plain.text(page, "next"),
        "after": after,
    }


def node(found: Any, events: Any, *, problem: Problem | None) -> dict[str, Any]:
    """The page of one node."""
    row = plain.mapping(found, "node")
    return {
        "problem": problem,
        "node": _node(row),
        "key": plain.text(found, "key"),
        "expires": moment(found, "expires"),
        "rollout": plain.text(found, "rollout"),
        "missed": plain.number(found, "missed"),
        "plans": plain.texts(found, "plans"),
        "alarms": [_alarm(one) for one in plain.rows(found, "alarms")],
        "plugins": [_plugin(one) for one in plain.rows(found, "plugins")],
        "events": [_event(one) for one in reversed(plain.rows(events, "events"))],
    }


def moment(row: Any, name: str) -> str:
    """A member that is seconds since 1970 as RFC 3339; empty for 0, which stands for never, and for what is no time."""
    at = plain.number(row, name)
    return datetime.fromtimestamp(at, UTC).isoformat() if 0 < at < _LATEST_S else ""


def _acting(found: Any) -> list[tuple[str, str, str]]:
    """(what, words, tone) of what the fleet stands on."""
    engine, certificate, lease = (plain.mapping(found, name) for name in ("engine", "certificate", "lease"))
    leads = plain.flag(found, "leader")
    holder = plain.text(lease, "holder") or "nobody is known to act"
    connected = plain.flag(engine, "connected")
    state = plain.text(certificate, "state")
    return [
        ("Controller", f"{plain.text(found, 'controller')}: {'acts' if leads else f'waits, {holder} acts'}", ""),
        ("Messages", "connected" if connected else plain.text(engine, "reason"), "good" if connected else "bad"),
        ("Certificate", state, "good" if state == "valid" else "bad"),
    ]


def _alarm(one: dict[str, Any]) -> dict[str, str]:
    names = ("code", "reason", "hint", "node")
    return {**{name: plain.text(one, name) for name in names}, "since": moment(one, "since")}


def _rollout(one: dict[str, Any]) -> dict[str, Any]:
    waves = plain.rows(one, "waves")
    state = plain.text(one, "state")
    return {
        **{name: plain.text(one, name) for name in ("name", "reason")},
        "state": state,
        "tone": _ROLLOUTS.get(state, "warn"),
        "wave": plain.number(one, "wave") + 1,
        "waves": len(waves),
        "touched": plain.number(one, "touched"),
        "nodes": plain.number(one, "nodes"),
        "unwell": plain.texts(one, "unwell")[:10],
    }


def _node(one: dict[str, Any]) -> dict[str, Any]:
    state = plain.text(one, "state")
    labels = plain.mapping(one, "labels")
    refused = ": ".join(filter(None, (plain.text(one, "refused"), plain.text(one, "reason"))))
    return {
        "name": plain.text(one, "name"),
        "state": state,
        "says": STATES[state][0] if state in STATES else state,
        "tone": STATES[state][1] if state in STATES else "",
        "present": plain.flag(one, "present"),
        "labels": [f"{name}={value}" for name, value in sorted(labels.items())],
        "has": plain.text(one, "intent")[:12],
        "assigned": plain.text(one, "assigned")[:12],
        "generation": plain.number(one, "generation"),
        "seen": moment(one, "seen"),
        "plugins": plain.number(one, "plugins"),
        "unhealthy": plain.number(one, "unhealthy"),
        "plans": plain.number(one, "plans"),
        "why": refused,
    }


def _plugin(one: dict[str, Any]) -> dict[str, Any]:
    health = plain.text(one, "health")
    return {
        **{name: plain.text(one, name) for name in ("id", "version", "status", "state", "code", "reason")},
        "health": health,
        "tone": {"healthy": "good", "degraded": "warn", "unhealthy": "bad"}.get(health, ""),
        "restarts": plain.number(one, "restarts"),
        "denied": plain.number(one, "denied"),
    }


def _event(one: dict[str, Any]) -> dict[str, str]:
    names = ("node", "action", "target", "code", "reason")
    return {**{name: plain.text(one, name) for name in names}, "at": moment(one, "at")}
