"""Bundles on their way through the message system, in chunks that are written once under the digest of the whole.

All chunks but the last have `CHUNK_BYTES`; the last has fewer, perhaps none: it says where the bundle ends. A chunk is
looked up by a question of its own, so that a fetch goes on wherever it was, and needs nothing of the server but reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections import deque
from typing import TYPE_CHECKING, Final

from latticed.fleet.engine import CHUNK_BYTES
from latticed.fleet.spool import NotFetched
from latticed.kit import files, tasks

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from latticed.fleet.engine import ControllerEngine, Engine
    from latticed.fleet.spool import Spool

_FETCHED_AHEAD: Final = 4
_PUT_AT_ONCE: Final = 16


async def put(engine: ControllerEngine, path: Path) -> str:
    """Have the engine keep the file at `path`; the digest under which it can be fetched, lowercase hex.

    Once more is no error, and goes on where it was interrupted. EngineUnavailable; Conflict when another chunk is kept
    in place of one of these; OSError.
    """
    fd = await tasks.in_thread(lambda: os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), undo=os.close)
    with files.closing(fd):
        sha256 = await tasks.in_thread(lambda: _digest(fd))
        limit = asyncio.Semaphore(_PUT_AT_ONCE)
        with tasks.first_error():
            async with asyncio.TaskGroup() as group:
                number = 0
                while True:
                    await limit.acquire()
                    data = await tasks.in_thread(lambda: os.pread(fd, CHUNK_BYTES, number * CHUNK_BYTES))  # noqa: B023
                    task = group.create_task(engine.put_chunk(sha256, number, data))
                    task.add_done_callback(lambda _: limit.release())
                    number += 1
                    if len(data) < CHUNK_BYTES:
                        break
    return sha256


async def fetch(engine: Engine, spool: Spool, sha256: str) -> None:
    """Have the bundle with this digest whole in the spool, from where an earlier try ended.

    EngineUnavailable when the connection is lost, NotFetched when a chunk is missing: what came is kept. It is
    raised too for another bundle, one too large and a full disk: nothing is left then. OSError.
    """
    if await tasks.in_thread(lambda: spool.has(sha256)):
        return
    partial = await tasks.in_thread(lambda: spool.begin(sha256), undo=lambda one: one.close())
    with partial:
        ahead = _chunks(engine, sha256, partial.size // CHUNK_BYTES)
        async with contextlib.aclosing(ahead) as chunks:
            async for data in chunks:
                await tasks.in_thread(lambda: partial.write(data))  # noqa: B023 - it is done before the next
        await tasks.in_thread(partial.finish)


async def _chunks(engine: Engine, sha256: str, first: int) -> AsyncGenerator[bytes, None]:
    """Chunks in order, to the last: some are asked for ahead, and none is while the reader does not take them."""
    asked: deque[asyncio.Task[bytes]] = deque()
    number = first
    try:
        while True:
            while len(asked) < _FETCHED_AHEAD:
                asked.append(asyncio.create_task(engine.chunk(sha256, number)))
                number += 1
            # To await a task would hand a cancellation on to it.
            await asyncio.wait({asked[0]})
            try:
                data = asked[0].result()
            except KeyError as error:
                missing = number - len(asked)
                raise NotFetched(f"expected chunk {missing} of {sha256}, found none: put it there again") from error
            asked.popleft()
            yield data
            if len(data) < CHUNK_BYTES:
                return
    finally:
        for task in asked:
            task.cancel()
        # Those behind the last chunk ask for what is not there.
        await asyncio.gather(*asked, return_exceptions=True)


def _digest(fd: int) -> str:
    digest, place = hashlib.sha256(), 0
    while data := os.pread(fd, 1 << 20, place):
        digest.update(data)
        place += len(data)
    return digest.hexdigest()
