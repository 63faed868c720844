"""`GET /api/backup`: complete, or recognisable as truncated."""

from __future__ import annotations

import asyncio
import io
import re
import tarfile
import time

import aiohttp
import pytest

from latticed.lifecycle import backup
from latticed.lifecycle.backup_staging import Backup
from latticed.model.errors import Problem
from tests.house import in_process

URL = "http://latticed/api/backup"


@pytest.fixture
async def home():
    async with in_process.opened() as home:
        yield home


def staged(home):
    return [path.name for path in (home.root / "state").iterdir() if path.name.startswith(".backup-")]


async def test_backup_has_a_content_length_and_leaves_no_staging_files(home):
    async with home.session.get(URL) as found:
        data = await found.read()
        assert (found.status, found.content_type, found.content_length) == (200, "application/x-tar", len(data))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        names = archive.getnames()
    assert names[0] == "manifest.json"
    assert backup.MARK not in names
    await in_process.until(lambda: not staged(home), "the staged copy to be removed")


async def last_backup(home):
    async with home.session.get("http://latticed/metrics") as found:
        (shown,) = re.findall(r"^latticed_backup_last_success_seconds (\d+)$", await found.text(), re.MULTILINE)
    return int(shown)


async def test_when_one_was_read_to_its_end_last_is_known_after_a_restart_too(home):
    """Being asked for alone does not count."""
    assert (await home.ask("HEAD", "/api/backup")).status == 200
    assert await last_backup(home) == 0
    before = int(time.time())
    async with home.session.get(URL) as found:
        await found.read()

    def kept():
        return backup.Backups(None, home.root / "state", version="0").last_s

    await in_process.until(lambda: kept() >= before, "it to be kept")
    shown = await last_backup(home)
    assert before <= shown <= time.time()
    await in_process.until(lambda: kept() == shown, "the same time to be kept")


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), TimeoutError()])
async def test_interrupted_backup_closes_the_connection(home, monkeypatch, error):
    """The body ends before its Content-Length, and no other answer follows on the connection."""
    whole = Backup.chunks

    async def broken(self):
        async for chunk in whole(self):
            yield chunk
            raise error

    monkeypatch.setattr(Backup, "chunks", broken)
    with pytest.raises(aiohttp.ClientPayloadError):
        async with home.session.get(URL) as found:
            await found.read()
    await in_process.until(lambda: not staged(home), "the staged copy to be removed")
    assert (await home.ask("GET", "/api/health")).status == 200
    assert await last_backup(home) == 0


async def test_second_concurrent_backup_is_refused(home, monkeypatch):
    """The first is not disturbed."""
    going = asyncio.Event()
    whole = Backup.chunks

    async def slow(self):
        await going.wait()
        async for chunk in whole(self):
            yield chunk

    monkeypatch.setattr(Backup, "chunks", slow)
    first = asyncio.ensure_future(home.session.get(URL))
    await in_process.until(lambda: staged(home), "the first to be under way")
    second = await home.ask("GET", "/api/backup")
    assert (second.status, second.code) == (409, "backup_running")
    going.set()
    async with await first as found:
        assert len(await found.read()) == found.content_length


async def test_staging_files_of_a_killed_daemon_are_removed(home):
    left = home.root / "state" / ".backup-left"
    left.mkdir()
    (left / "ledger.sqlite3").write_bytes(b"x" * 99)
    async with home.session.get(URL) as found:
        await found.read()
    assert not left.exists()


async def test_backup_that_cannot_be_audited_is_refused(home, monkeypatch):
    """A backup holds the host's private key, so every one must be audited."""

    async def full(_event):
        raise Problem("audit_unavailable", "the disk is full")

    monkeypatch.setattr(home.app.api.ledger, "record", full)
    answer = await home.ask("GET", "/api/backup")
    assert (answer.status, answer.code) == (503, "audit_unavailable")
    assert staged(home) == []
