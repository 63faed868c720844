"""The helper's own chain of steps: what was approved, applied, confirmed and undone, each linked to the one before.

Of the form of the audit chains (contracts §11, `model.chain`), in files of PER_FILE lines each, NDJSON:

    steps/00000000.ndjson   seq 1 to 1000
    steps/00000001.ndjson   seq 1001 to 2000

The daemon copies them by `observe`; a daemon that alters its copy does not alter these. Blocking. Helper and dead-men
append, one at a time (`steps/lock`).
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

import msgspec

from latticed.kit import clock as clocks
from latticed.kit import files, text
from latticed.model import chain
from latticed.plans import protocol, store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from latticed.kit.clock import Clock

PER_FILE: Final = 1_000
FILES: Final = 50
"""Files that are kept: 50,000 steps, some 25 MB at most. The daemon's copies are older than that."""
_MAX_FILE_BYTES: Final = 4 << 20
_MAX_REASON: Final = 300
_LOCK_S: Final = 2.0
"""How long to wait for another process that appends; it takes milliseconds."""


class StepChain:
    """The chain in `directory`. Several objects, and processes, may use it at once."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock

    def append(
        self, action: str, target: str, *, actor: str, code: str = "", reason: str = "", **detail: str | int | bool
    ) -> None:
        """Append one step and have it on disk. OSError; Problem busy.

        `action` as `plan.apply`, `target` the plan's name, `actor` as audit events name it.
        """
        fd = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with files.closing(fd):
            store.lock(fd, _LOCK_S)
            event = {
                "actor": text.sanitise(actor, 200),
                "action": action,
                "target": target,
                "decision": "allow",
                "code": code,
                "reason": text.sanitise(reason, _MAX_REASON),
                "detail": {
                    key: text.sanitise(one, 200) if isinstance(one, str) else one for key, one in detail.items()
                },
            }
            self._write(event)

    def _write(self, event: dict[str, Any]) -> None:
        """Link the event to the last one and write it, with the lock held. OSError: nothing of it is left."""
        last = self._last()
        seq, prev = (last["seq"] + 1, last["hash"]) if last else (1, chain.GENESIS)
        event |= {"seq": seq, "ts": clocks.rfc3339(self._clock.wall_us()), "prev": prev}
        event["hash"] = chain.link(prev, event)
        path = self._directory / f"{(seq - 1) // PER_FILE:08d}.ndjson"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with files.closing(fd):
            size = os.fstat(fd).st_size
            try:
                # A line whose writer was killed has no newline yet, and was promised to nobody.
                whole = _whole_bytes(fd, size)
                os.ftruncate(fd, whole)
                size = whole
                files.write_all(fd, chain.encode(event).encode("ascii") + b"\n")
                os.fsync(fd)
            except OSError:
                os.ftruncate(fd, size)  # half a line of a full disk
                raise
        if (seq - 1) % PER_FILE == 0:
            files.sync_directory(self._directory)
            self._retire()

    def after(self, seq: int, limit: int) -> tuple[protocol.Step, ...]:
        """At most `limit` steps that follow `seq`, oldest first. OSError."""
        found: list[protocol.Step] = []
        for number in self._numbers():
            if (number + 1) * PER_FILE <= seq:
                continue
            for event in self._events(number):
                if event["seq"] > seq and len(found) < limit:
                    found.append(msgspec.convert(event, protocol.Step))
            if len(found) >= limit:
                break
        return tuple(found)

    def bounds(self) -> tuple[int, int]:
        """The seq of the oldest and of the newest step that is kept; 0 and 0 for none."""
        numbers, last = self._numbers(), self._last()
        return (numbers[0] * PER_FILE + 1, last["seq"]) if last else (0, 0)

    def _last(self) -> dict[str, Any] | None:
        """The newest whole step."""
        for number in reversed(self._numbers()):
            last = None
            for last in self._events(number):  # noqa: B007 - the last one is wanted
                pass
            if last is not None:
                return last
        return None

    def _numbers(self) -> list[int]:
        """The files' numbers, in order."""
        names = [name.removesuffix(".ndjson") for name in os.listdir(self._directory)]
        return sorted(int(name) for name in names if len(name) == 8 and name.isdecimal())

    def _events(self, number: int) -> Iterator[dict[str, Any]]:
        """The whole lines of one file."""
        data = files.read_at_most(self._directory / f"{number:08d}.ndjson", _MAX_FILE_BYTES)
        for line in data.split(b"\n")[:-1]:
            yield json.loads(line)

    def _retire(self) -> None:
        """Remove the oldest files beyond FILES."""
        for number in self._numbers()[:-FILES]:
            (self._directory / f"{number:08d}.ndjson").unlink()


def verify(steps: Iterable[protocol.Step], *, prev: str = chain.GENESIS) -> int:
    """How many of the steps are linked as they must be, from the first on. `prev`: the hash before the first."""
    count = 0
    for step in steps:
        event = msgspec.to_builtins(step)
        if step.prev != prev or chain.link(prev, event) != step.hash:
            break
        prev, count = step.hash, count + 1
    return count


def _whole_bytes(fd: int, size: int) -> int:
    """The length of a file up to its last newline."""
    if size == 0 or os.pread(fd, 1, size - 1) == b"\n":
        return size
    start = max(0, size - (64 << 10))  # longer than any line
    return start + os.pread(fd, size - start, start).rfind(b"\n") + 1
