"""The control socket: its mode is right before it listens, or it is taken over from the service manager."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from typing import TYPE_CHECKING, Final, Self, cast

from aiohttp import web

from latticed.kit import descriptors, logs
from latticed.kit.tasks import fenced
from latticed.model.errors import Problem
from latticed.rpc.app import application
from latticed.rpc.doorman import Connection, Doorman

if TYPE_CHECKING:
    from pathlib import Path

    from latticed.rpc.api import Api

DRAIN_S: Final = 5.0
BACKLOG: Final = 1024
MODE: Final = 0o660

log = logs.get_logger()


class Server:
    """Serves the API. An async context manager: leaving it lets answers under way finish, for `DRAIN_S` at most."""

    def __init__(self, api: Api, path: Path, *, gid: int = -1, inherited: socket.socket | None = None) -> None:
        self._api = api
        self._path = path
        self._gid = gid
        self._inherited = inherited
        self._doorman = Doorman(api.clock, most=descriptors.limit() // 2)
        self._runner = web.AppRunner(application(api), shutdown_timeout=1.0)
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await self._open(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _open(self, stack: contextlib.AsyncExitStack) -> None:
        await self._runner.setup()
        stack.push_async_callback(self._runner.cleanup)
        loop = asyncio.get_running_loop()
        http = cast("web.Server", self._runner.server)
        sock = self._inherited
        if sock is None:
            sock = bind(self._path, gid=self._gid)
            stack.callback(self._path.unlink, missing_ok=True)
        sock.setblocking(False)
        # asyncio's `backlog` is also how often it accepts in a row, even when there is no descriptor left: each failure
        # costs a log entry, and a retry of its own. The kernel's queue is given its length afterwards.
        server = await loop.create_unix_server(lambda: Connection(self._doorman, http, loop), sock=sock, backlog=1)
        sock.listen(BACKLOG)
        sweeper = fenced(
            self._doorman.sweep(), lambda error: log.error("sweeper_failed", error=repr(error)), name="doorman"
        )
        stack.push_async_callback(_cancelled, sweeper)
        stack.push_async_callback(self._doorman.drain, DRAIN_S)
        stack.callback(server.close)
        stack.callback(self._api.closing.set)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def bind(path: Path, *, gid: int = -1) -> socket.socket:
    """A listening socket at `path`, mode 0660 before anybody can connect; a left-over socket there is replaced.

    The caller holds the lock on the state directory, so nobody else can be listening. Made under another name and
    renamed: the umask is left alone, for it is the whole process's, and other threads make files meanwhile.
    """
    fresh = path.with_name(".new")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fresh.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.bind(str(fresh))
            fresh.chmod(MODE)
            os.chown(fresh, -1, gid)
            sock.listen(BACKLOG)
            if os.path.lexists(path) and not stat.S_ISSOCK(path.lstat().st_mode):
                raise FileExistsError(errno.EEXIST, "something that is no socket is in its place")
            fresh.rename(path)
        except BaseException:
            sock.close()
            fresh.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise Problem("socket_unusable", f"cannot listen at {path}: {error.strerror or error}") from error
    return sock
