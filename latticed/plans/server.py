"""The helper's socket: who asks (SO_PEERCRED), one request for each connection, one operation at a time.

Operators' requests come before the daemon's; what nobody asks for (expired changes, drift) before both. A flood, half a
request or a peer that reads nothing costs the others nothing but its own connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import itertools
import os
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from latticed.kit import logs, peers
from latticed.model.errors import Problem
from latticed.plans import decide, protocol
from latticed.plans.operations import Asker, actor_of

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable

    from latticed.plans.decide import Approvers

MAX_CONNECTIONS: Final = 64
"""Open connections of all; further ones are closed at once. Root has ROOT_CONNECTIONS more."""
ROOT_CONNECTIONS: Final = 16
PEER_CONNECTIONS: Final = 8
"""Open connections of one uid but root's."""
BACKLOG: Final = 256
"""Connections that wait to be accepted. Beyond it connect(2) of a socket with a timeout fails with EAGAIN (unix(7)):
callers try again.
"""
ACCEPTED_AT_ONCE: Final = 16
"""Connections accepted in one turn of the loop. asyncio's servers accept the whole backlog: every turn that a request
takes would wait for a flood's hundreds of transports and tasks.
"""
ACCEPT_AGAIN_S: Final = 1.0
"""Seconds until the next try when no connection can be accepted, for want of descriptors for example."""
MAX_WAITING: Final = 32
"""Requests that wait for their turn; further ones are `busy`. The daemon's uid has at most PEER_WAITING of them."""
PEER_WAITING: Final = 4
ROOT_REQUEST_S: Final = 30.0
"""Seconds for a request of root to arrive: root is not to pay for a flood that takes the processor from it."""
TICK_S: Final = 0.5
"""How often expired changes are looked for. The dead-man is earlier, if it lives."""
log = logs.get_logger()


@dataclass(slots=True, order=True)
class _Turn:
    """One piece of work for the thread: the lowest `rank` first, then in order."""

    rank: int
    number: int
    work: Callable[[], Any] = field(compare=False)
    done: asyncio.Future[Any] = field(compare=False)


class PlanServer:
    """Serves `carry_out(request, asker)` to those whom `approvers` names. `tick()` is called every TICK_S, `compare()`
    every `poll_s`; all three block, and run in one thread, one at a time.
    """

    def __init__(
        self,
        carry_out: Callable[[protocol.AnyRequest, Asker], protocol.Answer],
        *,
        approvers: Approvers,
        tick: Callable[[], None],
        compare: Callable[[], None],
        poll_s: float,
    ) -> None:
        self._carry_out = carry_out
        self._approvers = approvers
        self._tick = tick
        self._compare = compare
        self._poll_s = poll_s
        self._turns: asyncio.PriorityQueue[_Turn] = asyncio.PriorityQueue()
        self._numbers = itertools.count()
        self._connections: dict[asyncio.Task[Any], int] = {}
        self._waiting: Counter[int] = Counter()
        self._refusals_logged_at = 0.0

    @contextlib.asynccontextmanager
    async def serving(self, sock: socket.socket) -> AsyncIterator[None]:
        """Serve the listening socket while the block runs. An operation that is under way at the end is waited for: a
        half-done apply would be undone, but it need not come to that.
        """
        sock.setblocking(False)
        sock.listen(BACKLOG)
        work = asyncio.create_task(self._work())
        others = [asyncio.create_task(self._keep_up()), asyncio.create_task(self._accept(sock))]
        try:
            yield
        finally:
            tasks = (*others, *self._connections)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            sock.close()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _accept(self, sock: socket.socket) -> None:
        """Accept connections, for ever. One without room is closed before anything is made for it, so that a flood
        costs those who wait behind it microseconds.
        """
        loop = asyncio.get_running_loop()
        for number in itertools.count(1):
            try:
                connection, _ = await loop.sock_accept(sock)
            except ConnectionAbortedError:
                continue
            except OSError as error:
                log.error("plan_accept_failed", error=errno.errorcode.get(error.errno or 0, "unknown"))
                await asyncio.sleep(ACCEPT_AGAIN_S)
                continue
            try:
                peer = peers.of(connection)
            except OSError:
                connection.close()
                continue
            if self._has_room(peer.uid):
                task = asyncio.create_task(self._connected(connection, peer))
                self._connections[task] = peer.uid
                task.add_done_callback(functools.partial(self._over, connection))
            else:
                connection.close()
            if number % ACCEPTED_AT_ONCE == 0:
                await asyncio.sleep(0)  # sock_accept() does not wait while there are connections

    def _over(self, connection: socket.socket, task: asyncio.Task[Any]) -> None:
        """Forget a connection that is served, or whose task was cancelled before it began."""
        self._connections.pop(task, None)
        connection.close()

    async def _work(self) -> None:
        """Take turns, for ever. What fails is its caller's; a bug is logged."""
        while True:
            turn = await self._turns.get()
            if turn.done.cancelled():
                continue  # its caller left before its turn
            running = asyncio.ensure_future(asyncio.to_thread(turn.work))
            try:
                # Shielded: a thread cannot be cancelled, so the end of the server waits for it.
                answer = await asyncio.shield(running)
            except asyncio.CancelledError:
                await asyncio.gather(running, return_exceptions=True)
                raise
            except Exception as error:  # noqa: BLE001 - one request's bug is not the next one's
                # Not its text, which could repeat a secret.
                place = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{os.path.basename(place.filename)}:{place.lineno}"
                log.error("plan_operation_failed", error=type(error).__name__, where=where)
                if not turn.done.done():
                    turn.done.set_result(protocol.ErrorAnswer(code="internal", message="an error in the root helper"))
            else:
                if not turn.done.done():
                    turn.done.set_result(answer)

    async def _keep_up(self) -> None:
        """Have expired changes undone and live states compared, for ever."""
        compared_at = float("-inf")
        while True:
            await self._turn(0, self._tick)
            if time.monotonic() - compared_at >= self._poll_s:
                compared_at = time.monotonic()
                await self._turn(0, self._compare)
            await asyncio.sleep(min(TICK_S, self._poll_s))

    async def _turn(self, rank: int, work: Callable[[], Any]) -> Any:
        """What `work` returns, when its turn has come."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._turns.put_nowait(_Turn(rank, next(self._numbers), work, done))
        return await done

    async def _connected(self, connection: socket.socket, peer: peers.Peer) -> None:
        """Serve one connection; whatever happens to it ends with it."""
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=protocol.MAX_REQUEST_BYTES)
        try:
            await self._serve(reader, writer, peer, self._approvers.role(peer))
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the peer has gone, or sent no request
        finally:
            # At once, also with unread answers in the buffer: close() would wait for a peer that reads nothing.
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _has_room(self, uid: int) -> bool:
        """Whether one more connection of this uid is served."""
        if uid == 0:
            return len(self._connections) < MAX_CONNECTIONS + ROOT_CONNECTIONS
        mine = sum(1 for one in self._connections.values() if one == uid)
        return mine < PEER_CONNECTIONS and len(self._connections) < MAX_CONNECTIONS

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: peers.Peer, role: decide.Role
    ) -> None:
        """Read one request, write one answer."""
        if role is decide.Role.STRANGER:
            # Nothing is read from a stranger.
            self._log_refusal(peer.uid)
            hint = "root may, and whom [apply] approvers names in root's settings"
            answer: protocol.Answer = protocol.ErrorAnswer(
                code="denied", message=f"uid {peer.uid} may not use the root helper", hint=hint
            )
        else:
            within_s = protocol.REQUEST_S if peer.uid else ROOT_REQUEST_S
            answer = await self._answered(await _line(reader, within_s), peer, role)
        # drain() then waits until all is sent, not until little is left.
        writer.transport.set_write_buffer_limits(high=0)
        line = protocol.encode(answer)
        if len(line) > protocol.MAX_ANSWER_BYTES:
            line = protocol.encode(protocol.ErrorAnswer(code="internal", message="the answer would be too large"))
        writer.write(line)
        async with asyncio.timeout(protocol.REQUEST_S):
            await writer.drain()

    async def _answered(self, line: bytes, peer: peers.Peer, role: decide.Role) -> protocol.Answer:
        """The answer to one line."""
        try:
            # In a thread: a request of 1 MiB takes tens of milliseconds.
            request = await asyncio.to_thread(protocol.decode_request, line)
        except Problem as problem:
            return protocol.ErrorAnswer(code=problem.code, message=problem.reason, hint=problem.hint)
        if type(request) not in decide.MAY[role]:
            return protocol.ErrorAnswer(
                code="denied", message="this user may not ask for that", hint="ask as root (sudo)"
            )
        if sum(self._waiting.values()) >= MAX_WAITING or (peer.uid and self._waiting[peer.uid] >= PEER_WAITING):
            return protocol.ErrorAnswer(
                code="busy", message="too many requests wait at the root helper", hint="try again"
            )
        asker = Asker(role=role, actor=actor_of(peer.pid, peer.uid, self._approvers.names.get(peer.uid, "-")))
        self._waiting[peer.uid] += 1
        try:
            rank = 2 if role is decide.Role.DAEMON else 1
            answer: protocol.Answer = await self._turn(rank, lambda: self._carry_out(request, asker))
        finally:
            self._waiting[peer.uid] -= 1
        return answer

    def _log_refusal(self, uid: int) -> None:
        """Say that a stranger came, once a second at most."""
        if time.monotonic() - self._refusals_logged_at >= 1.0:
            self._refusals_logged_at = time.monotonic()
            log.warning("plan_peer_refused", uid=uid)


async def _line(reader: asyncio.StreamReader, within_s: float) -> bytes:
    """One request; a longer line is cut, and refused where it is decoded. TimeoutError, IncompleteReadError."""
    async with asyncio.timeout(within_s):
        try:
            return await reader.readuntil(b"\n")
        except asyncio.LimitOverrunError:
            return await reader.read(protocol.MAX_REQUEST_BYTES + 1)
