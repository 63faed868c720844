"""Heads that were signed are told once what they speak of is on disk."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest

from latticed.ledger import signed_heads
from latticed.model.chain import Head


def head(seq: int) -> Head:
    return Head(seq=seq, hash="ab" * 32, ts="2026-01-02T03:04:05.000007Z", signature="s")


class Disk:
    """A write-ahead log whose fsyncs return when they are let."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wal = path
        self.wal.write_bytes(b"frames")
        self.error: OSError | None = None
        self.asked, self.may = threading.Semaphore(0), threading.Semaphore(0)
        monkeypatch.setattr(os, "fdatasync", self.sync)
        self.told: list[int] = []
        self.heads = signed_heads.SignedHeads(path, lambda heads: self.told.extend(one.seq for one in heads))

    def sync(self, fd: int) -> None:
        assert os.path.samestat(os.fstat(fd), os.stat(self.wal))
        self.asked.release()
        assert self.may.acquire(timeout=60)
        if self.error is not None:
            raise self.error

    async def begun(self) -> None:
        assert await asyncio.to_thread(self.asked.acquire, timeout=60)


@pytest.fixture
async def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(tmp_path / "wal", monkeypatch)


async def test_heads_are_told_in_order_each_after_an_fsync_that_began_after_it(disk: Disk) -> None:
    """One that comes during an fsync waits for the next, also when its own batch was fsynced."""
    disk.heads.put([head(1)], durable=False)
    await disk.begun()
    disk.heads.put([head(2)], durable=False)
    disk.heads.put([head(3)], durable=True)
    assert disk.told == []
    disk.may.release()
    await disk.begun()
    assert disk.told == [1]
    disk.may.release()
    await disk.heads.close()
    assert disk.told == [1, 2, 3]


async def test_head_of_an_fsynced_batch_is_told_at_once(disk: Disk) -> None:
    disk.heads.put([head(1)], durable=True)
    assert disk.told == [1]
    await disk.heads.close()


async def test_head_whose_fsync_fails_is_not_told_and_holds_no_other_up(disk: Disk) -> None:
    disk.error = OSError(errno.EIO, "the disk is broken")
    disk.heads.put([head(1)], durable=False)
    await disk.begun()
    disk.heads.put([head(2)], durable=False)
    disk.may.release()
    await disk.begun()
    disk.error = None
    disk.may.release()
    await disk.heads.close()
    assert disk.told == [2]


async def test_heads_of_a_ledger_that_was_folded_at_its_end_are_told(disk: Disk) -> None:
    disk.wal.unlink()
    disk.heads.put([head(1)], durable=False)
    await disk.heads.close()
    assert disk.told == [1]
