"""One audit event, before it is chained (contracts §11)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal

from msgspec import Struct

Decision = Literal["allow", "deny", "-"]
HOST_CALL: Final = "host.call"
"""The action of a plugin's call, allowed or denied; such events have a chain of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """The actor of an event: a local peer (uid, user, pid), a plugin, or the daemon itself.

    As text: `uid:1000 user:ada pid:4711`, `plugin:acme.demo`, `latticed`. Audit queries compare that text.
    """

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
"""The actor of what the daemon does by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What happened, before it has a place in a chain; the fields are those of contracts §11.

    `detail` holds strings, integers and booleans only. The ledger escapes and cuts all texts (`ledger.audit_text`).
    """

    actor: str
    action: str
    target: str
    decision: Decision = "-"
    code: str = ""
    reason: str = ""
    detail: dict[str, str | int | bool] = field(default_factory=dict)


class AllowedCall(Struct, frozen=True, gc=False):
    """A host call that was allowed: the event of which there are millions, with no text in it but names of ours.

    `size` and `sha256` (hex) are of its parameters, as the plugin wrote them. It can be read as an `Event`.
    """

    actor: str
    target: str
    size: int
    sha256: str

    action: ClassVar = HOST_CALL
    decision: ClassVar[Decision] = "allow"
    code: ClassVar = ""
    reason: ClassVar = ""

    @property
    def detail(self) -> dict[str, str | int | bool]:
        """What is recorded of its parameters."""
        return {"bytes": self.size, "sha256": self.sha256}
