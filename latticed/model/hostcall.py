"""The table of host calls, and the capability that each needs (contracts §9)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from latticed.model.fault import Fault

_BY_CAPABILITY: Final = {
    "kv:read": ("kv.get", "kv.list"),
    "kv:write": ("kv.put", "kv.delete"),
    "log:write": ("log.write",),
    "http:egress": ("http.do", "mail.send"),
    "notify:send": ("notify.send",),
    "audit:read": ("audit.query",),
    "node:read": ("node.facts", "node.metrics", "node.journal"),
    "node:admin": ("node.set_labels",),
    "monitor:read": ("monitor.list", "monitor.results"),
    "monitor:admin": ("monitor.put", "monitor.delete"),
    "static:read": ("static.get", "static.list"),
    "static:write": ("static.put", "static.delete"),
    "task:read": ("task.list", "task.get"),
    "task:run": (
        "task.submit",
        "task.cancel",
        "service.put",
        "service.delete",
        "service.status",
        "service.save",
        "service.saved",
        "service.revert",
    ),
    "tunnel:admin": ("tunnel.put", "tunnel.delete", "tunnel.status"),
    "worker:route": ("route.put", "route.delete"),
    "network:plan": ("network.state", "network.plan", "network.plans"),
    "network:apply": ("network.apply",),
    "ddns:admin": ("ddns.put", "ddns.delete", "ddns.status"),
}
"""By capability, the host calls that need it; a contract (contracts §9)."""

CAPABILITY_OF: Final = MappingProxyType({call: cap for cap, calls in _BY_CAPABILITY.items() for call in calls})
"""Every host call there is, and the capability it needs."""


IDLE: Final = frozenset(
    {
        "kv.get",
        "kv.list",
        "kv.put",
        "kv.delete",
        "log.write",
        "audit.query",
        "node.facts",
        "node.metrics",
        "node.journal",
        "monitor.list",
        "monitor.results",
        "static.get",
        "static.list",
        "task.list",
        "task.get",
        "service.status",
        "service.saved",
        "tunnel.status",
        "network.state",
        "network.plans",
        "ddns.status",
    }
)
"""Calls of a version that stands by while the one that replaced it is being watched: what it keeps is its own copy, and
the rest only reads.
"""
LENDING: Final = IDLE | {"http.do", "mail.send", "notify.send"}
"""Its calls while it answers for the other one, which is not armed: still nothing that would go on after the call."""


class Denial(StrEnum):
    """Why a host call was not carried out."""

    CAPABILITY_DENIED = "capability_denied"
    CAPABILITY_NOT_GRANTED = "capability_not_granted"
    RATE_LIMITED = "rate_limited"
    TOO_LARGE = "too_large"
    BAD_PARAMS = "bad_params"
    NOT_FOUND = "not_found"
    SERVICE_UNAVAILABLE = "service_unavailable"
    EGRESS_BLOCKED = "egress_blocked"
    QUOTA_EXCEEDED = "quota_exceeded"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    AUDIT_UNAVAILABLE = "audit_unavailable"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Denied(Fault):
    """A host call that is not carried out.

    `fix`: what an operator could grant, as `kind=value` (`secret=NAME`: bind it; `setting=NAME`: change it); recorded,
    and never shown to the plugin.
    """

    code: Denial
    fix: str = ""


FIX: Final = "fix"
"""Key in the detail of a denial's event: what an operator could grant to allow the call. Not shown to plugins."""


def calls_of(capability: str) -> tuple[str, ...]:
    """The host calls that need `capability`; KeyError for a name that is none."""
    return _BY_CAPABILITY[capability]
