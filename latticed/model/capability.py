"""The 19 capabilities, their risk, and which type of plugin may hold them (contracts §2)."""

from __future__ import annotations

import functools
from enum import IntEnum
from types import MappingProxyType
from typing import Final


class Risk(IntEnum):
    """What a capability can do to the host; a higher one includes the lower ones."""

    READ = 0
    WRITE = 1
    HOST = 2

    @property
    def word(self) -> str:
        """The risk as manifests and answers name it: `read`, `write`, `host`."""
        return self.name.lower()


HTTP_EGRESS: Final = "http:egress"

RISKS: Final = MappingProxyType(
    {
        "audit:read": Risk.READ,
        "kv:read": Risk.READ,
        "monitor:read": Risk.READ,
        "node:read": Risk.READ,
        "static:read": Risk.READ,
        "task:read": Risk.READ,
        "kv:write": Risk.WRITE,
        "log:write": Risk.WRITE,
        "notify:send": Risk.WRITE,
        "worker:route": Risk.WRITE,
        "http:egress": Risk.HOST,
        "network:plan": Risk.HOST,
        "network:apply": Risk.HOST,
        "monitor:admin": Risk.HOST,
        "node:admin": Risk.HOST,
        "static:write": Risk.HOST,
        "task:run": Risk.HOST,
        "tunnel:admin": Risk.HOST,
        "ddns:admin": Risk.HOST,
    }
)
"""Every capability there is, with its risk."""

WORKER_MAY_HOLD: Final = frozenset({"worker:route", "kv:read", "static:read"})
"""A worker is a template: it can answer a route and read what the template names."""


def holders(capability: str) -> tuple[str, ...]:
    """The plugin types that may hold `capability`; KeyError for a name that is none."""
    types = ["system"]
    # The one host risk that a wasm plugin may have, if it is signed (contracts §2).
    if RISKS[capability] < Risk.HOST or capability == HTTP_EGRESS:
        types.append("wasm")
    if capability in WORKER_MAY_HOLD:
        types.append("worker")
    return tuple(types)


@functools.lru_cache(maxsize=1024)  # thousands of plugins hold a few sets between them
def host_risk(capabilities: tuple[str, ...]) -> frozenset[str]:
    """Those of `capabilities` that stay masked until an operator grants them by name."""
    return frozenset(c for c in capabilities if RISKS[c] is Risk.HOST)
