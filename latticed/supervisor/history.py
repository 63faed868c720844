"""Looks at each plugin once a minute, a few at a time, and keeps what it did in its ring.

Nothing of it is written: after a restart of the daemon each ring begins anew.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Self

from latticed.supervisor.ring import Counters, HistoryRing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from latticed.broker.gate import Count
    from latticed.kit.clock import Clock
    from latticed.kit.wheel import Ticket, Wheel
    from latticed.supervisor.handle import Handle

MINUTE_S: Final = 60
TURN_S: Final = 0.1
"""How often it goes on with the plugins of a minute."""
AT_ONCE: Final = 40
"""How many plugins it looks at in one turn, at most. One takes 1 µs that has no process, 25 µs with a control group,
100 µs by /proc; of 10,000 plugins 17 come in a turn, which is 0.03 % of a core for those without processes."""


class History:
    """The rings of all plugins that have a handle. A context manager; entered, it looks at them.

    `counts` are host calls by plugin id since the daemon started; `used` returns a plugin's milliseconds of processor
    time since then, and its memory in KiB.
    """

    def __init__(
        self,
        handles: Mapping[str, Handle],
        counts: Mapping[str, Count],
        used: Callable[[str], tuple[int, int]],
        *,
        clock: Clock,
        wheel: Wheel,
    ) -> None:
        self._handles = handles
        self._counts = counts
        self._used = used
        self._clock = clock
        self._wheel = wheel
        self._began_s = clock.monotonic_s()
        self._rings: dict[str, HistoryRing] = {}
        self._minute = 0
        self._left: list[str] = []  # of this minute, the next one last
        self._all = 0  # in this minute
        self._ticket: Ticket | None = None

    def __enter__(self) -> Self:
        self._ticket = self._wheel.every(TURN_S, self.look)
        return self

    def __exit__(self, *_: object) -> None:
        if self._ticket is not None:
            self._ticket.cancel()

    def of(self, plugin_id: str) -> HistoryRing | None:
        """The ring of a plugin; None for one that was never looked at. Do not change it."""
        return self._rings.get(plugin_id)

    def at_us(self, minute: int) -> int:
        """When a minute of the rings ended, in microseconds since the epoch by the clock of now."""
        ago_s = self._clock.monotonic_s() - self._began_s - minute * MINUTE_S
        return self._clock.wall_us() - int(ago_s * 1_000_000)

    def forget(self, plugin_id: str) -> None:
        """Drop the ring of a plugin."""
        self._rings.pop(plugin_id, None)

    def look(self) -> None:
        """Look at the plugins whose turn it is: evenly over the minute, so that no turn of the loop becomes long."""
        # Monotonic: an adjusted wall clock must not make a step of an hour.
        into_s = self._clock.monotonic_s() - self._began_s
        minute = int(into_s // MINUTE_S)
        if minute == 0:
            return  # the first minute is not over
        if minute != self._minute:
            # Whom the last minute did not come to has a gap there.
            self._minute, self._left = minute, list(self._handles)[::-1]
            self._all = len(self._left)
        due = math.ceil(self._all * (into_s % MINUTE_S + TURN_S) / MINUTE_S) - (self._all - len(self._left))
        for _ in range(min(due, len(self._left), AT_ONCE)):
            self._take(self._left.pop())

    def _take(self, plugin_id: str) -> None:
        """Look at one plugin."""
        handle = self._handles.get(plugin_id)
        if handle is None:  # forgotten meanwhile
            return
        cpu_ms, memory_kib = self._used(plugin_id)
        called = self._counts.get(plugin_id)
        now = Counters(
            cpu_ms=cpu_ms,
            memory_kib=memory_kib,
            restarts=handle.runtime().restart_count,
            calls=called.calls if called is not None else 0,
            denied=called.denied if called is not None else 0,
        )
        self._rings.setdefault(plugin_id, HistoryRing()).take(self._minute, now)
