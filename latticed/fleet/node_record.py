"""The node's own chain of events: each is signed, on disk, and given to the link until the engine has it."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final

from latticed.fleet.kept_state import EventSaid
from latticed.kit import logs
from latticed.kit.text import sanitise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from latticed.fleet.decisions import Decision, Followed
    from latticed.fleet.judging import Refusal
    from latticed.fleet.kept_state import KeptState
    from latticed.fleet.messages import NewEvent, ToLink

_REFUSALS_S: Final = 10.0
"""Between two refusals that are put on record: whoever has the engine may send as many as he likes."""

log = logs.get_logger()


@contextlib.contextmanager
def unwritable() -> Iterator[None]:
    """Log that the disk did not take what was to be kept, and go on."""
    try:
        yield
    except OSError as error:
        log.error("fleet_state_unwritable", reason=error.strerror or str(error))


class NodeRecord:
    """See the module. `send` gives a message to the link; `now_s` is the wall clock."""

    def __init__(self, kept: KeptState, send: Callable[[ToLink], None], now_s: Callable[[], float]) -> None:
        self._kept = kept
        self._send = send
        self._now_s = now_s
        self._refused_s = -_REFUSALS_S

    def say(self, action: str, target: str, code: str, reason: str) -> None:
        """Chain, sign and keep one event of the agent's own. What the disk does not take is in the log alone."""
        with unwritable():
            self.add(action, target, code, reason)

    def add(self, action: str, target: str, code: str, reason: str, *, followed: Followed | None = None) -> None:
        """As `say`; OSError. `followed` is kept in the same step."""
        said = EventSaid(
            at=int(self._now_s()), action=action, target=sanitise(target, 200), code=code, reason=sanitise(reason, 400)
        )
        self._publish(self._kept.add_event(said, followed=followed))

    def tell(self, decision: Decision, *, at_s: int, followed: Followed) -> None:
        """A decision of the daemon's, with how far its record is followed then. OSError."""
        said = EventSaid(
            at=at_s,
            action=decision.action,
            target=sanitise(decision.target, 200),
            code=sanitise(decision.code, 64),
            reason=sanitise(decision.reason, 400),
            decision=decision.decision if decision.decision in {"allow", "deny"} else "-",
            actor=sanitise(decision.actor, 200),
            seq=decision.seq,
        )
        self._publish(self._kept.add_event(said, followed=followed))

    def _publish(self, message: NewEvent | None) -> None:
        if message is not None:
            self._send(message)

    def refused(self, action: str, verdict: Refusal) -> None:
        """Put a refusal on record, unless the last one was just now; the status has it in any case."""
        now = time.monotonic()
        if now - self._refused_s >= _REFUSALS_S:
            self._refused_s = now
            log.warning("fleet_refused", code=verdict.code, reason=verdict.reason)
            self.say(action, "", verdict.code, verdict.reason)

    def repeat(self) -> None:
        """Give the link all that the engine has not acknowledged."""
        for message in self._kept.events():
            self._send(message)
