"""The journal reader, a process of its own: answers the daemon with what the operator allows of the journal.

Separate because reading the journal takes rights (a group, or root) that the daemon does not have. Requests come from
`host.node.journal_client`; `host.node.journal_query` answers them. Run it as `latticed-journal`, or
`python -m latticed.journal`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

import latticed
from latticed import settings as settings_room
from latticed.host.call import HostError
from latticed.host.node import journal_client, journal_query
from latticed.host.node.journal_query import JournalQuery, Sources
from latticed.kit import (
    executor,
    journalctl,
    logs,
    os_signals,
    peers,
    process_start,
    sd_notify,
    strict_json,
    unix_listener,
)
from latticed.model.errors import Problem
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Sequence

    from latticed.settings import Settings

MAX_REQUEST_BYTES: Final = 8 << 10
"""Longest line of a request; the connection of a longer one is closed."""
REQUEST_S: Final = 5.0
"""How long a client may take to send its request, and again to take the answer."""
ANSWER_S: Final = 7.0
"""A little less than the daemon waits (journal_client.DEADLINE_S), so that it gets the reason."""
MAX_CONNECTIONS: Final = 16
"""Open connections; further ones are closed at once."""
MAX_CONCURRENT_QUERIES: Final = 2
"""Queries that run at once, each with a journalctl of its own; further ones wait for their turn."""

log = logs.get_logger()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the reader until SIGTERM or SIGINT. The exit code: 0 then, 78 (EX_CONFIG) for invalid settings, 1 for another
    Problem, which is on stderr.

    `argv`: without the program's name. None takes the process's own, and resets signals, umask and limits.
    """
    if argv is None:
        # Only as a program of its own: a caller with `argv` keeps its signals, umask and limits.
        process_start.reset_for_server()
    parser = argparse.ArgumentParser(prog="latticed-journal", description="Show latticed what it may of the journal.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (TOML), the daemon's")
    parser.add_argument("--source", choices=("auto", "journald", "auth.log"), default="auto")
    parser.add_argument("--version", action="version", version=f"latticed-journal {latticed.__version__}")
    options = parser.parse_args(argv)
    try:
        settings = settings_room.load(options.config, os.environ, os.geteuid())
        logs.configure(settings.log.level, form=settings.log.format)
        return asyncio.run(_run(settings, options.source))
    except Problem as problem:
        hint = f" ({problem.hint})" if problem.hint else ""
        sys.stderr.write(f"latticed-journal: {problem.code}: {problem.reason}{hint}\n")
        return os.EX_CONFIG if problem.code == "settings_invalid" else 1
    finally:
        logs.reset()


async def _run(settings: Settings, source: str) -> int:
    """Listen and answer until a signal; the exit code. Problem socket_unusable."""
    notifier = sd_notify.from_environment(os.environ)
    try:
        inherited = sd_notify.passed_listener(os.environ)
    except OSError as error:
        raise Problem("socket_unusable", str(error)) from error
    stop = asyncio.Event()
    # Daemon threads: a file that cannot be read (a hung disk) does not keep the process from ending.
    asyncio.get_running_loop().set_default_executor(executor.DaemonThreadExecutor())
    os_signals.act_on({signal.SIGTERM: stop.set, signal.SIGINT: stop.set})
    use_journald = journalctl.available() if source == "auto" else source == "journald"
    sources = Sources(
        units=settings.node.journal_units, auth_log=Path(settings.node.auth_log), use_journald=use_journald
    )
    async with contextlib.AsyncExitStack() as stack:
        path = journal_client.socket_path(settings)
        sock = inherited
        # With socket activation (sd_listen_fds(3)) the path belongs to the service manager and stays.
        if sock is None:
            sock = _listen(path, settings.runtime_dir)
            # The path is ours: without a listener, a socket file would refuse connections until the next start.
            stack.callback(path.unlink, missing_ok=True)
        await stack.enter_async_context(JournalServer(sources, clients=lambda: clients(settings)).serving(sock))
        source_name = "journald" if use_journald else "auth.log"
        # Only now, with the socket open: units that wait for this one may connect at once.
        notifier.ready(f"reading {source_name}")
        log.info("journal_reader_ready", source=source_name, units=len(sources.units))
        await stop.wait()
        notifier.stopping()
    return 0


def _listen(path: Path, runtime_dir: Path) -> socket.socket:
    """A listening socket at `path`, which the group of the daemon's runtime directory may connect to, where we may give
    it away. Problem socket_unusable.
    """
    try:
        with contextlib.suppress(PermissionError):  # neither root nor a member of that group
            return unix_listener.listen(path, gid=runtime_dir.stat().st_gid)
        return unix_listener.listen(path)
    except OSError as error:
        detail = f"cannot listen at {path}: {error.strerror or error}"
        raise Problem("socket_unusable", detail, "start latticed first, it makes that directory") from error


def clients(settings: Settings) -> frozenset[int]:
    """The uids that may ask: root, our own, and the owner of the runtime directory, which is the daemon's user.

    Looked up for each connection: a service manager may have made the directory, and give it to the daemon's user only
    when that one is started. Without it only root and our own user may.
    """
    uids = {0, os.geteuid()}
    with contextlib.suppress(OSError):
        uids.add(settings.runtime_dir.stat().st_uid)
    # The overflow uid stands for every uid that has no mapping here (user_namespaces(7)).
    return frozenset(uids - {peers.NOBODY})


class JournalServer:
    """Answers one request for each connection, from `clients()` (uids) only.

    A request is one line of JSON, a JournalQuery; the answer is one line of JSON: entries, or `code` and `message`.
    """

    def __init__(self, sources: Sources, *, clients: Callable[[], frozenset[int]]) -> None:
        self._sources = sources
        self._clients = clients
        self._connections: set[asyncio.Task[Any]] = set()
        self._queries = asyncio.Semaphore(MAX_CONCURRENT_QUERIES)

    @contextlib.asynccontextmanager
    async def serving(self, sock: socket.socket) -> AsyncIterator[None]:
        """Serve the listening socket while the block runs; it is closed at the end, its path left to the caller."""
        server = await asyncio.start_unix_server(
            self._connected, sock=sock, limit=MAX_REQUEST_BYTES, **unix_listener.SERVER_OPTIONS
        )
        try:
            yield
        finally:
            server.close()
            # close() only stops listening; open connections would go on.
            for connection in self._connections:
                connection.cancel()
            # Waited for, so that no query and no journalctl outlives the server.
            await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, and close it. A client that has gone or sends no request is no error."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - runs as a task
        self._connections.add(task)
        try:
            # Others get no answer, not even an error: the connection is closed.
            if self._is_allowed(uid := peers.of(writer.get_extra_info("socket")).uid):
                await self._serve(reader, writer, uid)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client has gone, or sent no request
        finally:
            self._connections.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                # Raises what broke the connection: it makes no difference any more.
                await writer.wait_closed()

    def _is_allowed(self, uid: int) -> bool:
        """Whether a peer of this uid (SO_PEERCRED) may ask, and there are not too many connections."""
        is_client = uid in self._clients()
        if not is_client:
            log.warning("journal_request_refused", uid=uid)
        return is_client and len(self._connections) <= MAX_CONNECTIONS

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, uid: int) -> None:
        """Read one request of a peer of `uid`, write one answer."""
        # A slow client must not keep its connection, of which there are only so many.
        async with asyncio.timeout(REQUEST_S):
            line = await reader.readuntil(b"\n")
        try:
            answer = await self._answer(line, uid)
        except HostError as error:
            answer = {"code": error.code.value, "message": error.reason}
        # json escapes everything but ASCII, newlines too: the answer is one line.
        writer.write(json.dumps(answer).encode("ascii") + b"\n")
        async with asyncio.timeout(REQUEST_S):
            await writer.drain()

    async def _answer(self, line: bytes, uid: int) -> dict[str, Any]:
        """The answer to one line; HostError bad_params, deadline_exceeded, or what the query raises."""
        try:
            asked = msgspec.convert(strict_json.loads(line), JournalQuery, strict=True)
        except (strict_json.InvalidJson, msgspec.ValidationError) as error:
            raise HostError(Denial.BAD_PARAMS, str(error)) from error
        try:
            # The deadline includes the wait for a turn, as the daemon's does.
            async with asyncio.timeout(ANSWER_S), self._queries:
                return await journal_query.answer(self._sources, asked, uid=uid)
        except TimeoutError as error:
            raise HostError(Denial.DEADLINE_EXCEEDED, "the journal could not be read in time") from error


if __name__ == "__main__":
    sys.exit(main())
