"""One audit event, before it is chained (contracts §11)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

Decision = Literal["allow", "deny", "-"]
HOST_CALL: Final = "host.call"
"""The action of a plugin's call, allowed or denied; such events have a chain of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """The actor of an event: a local peer (uid, user, pid), a plugin, or the daemon itself."""

    kind: Literal["peer", "plugin", "daemon"]
    name: str = ""
    uid: int = -1
    pid: int = 0

    def __str__(self) -> str:
        match self.kind:
            case "peer":
                return f"uid:{self.uid} user:{self.name} pid:{self.pid}"
            case "plugin":
                return f"plugin:{self.name}"
            case _:
                return "latticed"


DAEMON = Actor(kind="daemon")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A fact worth keeping. `detail` holds strings, integers and booleans only; the ledger sanitises and caps all."""

    actor: str
    action: str
    target: str
    decision: Decision = "-"
    code: str = ""
    reason: str = ""
    detail: dict[str, str | int | bool] = field(default_factory=dict)
