"""A full disk: stopping a plugin is still recorded, from the space of the reserve."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from latticed.ledger import Ledger, audit, reserve
from latticed.model.audit import Event
from latticed.model.errors import Problem

Open = Callable[[], AbstractAsyncContextManager[Ledger]]
EVENT = Event(actor="a", action="b", target="c")

ON_A_FULL_DISK = """
import asyncio, json, os, pathlib, sys
from latticed.kit.clock import SystemClock
from latticed.ledger import audit, open_ledger
from latticed.model.audit import Event
from latticed.model.errors import Problem
from latticed.trust import audit_chain

disk = pathlib.Path(sys.argv[1])
ballast = disk / "ballast"
EVENT = Event(actor="a", action="b", target="c", reason="r" * 1000)

def held():
    return os.stat(disk / "state" / "reserve").st_blocks * 512

def fill():
    with ballast.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass

async def code_of(waiting):
    try:
        return await waiting
    except Problem as problem:
        return problem.code

async def main():
    found = {}
    async with open_ledger(disk / "state", clock=SystemClock()) as ledger:
        await ledger.record(EVENT)
        found["at_first"] = held()
        fill()
        while await code_of(ledger.record(EVENT)) != "audit_unavailable":
            pass
        found["full"] = held()
        before = ledger.read(audit.last_seq)
        stop = lambda tx: tx.append_audit(EVENT)
        found["essential"] = [await code_of(ledger.write(stop, durable=True, essential=True)) for _ in range(300)]
        found["spent"] = held()
        found["ordinary"] = await code_of(ledger.record(EVENT))
        found["told"] = ledger.unwritten.code
        batch = [ledger.record(EVENT), ledger.write(stop, essential=True), ledger.write(stop)]
        found["mixed"] = [str(one) for one in await asyncio.gather(*map(code_of, batch))]
        ledger.record_later(EVENT)
        while ledger._deferred.waiting:
            await asyncio.sleep(0.01)
        found["written"] = ledger.read(audit.last_seq) - before
    async with open_ledger(disk / "state", clock=SystemClock()) as ledger:
        found["again"] = await code_of(ledger.write(stop, essential=True))
        found["before"] = before
        found["floors"] = await code_of(ledger.write_floors(ledger.floors))
        await code_of(ledger.record(EVENT))
        found["told again"] = [ledger._writer.refused is not None, ledger._floors_refused is not None]
        ballast.unlink()
        while ledger.unwritten is not None:  # without a write of anybody
            await asyncio.sleep(0.01)
        found["after"] = await code_of(ledger.record(EVENT))
        found["back"] = held()
    fill()
    async with open_ledger(disk / "state", clock=SystemClock()) as ledger:
        found["opened"] = await code_of(ledger.write(stop, essential=True))
        ballast.unlink()
        part = {"after": 0, "upto": 1 << 40, "most": 1 << 30}
        stored = await ledger.read_slow(lambda db: audit.export_lines(db, "decisions", **part))
        report = audit_chain.verify(stored)
        found["verdict"] = report.problem
    print(json.dumps(found))

asyncio.run(main())
"""


@pytest.mark.root
def test_full_disk_records_essential_jobs_only(tmp_path: Path) -> None:
    """There are three hundred stops, a batch with both kinds, and a restart; once there is space, everything is written
    again.
    """
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare(1) to mount a small tmpfs")
    disk, script = tmp_path / "disk", tmp_path / "full.py"
    disk.mkdir()
    script.write_text(ON_A_FULL_DISK)
    mounted = ["sh", "-c", 'mount -t tmpfs -o size=4m none "$1" && exec "$2" "$3" "$1"', "sh"]
    command = ["unshare", "-m", *mounted, os.fspath(disk), sys.executable, os.fspath(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    if "permission denied" in done.stderr.lower() and "mount" in done.stderr:
        pytest.skip(f"this machine lets nobody mount: {done.stderr.strip()[:100]}")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["at_first"], found["full"], found["spent"]) == (reserve.BYTES, reserve.BYTES, 0)
    first = found["before"] + 1
    assert found["essential"] == list(range(first, first + 300))
    assert found["ordinary"] == "audit_unavailable"
    assert found["mixed"] == ["audit_unavailable", str(first + 300), "ledger_unavailable"]
    assert found["written"] == 302
    assert (found["told"], found["floors"], found["told again"]) == (
        "ledger_unavailable",
        "ledger_unavailable",
        [True, True],
    )
    assert found["again"] == first + 302
    assert found["after"] >= first + 303
    assert found["back"] == reserve.BYTES
    assert found["verdict"] == ""
    assert found["opened"] > found["after"]


class NoSpace:
    """posix_fallocate on a file system that is full when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error = 0
        self._real = os.posix_fallocate
        monkeypatch.setattr(os, "posix_fallocate", self)

    def __call__(self, *arguments: Any) -> None:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        self._real(*arguments)


async def test_reserve_is_allocated_at_start(opened: Open, state_dir: Path) -> None:
    """Mode 0600, and allocated again after a restart."""
    for _ in range(2):
        async with opened():
            found = (state_dir / reserve.FILE).stat()
            assert (found.st_size, found.st_mode & 0o777) == (reserve.BYTES, 0o600)
            assert found.st_blocks * 512 >= reserve.BYTES


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
async def test_only_essential_jobs_are_written_without_reserve(
    opened: Open, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """The ledger is started on a full disk; others are refused until the reserve can be allocated."""
    disk = NoSpace(monkeypatch)
    disk.error = error
    async with opened() as ledger:
        with pytest.raises(Problem, match="full"):
            await ledger.record(EVENT)
        assert await ledger.write(lambda tx: tx.append_audit(EVENT), essential=True) == 1
        disk.error = 0
        assert await ledger.record(EVENT) == 2


def test_reserve_file_that_cannot_be_created_counts_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds for lack of space only; any other failure is no reason to refuse writes."""
    found = reserve.Reserve(tmp_path)
    for error, held in ((errno.ENOSPC, False), (errno.EDQUOT, False), (errno.EACCES, True)):

        def refuse(*_: Any, error: int = error) -> int:
            raise OSError(error, os.strerror(error))

        with monkeypatch.context() as sick:
            sick.setattr(os, "open", refuse)
            assert found.held() is held


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM])
async def test_file_system_without_preallocation_needs_no_reserve(
    opened: Open, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    NoSpace(monkeypatch).error = error
    async with opened() as ledger:
        assert await ledger.record(EVENT) == 1


async def test_change_that_raises_is_not_retried(ledger: Ledger) -> None:
    """This holds for essential ones too: what it raises goes to its caller, and the reserve stays."""
    tries: list[int] = []

    def mistaken(tx: Any) -> None:
        tries.append(1)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await ledger.write(mistaken, essential=True)
    assert len(tries) == 1
    await asyncio.gather(ledger.record(EVENT), ledger.write(lambda tx: tx.append_audit(EVENT), essential=True))
    assert ledger.read(audit.last_seq) == 2
