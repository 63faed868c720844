"""The way out of a network of a service's own: connections that it makes in there are joined to guarded ones.

It listens by sockets of the service's network (`door`), where each host of `hosts.layout` has an address, and a proxy
takes CONNECT (RFC 9110, section 9.3.6). What is joined are bytes: TLS is between the program and the host that it asked
for. Each connection is judged, recorded as a host call and made through the guard; what is no longer granted is cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from latticed.host.call import HostError
from latticed.host.program import hosts as reachable
from latticed.host.program.hosts import HostLayout, ReachableHost
from latticed.kit import descriptors, logs, text
from latticed.kit.tasks import fenced
from latticed.kit.token_bucket import Rate, TokenBuckets
from latticed.model import egress, hosts
from latticed.model.audit import Actor, Event
from latticed.model.errors import Problem
from latticed.model.hostcall import FIX, Denial

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from latticed.host.egress.guard import Guard
    from latticed.kit.clock import Clock
    from latticed.model.addresses import Address
    from latticed.model.egress import EgressRights

CALL: Final = "service.connect"
"""The name of a connection in the chain of calls; no plugin can call it."""
CAPABILITY: Final = "http:egress"
MAX_CONNECTIONS: Final = 64
"""Of one service at once; further ones wait to be accepted."""
RATE: Final = Rate(per_second=20, burst=100)
"""Connections of one service: each is an event on record."""
ASK_S: Final = 10.0
"""Seconds for a program to send its CONNECT."""
IDLE_S: Final = 300.0
"""Seconds without a byte in either direction until a connection is closed."""
WRITE_S: Final = 60.0
"""Seconds for one side to take what the other sent."""
RETRY_S: Final = 0.5
"""Seconds until it is tried again after a connection could not be accepted."""
_PIECE_BYTES: Final = 64 << 10
_CONNECT: Final = re.compile(rb"CONNECT (\[[0-9A-Fa-f:.]{2,45}\]|[^\s:\[\]/@]{1,253}):([0-9]{1,5}) HTTP/1\.[01]\r\n")
_STATUS: Final = {
    Denial.SERVICE_UNAVAILABLE: "502 Bad Gateway",
    Denial.DEADLINE_EXCEEDED: "504 Gateway Timeout",
    Denial.RATE_LIMITED: "429 Too Many Requests",
    Denial.BAD_PARAMS: "400 Bad Request",
}
log = logs.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class WayOutDeps:
    """What ways out are made with. `rights(plugin_id)`: where it may connect to now, None while it may not;
    `record` returns once an event is on record, Problem when it cannot be; `contacted(plugin_id, "host:port")`.
    `places`: connections of all services at once, as each takes two of the daemon's descriptors.
    """

    guard: Guard
    rights: Callable[[str], EgressRights | None]
    record: Callable[[Event], Awaitable[int]]
    contacted: Callable[[str, str], None]
    clock: Clock
    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(max(descriptors.limit() // 16, 1)))


@dataclass(slots=True, eq=False)
class _Connection:
    """One connection of a program; `target` is known at once, or when the proxy was asked. `pins`: the address of the
    bound origin that it leads to, empty when it leads to a granted host; None until it was judged.
    """

    task: asyncio.Task[None]
    target: ReachableHost | None = None
    pins: tuple[Address, ...] | None = None


class WayOut:
    """The way out of one service while its program runs. `may()`: whether that may act now; `patterns`: its hosts."""

    def __init__(
        self, plugin_id: str, name: str, patterns: tuple[str, ...], deps: WayOutDeps, *, may: Callable[[], bool]
    ) -> None:
        self.layout: HostLayout = reachable.layout(patterns)
        self._plugin_id = plugin_id
        self._name = name
        self._patterns = patterns
        self._deps = deps
        self._may = may
        self._buckets = TokenBuckets()
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._connections: set[_Connection] = set()

    async def serve(self, listeners: list[socket.socket]) -> None:
        """Take connections at `listeners`, those of the layout, until cancelled; then all of them are closed."""
        accepting = [
            fenced(self._accept(one, target), self._failed, name=f"way out of {self._name}")
            for one, target in zip(listeners, self.layout.targets, strict=True)
        ]
        try:
            await asyncio.gather(*accepting)
        finally:
            for task in accepting:
                task.cancel()
            for one in listeners:
                one.close()
            self.cut(everything=True)
            await asyncio.gather(*accepting, *(one.task for one in self._connections), return_exceptions=True)

    def cut(self, *, everything: bool = False) -> None:
        """Close the connections that may not go on; returns at once."""
        for one in list(self._connections):
            if everything or not self._may_go_on(one):
                one.task.cancel()

    def _may_go_on(self, one: _Connection) -> bool:
        """Whether a connection may be kept: its service may act, and its host is still granted."""
        if (rights := self._rights()) is None:
            return False
        if one.target is None or one.pins is None:
            return True  # not judged yet
        # A bound origin that lost its binding does not go on as a granted host: its address may be private.
        if (pins := _pinned(one.target, rights)) or one.pins:
            return pins == one.pins
        return egress.refusal(rights, host=one.target.host, port=one.target.port) is None

    def _rights(self) -> EgressRights | None:
        """Where the service may connect to now; None while it may not."""
        return self._deps.rights(self._plugin_id) if self._may() else None

    async def _accept(self, listener: socket.socket, target: ReachableHost | None) -> None:
        """Take connections at one listener, as many and as often as is allowed; the others wait in its queue."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listener)
            except OSError:
                # No descriptor is free, or the connection was reset meanwhile.
                await asyncio.sleep(RETRY_S)
                continue
            try:
                # A place is taken after the connection, not before: listeners that wait would hold all of them.
                await self._pace()
                await self._take_place()
            except BaseException:
                accepted.close()
                raise
            self._begin(accepted, target)

    async def _take_place(self) -> None:
        """Wait until one more connection of this service, and of all, may be made."""
        await self._slots.acquire()
        try:
            await self._deps.places.acquire()
        except BaseException:
            self._slots.release()
            raise

    async def _pace(self) -> None:
        """Wait until one more connection is within the rate."""
        while wait_s := self._buckets.take("", RATE, self._deps.clock.monotonic_s()):  # noqa: ASYNC110 - others take, too
            await asyncio.sleep(wait_s)

    def _begin(self, accepted: socket.socket, target: ReachableHost | None) -> None:
        """Answer one accepted connection in a task of its own."""
        connection: _Connection

        async def answer() -> None:
            with contextlib.suppress(OSError, EOFError, TimeoutError, HostError):
                await self._answer(accepted, connection)

        connection = _Connection(fenced(answer(), self._failed, name=f"connection of {self._name}"), target)
        self._connections.add(connection)

        def over(_: object) -> None:
            accepted.close()
            self._connections.discard(connection)
            self._slots.release()
            self._deps.places.release()

        connection.task.add_done_callback(over)

    def _failed(self, error: BaseException) -> None:
        log.error("way_out_failed", plugin_id=self._plugin_id, name=self._name, error=repr(error))

    async def _answer(self, accepted: socket.socket, connection: _Connection) -> None:
        """Join one connection to its target; HostError, OSError, TimeoutError when that fails or ends."""
        reader, writer = await asyncio.open_connection(sock=accepted, limit=_PIECE_BYTES)
        try:
            if connection.target is not None:
                await self._joined(reader, writer, connection)
                return
            try:
                async with asyncio.timeout(ASK_S):
                    connection.target = await _asked(reader)
                await self._joined(reader, writer, connection, greeting=b"HTTP/1.1 200 Connection established\r\n\r\n")
            except HostError as error:
                status = _STATUS.get(error.code, "403 Forbidden")
                said = f"{error.code.value}: {error.reason}\n".encode("utf-8", "replace")
                head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n"
                writer.write(f"{head}Content-Length: {len(said)}\r\n\r\n".encode("ascii") + said)
                async with asyncio.timeout(WRITE_S):
                    await writer.drain()
        finally:
            await _closed(writer)

    async def _joined(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        connection: _Connection,
        *,
        greeting: bytes = b"",
    ) -> None:
        """Connect to the target, then pass bytes both ways until both sides have ended or one fails."""
        there_reader, there_writer = await self._connected(connection)
        try:
            writer.write(greeting)
            await _relayed((reader, writer), (there_reader, there_writer))
        except BaseException:
            # Not an orderly end: what did not come to its end must not look complete.
            for one in (writer, there_writer):
                one.transport.abort()
            raise
        finally:
            await _closed(there_writer)

    async def _connected(self, connection: _Connection) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A guarded connection to the target of `connection`, on record before it is made. HostError, on record too."""
        target = connection.target
        assert target is not None  # noqa: S101 - the caller has set it
        try:
            rights = self._rights()
            if rights is None:
                raise HostError(Denial.CAPABILITY_NOT_GRANTED, f"{CAPABILITY} is not granted, or it may not act now")
            if not reachable.allowed(target, self._patterns):
                raise HostError(Denial.EGRESS_BLOCKED, f"host not declared: {target} is not in the service's hosts")
            connection.pins = _pinned(target, rights)
            await self._record(target)
            self._deps.contacted(self._plugin_id, str(target))
            scheme = reachable.scheme_of(target, rights) or "tcp"
            host = hosts.bracketed(target.host)
            return await self._deps.guard.connect(host, target.port, rights, scheme=scheme)
        except HostError as error:
            await self._record(target, error)
            raise

    async def _record(self, target: ReachableHost, error: HostError | None = None) -> None:
        """Record that a connection is made, or why not. HostError audit_unavailable."""
        outcome: dict[str, Any] = {"decision": "allow"}
        detail: dict[str, str | int | bool] = {"service": self._name, "host": text.sanitise(str(target), 300)}
        if error is not None:
            outcome = {"decision": "deny", "code": error.code.value, "reason": error.reason}
            if error.fault.fix:
                detail[FIX] = error.fault.fix
        actor = str(Actor(kind="plugin", name=self._plugin_id))
        try:
            await self._deps.record(Event(actor=actor, action="host.call", target=CALL, detail=detail, **outcome))
        except Problem as problem:
            raise HostError(Denial.AUDIT_UNAVAILABLE, "the connection cannot be recorded") from problem


def _pinned(target: ReachableHost, rights: EgressRights) -> tuple[Address, ...]:
    """The addresses of the origins by which this target is bound; empty when it is not."""
    scheme = reachable.scheme_of(target, rights)
    return () if scheme is None else egress.pinned(rights, scheme=scheme, host=target.host, port=target.port)


async def _asked(reader: asyncio.StreamReader) -> ReachableHost:
    """The target of a CONNECT; HostError bad_params for any other request."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.LimitOverrunError, asyncio.IncompleteReadError) as error:
        raise HostError(Denial.BAD_PARAMS, "expected the head of a request") from error
    found = _CONNECT.match(head)
    if found is None:
        raise HostError(Denial.BAD_PARAMS, "expected CONNECT host:port, as for https")
    try:
        host, port = hosts.normal(found[1].decode("ascii")), int(found[2])
    except (UnicodeDecodeError, hosts.NotAHost) as error:
        raise HostError(Denial.BAD_PARAMS, "expected a host that can be read in one way") from error
    if not 0 < port < 1 << 16:
        raise HostError(Denial.BAD_PARAMS, "expected a port from 1 to 65535")
    return ReachableHost(host=host, port=port)


Side = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _relayed(one: Side, other: Side) -> None:
    """Pass bytes both ways until both have ended; OSError, TimeoutError when one fails, or nothing comes for IDLE_S."""
    last = _LastByte()
    watching = asyncio.ensure_future(last.watch())
    works = [asyncio.ensure_future(_pump(*pair, last)) for pair in ((one[0], other[1]), (other[0], one[1]))]
    works.append(watching)
    pending = set(works)
    try:
        while pending != {watching}:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # `watching` ends by an exception alone
    finally:
        for task in works:
            task.cancel()
        await asyncio.gather(*works, return_exceptions=True)


class _LastByte:
    """When the last byte came, in either direction."""

    def __init__(self) -> None:
        self.at_s = asyncio.get_running_loop().time()

    def came(self) -> None:
        self.at_s = asyncio.get_running_loop().time()

    async def watch(self) -> None:
        """TimeoutError once none has come for IDLE_S."""
        loop = asyncio.get_running_loop()
        while (left_s := self.at_s + IDLE_S - loop.time()) > 0:  # noqa: ASYNC110 - that is what it is about
            await asyncio.sleep(left_s)
        raise TimeoutError


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, last: _LastByte) -> None:
    """Pass bytes on until `source` ends, and then that end."""
    while piece := await source.read(_PIECE_BYTES):
        last.came()
        sink.write(piece)
        # One that does not read must not hold its place for ever.
        async with asyncio.timeout(WRITE_S):
            await sink.drain()
    if sink.can_write_eof():
        sink.write_eof()


async def _closed(writer: asyncio.StreamWriter) -> None:
    """Close one side: what is written goes out, for at most WRITE_S; at once when this is cancelled."""
    writer.close()
    try:
        async with asyncio.timeout(WRITE_S):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        writer.transport.abort()
    except asyncio.CancelledError:
        writer.transport.abort()
        raise
