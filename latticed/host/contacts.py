"""Records which hosts plugins connect to, so that operators see what to grant. Best effort: no call fails for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from latticed.kit import logs
from latticed.kit.tasks import fenced
from latticed.ledger import contacts as rows

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from latticed.host.call import Caller
    from latticed.kit.clock import Clock
    from latticed.ledger import Ledger

REPEAT_S: Final = 60.0
"""Seconds before the same host of the same plugin is recorded again."""
MAX_REMEMBERED: Final = 10_000
"""Bounds memory: a plugin may contact any number of hosts. Beyond it all are forgotten, which only has them recorded
again early.
"""

log = logs.get_logger()


class Contacts:
    """Notes contacts; `note` does not delay the call: a task writes the row. If that fails, it is logged, and the next
    contact after REPEAT_S writes it.
    """

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._noted: dict[tuple[str, str], float] = {}

    def note(self, caller: Caller, host: str) -> None:
        """Record that `caller` is about to connect to `host` (`host:port`). Returns at once; of equal calls, one per
        REPEAT_S is written.
        """
        key, now_s = (caller.plugin_id, host), self._clock.monotonic_s()
        if now_s - self._noted.get(key, -REPEAT_S) < REPEAT_S:
            return
        if len(self._noted) >= MAX_REMEMBERED:
            self._noted.clear()
        # Before the row is written: calls that come meanwhile make no further tasks.
        self._noted[key] = now_s
        now_us = self._clock.wall_us()
        work = self._ledger.write(lambda tx: rows.note(tx, caller.plugin_id, host, now_us=now_us))
        fenced(_done(work), lambda error: log.error("contact_not_noted", error=repr(error)), name="contact")


async def _done(work: Awaitable[Any]) -> None:
    """Await `work`. It makes a coroutine of any awaitable, as `fenced` needs one."""
    await work
