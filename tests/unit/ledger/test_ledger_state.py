from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import apsw
import pytest

from latticed import ledger as ledger_package
from latticed.ledger import Ledger, state
from latticed.model.audit import Event
from latticed.model.errors import Problem

Open = Callable[[], AbstractAsyncContextManager[Ledger]]

HOLDER = """
import asyncio, pathlib, sys
from latticed.kit.clock import SystemClock
from latticed.ledger import open_ledger

async def main():
    async with open_ledger(pathlib.Path(sys.argv[1]), clock=SystemClock()):
        print("held", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

asyncio.run(main())
"""


async def problem_of(opened: Open) -> Problem:
    with pytest.raises(Problem) as caught:
        async with opened():
            pass
    return caught.value


async def test_state_directory_is_private_under_any_umask(opened: Open, state_dir: Path) -> None:
    """Directory 0700 and files 0600, the WAL included."""
    before = os.umask(0)
    try:
        async with opened() as ledger:
            await ledger.write(lambda tx: tx.execute("INSERT INTO revocations VALUES ('keys', 'k', 1)"))
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in state_dir.iterdir()}
    finally:
        os.umask(before)
    assert stat.S_IMODE(state_dir.stat().st_mode) == 0o700
    assert {state.LOCK, state.DATABASE, state.DATABASE + "-wal", state.HOST_KEY} <= modes.keys()
    assert set(modes.values()) == {0o600}


async def test_host_key_is_kept_over_restarts(opened: Open) -> None:
    """The public key is the same after every start."""
    async with opened() as ledger:
        first = ledger.public_key
    async with opened() as ledger:
        assert ledger.public_key == first


async def test_second_process_on_the_state_is_refused_with_pid_of_the_first(opened: Open, state_dir: Path) -> None:
    """It gets the lock once the first has exited."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, os.fspath(state_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        refused = await problem_of(opened)
        holder.communicate()
    assert (refused.code, holder.returncode) == ("state_in_use", 0)
    assert f"(pid {holder.pid})" in refused.reason
    assert os.fspath(state_dir) in refused.reason
    async with opened() as ledger:
        assert ledger.public_key


async def test_second_open_in_the_same_process_is_refused(ledger: Ledger, opened: Open) -> None:
    """The lock belongs to the open directory, not to the process."""
    assert (await problem_of(opened)).code == "state_in_use"
    assert await ledger.write(lambda _: 1) == 1


async def test_damaged_header_is_ledger_damaged(opened: Open, state_dir: Path) -> None:
    """The Problem has a hint at recovery."""
    async with opened():
        pass
    with (state_dir / state.DATABASE).open("r+b") as file:
        file.write(b"not a database, not at all")
    refused = await problem_of(opened)
    assert refused.code == "ledger_damaged"
    assert "--recover" in refused.hint


async def test_overwritten_ledger_page_is_found_at_open(opened: Open, state_dir: Path) -> None:
    """It is a page in the middle of the file."""
    async with opened() as ledger:
        await ledger.write(
            lambda tx: [tx.append_audit(Event(actor="a", action="b", target="c" * 200)) for _ in range(500)]
        )
    path = state_dir / state.DATABASE
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\xff" * 8192)
    assert (await problem_of(opened)).code == "ledger_damaged"


async def test_ledger_of_newer_version_is_not_modified(opened: Open, state_dir: Path) -> None:
    """An older daemon does not open it."""
    async with opened():
        pass
    connection = apsw.Connection(os.fspath(state_dir / state.DATABASE))
    connection.execute("PRAGMA user_version=99")
    connection.close()
    assert (await problem_of(opened)).code == "ledger_newer"


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 33])
async def test_host_key_of_wrong_size_is_ledger_damaged(opened: Open, state_dir: Path, content: bytes) -> None:
    """A truncated key is never replaced by a new one."""
    async with opened():
        pass
    (state_dir / state.HOST_KEY).write_bytes(content)
    assert (await problem_of(opened)).code == "ledger_damaged"


async def test_host_key_readable_by_others_is_refused(opened: Open, state_dir: Path) -> None:
    """They may have copied it."""
    async with opened():
        pass
    (state_dir / state.HOST_KEY).chmod(0o644)
    refused = await problem_of(opened)
    assert refused.code == "state_unusable"
    assert "0644" in refused.reason


async def test_missing_host_key_is_not_replaced_once_there_are_events(opened: Open, state_dir: Path) -> None:
    """Removing the key must not lead to a chain signed by a new one."""
    async with opened() as ledger:
        await ledger.record(Event(actor="a", action="b", target="c"))
    (state_dir / state.HOST_KEY).unlink()
    assert (await problem_of(opened)).code == "ledger_damaged"


async def test_missing_database_is_not_replaced_while_the_key_exists(opened: Open, state_dir: Path) -> None:
    """Removing the database must not start an empty record silently."""
    async with opened():
        pass
    (state_dir / state.DATABASE).unlink()
    refused = await problem_of(opened)
    assert refused.code == "ledger_damaged"
    assert not (state_dir / state.DATABASE).exists()


async def test_first_start_killed_before_making_the_key_is_repeated(opened: Open, state_dir: Path) -> None:
    """The key is made last: without it and without events nothing can be lost."""
    async with opened():
        pass
    (state_dir / state.HOST_KEY).unlink()
    async with opened() as ledger:
        assert await ledger.record(Event(actor="a", action="b", target="c")) == 1


async def test_file_in_place_of_state_directory_is_state_unusable(opened: Open, state_dir: Path) -> None:
    """The error names the path."""
    state_dir.write_text("")
    refused = await problem_of(opened)
    assert refused.code == "state_unusable"
    assert os.fspath(state_dir) in refused.reason


async def test_symlink_in_place_of_lock_file_is_not_followed(opened: Open, state_dir: Path, tmp_path: Path) -> None:
    """Otherwise it would truncate a file elsewhere."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    state_dir.mkdir()
    (state_dir / state.LOCK).symlink_to(victim)
    assert (await problem_of(opened)).code == "state_unusable"
    assert victim.read_text() == "precious"


def test_ledger_package_exports_all_that_others_need() -> None:
    """Other packages need no name of apsw."""
    assert {"Connection", "Ledger", "Transaction", "open_ledger"} <= set(ledger_package.__all__)


async def test_open_database_cannot_be_opened_by_another_process(
    opened: Open, state_dir: Path, event: Callable[..., Event]
) -> None:
    """It cannot even be read, as the reader's lock could block the daemon. No part of the WAL index is mapped from the
    disk.
    """
    program = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('SELECT 1 FROM audit').fetchall()"
    command = [sys.executable, "-c", program, str(state_dir / state.DATABASE)]
    async with opened() as ledger:
        await ledger.record(event())
        asked = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
        assert "database is locked" in asked.stderr
        assert not (state_dir / f"{state.DATABASE}-shm").exists()
    assert subprocess.run(command, check=False).returncode == 0
