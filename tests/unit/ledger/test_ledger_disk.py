"""Storage failures: SIGKILL during writes, a full disk and recovery from it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from latticed.ledger import Ledger
from latticed.model.audit import Event
from latticed.trust import audit_chain
from tests.house import exports

Open = Callable[[], AbstractAsyncContextManager[Ledger]]

WRITE_FOR_EVER = """
import asyncio, os, pathlib, sys
from latticed.kit.clock import SystemClock
from latticed.ledger import open_ledger
from latticed.model.audit import Event

async def caller(ledger, name):
    while True:
        seq = await ledger.record(Event(actor=f"caller {name}", action="a", target="t", detail={"n": name}))
        os.write(1, f"{seq}\\n".encode())

async def main():
    async with open_ledger(pathlib.Path(sys.argv[1]), clock=SystemClock()) as ledger:
        await asyncio.gather(*(caller(ledger, name) for name in range(8)))

asyncio.run(main())
"""

FILL_THE_DISK = """
import asyncio, json, os, pathlib, sys
from latticed.kit.clock import SystemClock
from latticed.ledger import audit, kv, open_ledger
from latticed.model.audit import Event
from latticed.model.errors import Problem
from latticed.trust import audit_chain

disk = pathlib.Path(sys.argv[1])
ballast = disk / "ballast"
EVENT = Event(actor="a", action="b", target="c", reason="r" * 1000)
QUOTA = kv.KvQuota(value_bytes=1 << 20, keys=99, total_bytes=1 << 30)

async def code_of(waiting):
    try:
        return await waiting
    except Problem as problem:
        return problem.code

async def main():
    found = {}
    async with open_ledger(disk / "state", clock=SystemClock()) as ledger:
        ballast.write_bytes(bytes(512 << 10))
        written = 0
        while (answer := await code_of(ledger.record(EVENT))) == written + 1:
            written = answer
        found["full"] = answer
        results = await asyncio.gather(*(code_of(ledger.record(EVENT)) for _ in range(50)))
        results.append(await code_of(ledger.write(lambda tx: kv.put(tx, "b", "k", bytes(300000), QUOTA), durable=True)))
        found["batch"] = sorted({str(result) for result in results})
        found["written"] = written
        found["readable"] = ledger.read(audit.last_seq)
        ballast.unlink()
        found["next"] = await code_of(ledger.record(EVENT))
        found["put"] = await code_of(ledger.write(lambda tx: kv.put(tx, "b", "k", b"v", QUOTA), durable=True))
        part = {"after": 0, "upto": 1 << 40, "most": 1 << 30}
        stored = await ledger.read_slow(lambda db: audit.export_lines(db, "decisions", **part))
        report = audit_chain.verify(stored)
        found["verdict"] = report.problem
        found["last"] = report.last_seq
    print(json.dumps(found))

asyncio.run(main())
"""


async def test_sigkill_loses_no_acknowledged_event(opened: Open, state_dir: Path) -> None:
    """It is sent while eight callers write: the chain verifies and has every seq that a caller got."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_FOR_EVER, os.fspath(state_dir)], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        acknowledged = [int(child.stdout.readline()) for _ in range(3_000)]
        child.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in child.stdout.read().splitlines(keepends=True) if line.endswith(b"\n")]
    assert child.returncode == -signal.SIGKILL
    async with opened() as ledger:
        report = await ledger.read_slow(
            lambda db: audit_chain.verify(exports.export(db), key=audit_chain.public_key(ledger.public_key))
        )
        following = await ledger.record(Event(actor="a", action="b", target="c"))
    assert report.ok, report.problem
    assert report.heads >= 2
    assert max(acknowledged) <= report.last_seq
    assert len(set(acknowledged)) == len(acknowledged)
    assert following == report.last_seq + 1


@pytest.mark.root
def test_full_disk_fails_writes_until_space_returns(tmp_path: Path) -> None:
    """ENOSPC is a Problem for callers; old events stay readable, and the next write needs no restart."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare(1) to mount a small tmpfs")
    disk = tmp_path / "disk"
    disk.mkdir()
    script = tmp_path / "fill.py"
    script.write_text(FILL_THE_DISK)
    mounted = ["sh", "-c", 'mount -t tmpfs -o size=3m none "$1" && exec "$2" "$3" "$1"', "sh"]
    arguments = [os.fspath(disk), sys.executable, os.fspath(script)]
    command = ["unshare", "-m", *mounted, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    if "permission denied" in done.stderr.lower() and "mount" in done.stderr:
        pytest.skip(f"this machine lets nobody mount: {done.stderr.strip()[:100]}")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["full"] == "audit_unavailable"
    assert set(found["batch"]) == {"audit_unavailable", "ledger_unavailable"}
    assert found["written"] == found["readable"] > 10
    assert found["next"] == found["written"] + 1 == found["last"]
    assert found["put"] == 1, "the version of the value"
    assert found["verdict"] == ""
