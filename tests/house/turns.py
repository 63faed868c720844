"""Measures the CPU time of each turn of a daemon's event loop: everything else waits that long.

Run as a program this is latticed with a probe in it (`turns.py REPORT ARGUMENTS…`). `Turns` reads the report:

with daemons.placed(probed=True) as place, place.running() as daemon:
    with daemon.turns.short():
        ...  # fails when a turn cost more than it may

It is the CPU time of the loop's thread, which a busy machine does not change, unlike wall-clock time. Garbage
collections during the turn are included.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import mmap
import struct
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORST_S = 0.150
"""What no turn may cost: six times what the longest ones were measured to. Time for which the host of a virtual machine
takes its processor away counts as CPU time: once, one of 554 turns took 116 ms, and all others less than 8.
"""
P99_S = 0.020
"""What one turn in a hundred may cost at most."""
TOLD_S = 0.008
"""Turns of that cost are named in the report."""
_FEW = 3
"""Turns that may be longer in a short test, where one in a hundred would be none: a collection of garbage, say."""
_STEP_S = 0.000_25
_STEPS = 400
_COUNTS = struct.Struct(f"={_STEPS}Q")


@dataclass(frozen=True, slots=True)
class Turns:
    """The report of a probed daemon: how many turns cost how much (`path`), and which were long (`path`.long)."""

    path: Path

    def counts(self) -> tuple[int, ...]:
        """Turns so far by cost, in steps of `_STEP_S`; the last takes all that cost more."""
        return _COUNTS.unpack(self.path.read_bytes())

    def long(self) -> list[dict[str, Any]]:
        """Turns of `TOLD_S` and more, in order: `cost_s`, `worst` (its dearest callback), `worst_s`, `collecting_s`."""
        return [json.loads(line) for line in _beside(self.path).read_text().splitlines()]

    @contextlib.contextmanager
    def short(self, *, worst_s: float = WORST_S, p99_s: float = P99_S) -> Iterator[None]:
        """Within the block no turn costs more than `worst_s`, and not one in a hundred more than `p99_s`."""
        before, told = self.counts(), len(self.long())
        yield
        counts = [after - earlier for after, earlier in zip(self.counts(), before, strict=True)]
        long = sorted(self.long()[told:], key=lambda one: -one["cost_s"])
        found_s = p99(counts)
        summary = f"{sum(counts)} turns, p99 {found_s * 1000:.2f} ms, longest {long[:3]}"
        print(summary)
        assert not long or long[0]["cost_s"] <= worst_s, f"expected turns of {worst_s} s at most: {summary}"
        assert found_s <= p99_s, f"expected 99 of 100 turns within {p99_s} s: {summary}"


def p99(counts: list[int]) -> float:
    """The cost in seconds that 99 of 100 turns stay within, rounded up to a step; of few turns, all but `_FEW`."""
    allowed = max(sum(counts) // 100, _FEW)
    for step in reversed(range(_STEPS)):
        allowed -= counts[step]
        if allowed < 0:
            return (step + 1) * _STEP_S
    return 0.0


def _beside(path: Path) -> Path:
    return path.with_suffix(".long")


class Probe:
    """Measures turns in the thread that it is made in."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._counts = memoryview(mmap.mmap(file.fileno(), _COUNTS.size)).cast("Q")
        self._long = _beside(path).open("ab", buffering=0)
        self._thread = threading.get_ident()
        self._worst: tuple[float, str] = (0.0, "")
        self._collecting_s = self._began_s = 0.0

    def install(self) -> None:
        gc.callbacks.append(self._collected)
        turn, run = asyncio.base_events.BaseEventLoop._run_once, asyncio.events.Handle._run  # type: ignore[attr-defined]

        def timed_turn(loop: asyncio.AbstractEventLoop) -> None:
            self._worst, self._collecting_s = (0.0, ""), 0.0
            began_s = time.thread_time()
            try:
                turn(loop)
            finally:
                self._note(time.thread_time() - began_s)

        def timed_run(handle: asyncio.Handle) -> None:
            began_s = time.thread_time()
            callback = handle._callback  # type: ignore[attr-defined]
            try:
                run(handle)
            finally:
                cost_s = time.thread_time() - began_s
                if cost_s > self._worst[0]:
                    self._worst = (cost_s, _named(callback) if cost_s >= TOLD_S / 4 else "")

        asyncio.base_events.BaseEventLoop._run_once = timed_turn  # type: ignore[attr-defined]
        asyncio.events.Handle._run = timed_run  # type: ignore[attr-defined]

    def _note(self, cost_s: float) -> None:
        self._counts[min(int(cost_s / _STEP_S), _STEPS - 1)] += 1
        if cost_s >= TOLD_S:
            worst_s, worst = self._worst
            found = {"cost_s": cost_s, "worst": worst, "worst_s": worst_s, "collecting_s": self._collecting_s}
            self._long.write(json.dumps({key: _rounded(value) for key, value in found.items()}).encode() + b"\n")

    def _collected(self, phase: str, _info: dict[str, int]) -> None:
        if threading.get_ident() != self._thread:
            return
        if phase == "start":
            self._began_s = time.thread_time()
        else:
            self._collecting_s += time.thread_time() - self._began_s


def _rounded(value: object) -> object:
    return round(value, 4) if isinstance(value, float) else value


def _named(callback: Any) -> str:
    """A callback's name; of a task's step the coroutines down to where it waits now."""
    task = getattr(callback, "__self__", None)
    if not isinstance(task, asyncio.Task):
        return getattr(callback, "__qualname__", repr(callback))
    names, at = [], task.get_coro()
    while at is not None and hasattr(at, "cr_frame"):
        line = f":{at.cr_frame.f_lineno}" if at.cr_frame is not None else ""
        names.append(f"{at.__qualname__}{line}")
        at = at.cr_await
    return " > ".join(names)


def prepare(path: Path) -> list[Path]:
    """Make the empty report that a probed daemon fills; its files, which the daemon must be able to write."""
    path.write_bytes(bytes(_COUNTS.size))
    _beside(path).touch()
    return [path, _beside(path)]


if __name__ == "__main__":
    from latticed import daemon

    report = Path(sys.argv.pop(1))
    Probe(report).install()
    sys.exit(daemon.main())
