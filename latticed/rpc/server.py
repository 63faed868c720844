"""The control API's server: listens on a socket it creates or inherits from the service manager, and on exit drains."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, Self, cast

from aiohttp import web

from latticed.kit import descriptors, logs, unix_listener
from latticed.kit.connection_limiter import ConnectionLimiter
from latticed.kit.peer_connection import PER_UID
from latticed.kit.tasks import fenced
from latticed.model.errors import Problem
from latticed.rpc.app import application
from latticed.rpc.connection import ControlConnection
from latticed.rpc.control_socket import BACKLOG, ControlSocket

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from latticed.rpc.api import Api
    from latticed.rpc.control_socket import RuntimeDirectory

_ACCEPTING: Final = 4
"""Turns of the loop from accept(2) to `connection_made`: a task, and two callbacks of it (asyncio.selector_events)."""
_LOST: Final = "expected the service manager's socket at {path}, found none or another one: nobody can connect"
_ANEW: Final = "systemctl restart latticed.socket latticed.service"

log = logs.get_logger()


class Server:
    """Serves the API. An async context manager: leaving it lets answers under way finish, for `supervision.drain_s` at
    most; then they and new requests are answered with `stopping`.

    The caller holds the lock of `directory`, in which `path` lies. `gid`: the socket file's group, -1 for the daemon's
    own. `inherited`: a socket from the service manager, used instead of making one. Entering raises Problem
    socket_unusable.
    """

    def __init__(
        self,
        api: Api,
        path: Path,
        *,
        directory: RuntimeDirectory,
        gid: int = -1,
        inherited: socket.socket | None = None,
    ) -> None:
        self._api = api
        self._directory = directory
        self._socket = ControlSocket(path, gid=gid, inherited=inherited)
        # Each connection takes a descriptor; the other half is left for the ledger, plugins and their pipes.
        self._limiter: ConnectionLimiter[ControlConnection] = ConnectionLimiter(
            api.clock, most=descriptors.limit() // 2, per_owner=PER_UID
        )
        # The limiter has drained or cut all connections before aiohttp's cleanup begins; its own default would be 60 s.
        self._runner = web.AppRunner(application(api), shutdown_timeout=1.0)
        self._listener: asyncio.Server | None = None
        self._stack = contextlib.AsyncExitStack()
        self.trouble: Problem | None = None
        """Why the control socket cannot be reached under its path, or None."""

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await self._open(stack)
            # Not reached when `_open` fails halfway: then the inner stack undoes what was done.
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def look(self) -> None:
        """Listen again if the socket's file or its directory was removed or replaced; one of the service manager's only
        it can make again.

        A failure is kept in `trouble` and logged once; the next call tries again.
        """
        # On a thread, as everything here that looks at the file system, which may hang.
        if await asyncio.to_thread(self._socket.is_there):
            self.trouble = None
            return
        before, old = self.trouble, self._listener
        try:
            if self._socket.inherited is not None:
                raise Problem("socket_unusable", _LOST.format(path=self._socket.path), _ANEW)
            # The lock first: `bind` replaces whatever socket it finds in the directory.
            await asyncio.to_thread(self._directory.lock)
            await self._listen()
        except Problem as problem:
            self.trouble = problem
            if before is None or before.reason != problem.reason:
                log.error("control_socket_lost", code=problem.code, reason=problem.reason)
            return
        self.trouble = None
        if old is not None:
            old.close()  # stops accepting; open connections stay
        log.warning("control_socket_bound_again")

    async def set_group(self, gid: int) -> None:
        """Change the socket's group; Problem("socket_unusable") when that is not permitted."""
        await asyncio.to_thread(self._socket.set_group, gid)
        await self._tell_group()

    async def _open(self, stack: contextlib.AsyncExitStack) -> None:
        """Listen, and register what leaving undoes."""
        # On exit these run in reverse: end streams and waiting requests, stop accepting where the next daemon gets who
        # connects, drain, stop accepting, stop the sweeper (which cuts overdue connections while draining), remove the
        # file, end aiohttp.
        await self._runner.setup()
        stack.push_async_callback(self._runner.cleanup)
        await self._listen()
        stack.callback(self._socket.remove)
        await self._tell_group()
        sweeper = fenced(
            self._limiter.sweep(),
            lambda error: log.error("sweeper_failed", error=repr(error)),
            name="rpc sweeper",
        )
        stack.push_async_callback(_cancelled, sweeper)
        stack.callback(self._close)
        stack.push_async_callback(self._drain)
        if self._socket.inherited is not None:
            stack.push_async_callback(self._leave)
        stack.callback(self._api.closing.set)

    async def _listen(self) -> None:
        """Accept connections at the control socket; Problem socket_unusable."""
        loop = asyncio.get_running_loop()
        http = cast("web.Server", self._runner.server)
        sock = await asyncio.to_thread(self._socket.open)
        sock.setblocking(False)
        # asyncio calls accept() `backlog` times per wake-up, even when no descriptor is left: each failure is a log
        # entry and schedules a retry. So it gets 1, and listen() sets the length of the kernel's queue afterwards.
        self._listener = await loop.create_unix_server(
            lambda: ControlConnection(self._limiter, http, loop),
            sock=sock,
            backlog=1,
            **unix_listener.SERVER_OPTIONS,
        )
        sock.listen(BACKLOG)

    async def _leave(self) -> None:
        """Accept no more, and leave who connects to the next daemon. Open connections stay."""
        if self._listener is not None:
            for sock in self._listener.sockets:
                asyncio.get_running_loop().remove_reader(sock.fileno())
            # Those that were accepted in this very turn get their transport in the next ones, of a server that is open:
            # a closed one would drop them (asyncio.base_events, Server._attach).
            for _ in range(_ACCEPTING):
                await asyncio.sleep(0)
        self._close()

    async def _drain(self) -> None:
        # As the settings are now: a reload may have changed it.
        await self._limiter.drain(self._api.settings.supervision.drain_s)

    def _close(self) -> None:
        """Stop accepting; open connections stay."""
        if self._listener is not None:
            self._listener.close()

    async def _tell_group(self) -> None:
        """Warn when an inherited socket has another group than the settings say: the daemon does not change it."""
        if (found := await asyncio.to_thread(self._socket.foreign_group)) is not None:
            hint = "set SocketGroup= in the socket's unit, or [access] socket_group to what it says there"
            log.warning("socket_group_differs", expected=found[0], found=found[1], hint=hint)


async def _cancelled(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end."""
    task.cancel()
    # Never raises: the cancellation is ours, and `fenced` has logged any other end of the sweeper.
    await asyncio.gather(task, return_exceptions=True)
