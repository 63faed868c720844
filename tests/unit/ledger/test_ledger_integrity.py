"""Integrity checks at open and while the daemon runs."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import apsw
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from latticed.ledger import Ledger, audit, connection, integrity, kv, migrations, open_ledger, rebuild, records, upkeep
from latticed.ledger.chain import Chain
from latticed.model.audit import Event
from latticed.model.errors import Problem
from latticed.model.lifecycle import Record, RecordFacts, Status
from tests.house import damage, in_process, older_ledgers, processes, stepping

Open = Callable[[], AbstractAsyncContextManager[Ledger]]
QUOTA = kv.KvQuota(value_bytes=1 << 20, keys=10_000, total_bytes=1 << 30)


async def filled(opened: Open) -> None:
    """A ledger with values in the middle of the file and the audit chain at its end."""
    async with opened() as ledger:
        for number in range(40):
            value = os.urandom(20_000)
            await ledger.write(lambda tx, n=number, v=value: kv.put(tx, "b", f"k{n}", v, QUOTA))  # type: ignore[misc]
        await asyncio.gather(*(ledger.record(Event(actor="a", action="b", target="c")) for _ in range(500)))


async def problem_of(opened: Open) -> Problem:
    with pytest.raises(Problem) as caught:
        async with opened():
            pass
    return caught.value


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + processes.PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


class BadSector(apsw.VFS):
    """The daemon's VFS on a disk that cannot read what is at the offset `at`."""

    def __init__(self, at: int) -> None:
        self.name, self.at, self._real = "bad-sector", at, connection.OWN
        super().__init__(self.name, self._real)

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - apsw's
        disk = self

        class File(apsw.VFSFile):
            def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802 - apsw's
                if offset == disk.at:
                    raise apsw.IOError("disk I/O error")
                return super().xRead(amount, offset)

        return File(self._real, name, flags)


def root_of(state_dir: Path, table: str) -> int:
    """Offset of a table's root page in the file."""
    connection = apsw.Connection(os.fspath(state_dir / "ledger.sqlite3"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        page = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).get
        return int(page - 1) * damage.PAGE
    finally:
        connection.close()


def spoil(state_dir: Path, table: str) -> None:
    offset = root_of(state_dir, table)
    with (state_dir / "ledger.sqlite3").open("r+b") as file:
        file.seek(offset)
        file.write(os.urandom(damage.PAGE))


@pytest.mark.parametrize("kind", [kind for kind in damage.AT_ONCE if kind != "foreign row"])
async def test_damaged_ledger_is_refused_and_not_written(opened: Open, state_dir: Path, kind: str) -> None:
    """Its content may be the only copy."""
    await filled(opened)
    damage.AT_ONCE[kind](state_dir)
    before = {path.name: path.read_bytes() for path in state_dir.glob("ledger.sqlite3*")}
    refused = await problem_of(opened)
    assert refused.code == "ledger_damaged"
    assert "\n" not in refused.reason
    after = {path.name: path.read_bytes() for path in state_dir.glob("ledger.sqlite3*")}
    assert {name: after.get(name) for name in before} == before
    assert rebuild.diagnosis(state_dir)


async def test_refused_ledger_keeps_its_wal(opened: Open, state_dir: Path, tmp_path: Path, clock: Any) -> None:
    """No checkpoint runs: the WAL may hold rows that are nowhere else."""
    await filled(opened)
    killed = tmp_path / "killed"
    async with opened() as ledger:
        await ledger.record(Event(actor="a", action="b", target="in the WAL"))
        stepping.copy_as_killed(state_dir, killed)
    spoil(killed, "heads")
    before = {name: (killed / name).read_bytes() for name in ("ledger.sqlite3", "ledger.sqlite3-wal")}
    with pytest.raises(Problem, match="sound database"):
        async with open_ledger(killed, clock=clock):
            pass
    assert rebuild.diagnosis(killed)
    assert rebuild.read_damaged(killed / "ledger.sqlite3").last_seq == 501
    assert {name: (killed / name).read_bytes() for name in before} == before
    assert before["ledger.sqlite3-wal"]


async def test_wal_of_zeros_is_accepted_as_empty(opened: Open, state_dir: Path) -> None:
    """A power cut leaves zeros in a WAL that was being created."""
    await filled(opened)
    (state_dir / "ledger.sqlite3-wal").write_bytes(bytes(4096))
    async with opened() as ledger:
        assert ledger.read(audit.last_seq) == 500


async def test_wal_written_by_sqlite_passes_header_check(ledger: Ledger, state_dir: Path) -> None:
    """SQLite chooses the byte order of its checksums by the machine; that of this machine is accepted."""
    await ledger.record(Event(actor="a", action="b", target="c"))
    assert (state_dir / "ledger.sqlite3-wal").stat().st_size > 32
    assert integrity.in_wal(state_dir / "ledger.sqlite3") == ""


@pytest.mark.parametrize("at", range(0, 32, 3))
async def test_change_in_any_wal_header_field_is_found(
    ledger: Ledger, state_dir: Path, tmp_path: Path, at: int
) -> None:
    await ledger.record(Event(actor="a", action="b", target="c"))
    copied = tmp_path / "db-wal"
    shutil.copy(state_dir / "ledger.sqlite3-wal", copied)
    header = bytearray(copied.read_bytes())
    header[at] ^= 0x10
    copied.write_bytes(header)
    assert integrity.in_wal(tmp_path / "db")


@pytest.mark.parametrize("steps", range(1, len(migrations.MIGRATIONS)))
async def test_sound_ledger_of_an_older_version_is_sound_and_read_as_if_migrated(
    opened: Open, state_dir: Path, steps: int
) -> None:
    """A restore and a recovery read it before anything migrates it."""
    facts = RecordFacts(
        name="Demo",
        type="system",
        version="1.2.3",
        publisher="acme",
        signed=True,
        capabilities=("kv:read", "http:egress"),
        identity="ab" * 32,
        artifact_sha256="cd" * 32,
        manifest=b"{}",
        interpreter="python3",
    )
    record = Record(
        id="acme.demo",
        status=Status.ACTIVE,
        facts=facts,
        source="plugins/demo",
        masked=frozenset({"http:egress"}),
        unasked=frozenset({"http:egress"}),
        permits=("acme.other",),
        hosts=(),
        floor="1.2.3",
        verified_at=1,
        created_at=1,
        updated_at=1,
    )
    async with opened() as ledger:
        await ledger.write(lambda tx: records.put(tx, record))
    older_ledgers.rewrite(state_dir / "ledger.sqlite3", steps)
    assert rebuild.diagnosis(state_dir) == ""
    found = rebuild.read_damaged(state_dir / "ledger.sqlite3").records
    assert [(one.id, one.masked) for one in found] == [("acme.demo", {"http:egress"})]
    async with opened() as ledger:
        assert ledger.read(records.load_all) == found


@pytest.mark.parametrize("table", ["records", "revocations", "heads", "checkpoints", "kv_usage"])
async def test_tables_of_decisions_are_checked_when_a_large_ledger_opens(
    opened: Open, state_dir: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    await filled(opened)
    monkeypatch.setattr(integrity, "WHOLE_BYTES", 4096)
    spoil(state_dir, table)
    assert (await problem_of(opened)).code == "ledger_damaged"


async def test_damage_elsewhere_in_a_large_ledger_is_found_while_running(
    opened: Open, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is reported as trouble, and the next start refuses the ledger by the note."""
    await filled(opened)
    monkeypatch.setattr(integrity, "WHOLE_BYTES", 4096)
    spoil(state_dir, "kv")
    async with opened() as ledger:
        await until(lambda: ledger.trouble is not None)
        assert ledger.trouble is not None
        assert ledger.trouble.code == "ledger_damaged"
    refused = await problem_of(opened)
    assert (refused.code, "found earlier" in refused.reason) == ("ledger_damaged", True)


async def test_large_ledger_that_the_disk_cannot_read_is_checked_again(
    opened: Open, state_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is reported as trouble until the disk reads it; no note keeps the next start from it."""
    await filled(opened)
    monkeypatch.setattr(integrity, "WHOLE_BYTES", 4096)
    monkeypatch.setattr(upkeep, "UNREAD_S", 0.0)
    disk = BadSector(root_of(state_dir, "kv"))
    monkeypatch.setattr(connection, "OWN", disk.name)
    async with opened() as ledger:
        await until(lambda: ledger.trouble is not None)
        assert ledger.trouble is not None
        assert (ledger.trouble.code, ledger.trouble.reason) == (
            "ledger_unavailable",
            "the ledger cannot be read: disk I/O error",
        )
        assert integrity.noted(state_dir) == ""
        assert "ledger_unchecked" in capsys.readouterr().out
        disk.at = -1
        await until(lambda: ledger.trouble is None)
    async with opened():
        pass


async def test_large_ledger_that_cannot_be_opened_again_is_checked_later(
    opened: Open, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with too many open files."""
    await filled(opened)
    monkeypatch.setattr(upkeep, "UNREAD_S", 0.0)
    async with opened() as ledger:
        with in_process.without_descriptors():
            checking = asyncio.create_task(ledger._check_rest())
            await until(lambda: ledger.trouble is not None)
            assert ledger.trouble is not None
            assert ledger.trouble.code == "ledger_unavailable"
        await checking
        assert (ledger.trouble, integrity.noted(state_dir)) == (None, "")


async def test_intact_large_ledger_reports_no_damage(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    await filled(opened)
    monkeypatch.setattr(integrity, "WHOLE_BYTES", 4096)
    async with opened() as ledger:
        assert ledger._entered.partly_checked
        await ledger._check_rest()
        assert ledger.trouble is None


async def test_closing_ledger_cancels_the_running_integrity_check(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves no thread and no note."""
    await filled(opened)
    monkeypatch.setattr(integrity, "WHOLE_BYTES", 4096)
    for _ in range(5):
        async with opened():
            pass
    async with opened() as ledger:
        assert ledger.trouble is None


async def test_snapshot_is_consistent_during_writes(opened: Open, tmp_path: Path) -> None:
    """Its chain ends with an event of that moment, it is intact, and there is no WAL beside it."""
    await filled(opened)
    target = tmp_path / "copy.sqlite3"
    async with opened() as ledger:

        async def write() -> None:
            while True:
                await ledger.record(Event(actor="a", action="b", target="c"))

        writing = asyncio.ensure_future(write())
        await ledger.snapshot(target)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        last = ledger.read(audit.last_seq)
    assert [path.name for path in tmp_path.glob("copy*")] == ["copy.sqlite3"]
    assert target.stat().st_mode & 0o777 == 0o600
    found = rebuild.read_damaged(target)
    assert 500 <= found.last_seq <= last


async def test_cancelled_snapshot_stops_copying(
    opened: Open, state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copying thread checks for it every few pages, and the caller waits for its end."""
    await filled(opened)
    begun, told = threading.Event(), []

    def copy(_source: object, _target: Path, unwanted: threading.Event) -> None:
        begun.set()
        told.append(unwanted.wait(10))

    async with opened() as ledger:
        with monkeypatch.context() as slow:
            slow.setattr(upkeep, "_copy", copy)
            copying = asyncio.ensure_future(ledger.snapshot(tmp_path / "copy"))
            await asyncio.to_thread(begun.wait)
            copying.cancel()
            with pytest.raises(asyncio.CancelledError):
                await copying
        assert told == [True]
    unwanted = threading.Event()
    unwanted.set()
    source = apsw.Connection(os.fspath(state_dir / "ledger.sqlite3"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        with pytest.raises(InterruptedError):
            upkeep._copy(source, tmp_path / "copy", unwanted)
    finally:
        source.close()
    assert (tmp_path / "copy").stat().st_size == 0


async def test_chain_size_includes_events_after_last_head(memory: apsw.Connection) -> None:
    """After a kill, the next start counts the events that no head covers."""
    key = Ed25519PrivateKey.generate()
    chain = Chain(memory, key=key)
    chain.begin("2026-01-02T03:04:05.000007Z")
    for number in range(5):
        chain.append(Event(actor="a", action="b", target=f"t{number}"))
    chain.flush()
    chain.sign()
    chain.append(Event(actor="a", action="b", target="after the head"))
    chain.flush()
    assert chain.tip.size == audit.size_after(memory, 0)
    assert Chain(memory, key=key).tip == chain.tip


async def test_empty_chain_continues_from_its_checkpoint(memory: apsw.Connection) -> None:
    """When retention has removed all events, the chain continues from the checkpoint."""
    memory.execute("INSERT INTO checkpoints VALUES (7, ?, 't', 's', 900)", ("ab" * 32,))
    chain = Chain(memory, key=None)  # type: ignore[arg-type]
    assert tuple(chain.tip) == (7, "ab" * 32, 900)
