"""`GET /api/backup`: the whole state as one tar, the host's private key included; it takes every scope."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

from aiohttp import web

from latticed.kit import logs
from latticed.model.audit import Event
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.lifecycle.backup_staging import Backup
    from latticed.rpc.api import Ask
    from latticed.rpc.connection import ControlConnection

WRITE_S: Final = 30.0
"""Longest wait, in seconds, for the reader to take one chunk: a backup under way holds a copy of the ledger on disk."""
HEADERS: Final = {"Content-Type": "application/x-tar", "Cache-Control": "no-store"}

log = logs.get_logger()


async def download(ask: Ask) -> web.StreamResponse:
    """A backup of this moment as a tar. Its length is announced: what is shorter is not a backup."""
    if ask.headers_only:
        return web.Response(headers=HEADERS)  # its length is known only after the backup is made
    connection = cast("ControlConnection", ask.request.protocol)
    if not connection.stream():
        raise Problem("too_many_streams", "expected fewer streams of one user at once", "close some of them")
    # Before it is made, and an error of it is answered: the host's private key leaves only on record.
    await ask.api.ledger.record(Event(actor=str(ask.actor), action="ledger.backup", target="ledger", decision="allow"))
    async with ask.api.backups.made(ask.api.settings) as backup:
        answer = web.StreamResponse(headers=HEADERS)
        answer.content_length = backup.size
        await connection.begin(answer, ask.request)
        try:
            await _send(ask, backup, answer)
            await answer.write_eof()
            await ask.api.backups.was_read(ask.api.clock.wall_us() // 1_000_000)
        # OSError includes the TimeoutError of WRITE_S. The head is sent, so no problem document can follow.
        except (OSError, Problem) as error:
            log.warning("backup_broken_off", error=str(error) or type(error).__name__)
            connection.cut_short()
    answer.force_close()
    return answer


async def _send(ask: Ask, backup: Backup, answer: web.StreamResponse) -> None:
    """Write all chunks; TimeoutError when the reader takes nothing for `WRITE_S`, Problem when the daemon stops."""
    async for chunk in backup.chunks():
        # Between two chunks, so that a slow reader does not hold up the end of the daemon.
        if ask.api.closing.is_set():
            raise Problem("service_unavailable", "the daemon is being stopped")
        async with asyncio.timeout(WRITE_S):
            await answer.write(chunk)
