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

from latticed import ledger
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


async def test_everything_made_is_for_its_owner_only(opened: Open, state_dir: Path) -> None:
    """Whatever the umask, directory 0700 and files 0600, the WAL included."""
    before = os.umask(0)
    try:
        async with opened() as house:
            await house.write(lambda tx: tx.execute("INSERT INTO revocations VALUES ('keys', 'k', 1)"))
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in state_dir.iterdir()}
    finally:
        os.umask(before)
    assert stat.S_IMODE(state_dir.stat().st_mode) == 0o700
    assert {state.LOCK, state.DATABASE, state.DATABASE + "-wal", state.HOST_KEY} <= modes.keys()
    assert set(modes.values()) == {0o600}


async def test_the_host_key_survives(opened: Open) -> None:
    """The public key is the same after every start."""
    async with opened() as house:
        first = house.public_key
    async with opened() as house:
        assert house.public_key == first


async def test_a_second_process_is_told_who_holds_the_directory(opened: Open, state_dir: Path) -> None:
    """Two processes contend for the lock: the later one is refused by pid, and gets it once the first is gone."""
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
    async with opened() as house:
        assert house.public_key


async def test_the_same_process_cannot_hold_it_twice(house: Ledger, opened: Open) -> None:
    """The lock is on the directory, not on the process."""
    assert (await problem_of(opened)).code == "state_in_use"
    assert await house.write(lambda _: 1) == 1


async def test_a_damaged_header_is_a_damaged_ledger(opened: Open, state_dir: Path) -> None:
    """Bytes that are no database are refused with the way out."""
    async with opened():
        pass
    with (state_dir / state.DATABASE).open("r+b") as file:
        file.write(b"not a database, not at all")
    refused = await problem_of(opened)
    assert refused.code == "ledger_damaged"
    assert "--recover" in refused.hint


async def test_damage_inside_is_found(opened: Open, state_dir: Path) -> None:
    """A page overwritten in the middle is found when the ledger is opened."""
    async with opened() as house:
        await house.write(
            lambda tx: [tx.append_audit(Event(actor="a", action="b", target="c" * 200)) for _ in range(500)]
        )
    path = state_dir / state.DATABASE
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\xff" * 8192)
    assert (await problem_of(opened)).code == "ledger_damaged"


async def test_a_ledger_of_a_later_version_is_not_touched(opened: Open, state_dir: Path) -> None:
    """An older daemon does not open a newer ledger."""
    async with opened():
        pass
    connection = apsw.Connection(os.fspath(state_dir / state.DATABASE))
    connection.execute("PRAGMA user_version=99")
    connection.close()
    assert (await problem_of(opened)).code == "ledger_newer"


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 33])
async def test_a_host_key_of_another_size_is_damage(opened: Open, state_dir: Path, content: bytes) -> None:
    """A cut key is never replaced by a new one."""
    async with opened():
        pass
    (state_dir / state.HOST_KEY).write_bytes(content)
    assert (await problem_of(opened)).code == "ledger_damaged"


async def test_a_host_key_that_others_can_read_is_refused(opened: Open, state_dir: Path) -> None:
    """A key whose mode lets others read it may be known to them."""
    async with opened():
        pass
    (state_dir / state.HOST_KEY).chmod(0o644)
    refused = await problem_of(opened)
    assert refused.code == "state_unusable"
    assert "0644" in refused.reason


async def test_a_lost_host_key_is_not_replaced_once_there_are_events(opened: Open, state_dir: Path) -> None:
    """Whoever removes the key does not get a chain signed by a new one."""
    async with opened() as house:
        await house.record(Event(actor="a", action="b", target="c"))
    (state_dir / state.HOST_KEY).unlink()
    assert (await problem_of(opened)).code == "ledger_damaged"


async def test_a_lost_database_is_not_replaced_while_the_key_is_there(opened: Open, state_dir: Path) -> None:
    """Removing the database does not quietly start history anew."""
    async with opened():
        pass
    (state_dir / state.DATABASE).unlink()
    refused = await problem_of(opened)
    assert refused.code == "ledger_damaged"
    assert not (state_dir / state.DATABASE).exists()


async def test_a_first_start_that_died_before_its_key_starts_again(opened: Open, state_dir: Path) -> None:
    """The key is made last: without it and without events there is nothing to lose."""
    async with opened():
        pass
    (state_dir / state.HOST_KEY).unlink()
    async with opened() as house:
        assert await house.record(Event(actor="a", action="b", target="c")) == 1


async def test_a_state_directory_that_is_a_file_is_unusable(opened: Open, state_dir: Path) -> None:
    """The error names the directory."""
    state_dir.write_text("")
    refused = await problem_of(opened)
    assert refused.code == "state_unusable"
    assert os.fspath(state_dir) in refused.reason


async def test_a_link_as_lock_is_not_followed(opened: Open, state_dir: Path, tmp_path: Path) -> None:
    """Nobody can make us truncate a file elsewhere."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    state_dir.mkdir()
    (state_dir / state.LOCK).symlink_to(victim)
    assert (await problem_of(opened)).code == "state_unusable"
    assert victim.read_text() == "precious"


def test_the_package_exports_open_ledger() -> None:
    """Others name what they need without apsw."""
    assert {"Connection", "Ledger", "Transaction", "open_ledger"} <= set(ledger.__all__)


async def test_an_open_ledger_cannot_be_opened_again(
    opened: Open, state_dir: Path, event: Callable[..., Event]
) -> None:
    """Not even to read: a lock held by somebody else would hold us up. Nothing of it is mapped from the disk."""
    program = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('SELECT 1 FROM audit').fetchall()"
    command = [sys.executable, "-c", program, str(state_dir / state.DATABASE)]
    async with opened() as house:
        await house.record(event())
        asked = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
        assert "database is locked" in asked.stderr
        assert not (state_dir / f"{state.DATABASE}-shm").exists()
    assert subprocess.run(command, check=False).returncode == 0
