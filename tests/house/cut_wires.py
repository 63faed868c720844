"""A TCP forwarder of the tests' own, to cut a connection in the ways a network does.

async with cut_wires.forwarding(port) as wire:
    wire.port  # connect there
    wire.hole()  # nothing passes any more, and nobody is told
    wire.cut()  # all connections are reset, new ones too
    wire.heal()
    wire.after(7, wire.cut)  # in place of the seventh piece of data from now on
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable


class Wire:
    def __init__(self, target: int) -> None:
        self._target = target
        self._passes = asyncio.Event()
        self._passes.set()
        self._refusing = False
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.accepted = 0
        """Connections so far."""
        self._left = 0
        self._then: Callable[[], None] | None = None

    def after(self, count: int, then: Callable[[], None]) -> None:
        """Call `then` once in place of the piece of data of that number, counted in both directions; 0: never."""
        self._left, self._then = count, then

    @property
    def waits(self) -> bool:
        """Whether the moment of `after` is still to come."""
        return self._left > 0

    def hole(self) -> None:
        self._passes.clear()

    def cut(self) -> None:
        self._refusing = True
        for one in self._writers:
            one.transport.abort()

    def heal(self) -> None:
        self._refusing = False
        self._passes.set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._writers.add(writer)
        other = None
        try:
            if self._refusing:
                return
            await self._passes.wait()
            other_reader, other = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(other)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, other))
                group.create_task(self._pump(other_reader, writer))
        except* OSError:
            pass
        finally:
            for one in (writer, other):
                if one is not None:
                    self._writers.discard(one)
                    one.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if self._left > 0:
                self._left -= 1
                if self._left == 0 and self._then is not None:
                    self._then()
            await self._passes.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError  # the other direction ends too


@contextlib.asynccontextmanager
async def forwarding(target: int) -> AsyncIterator[Wire]:
    wire = Wire(target)
    handlers: set[asyncio.Task] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(wire.accept(reader, writer))
        handlers.add(task)
        task.add_done_callback(handlers.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    wire.port = server.sockets[0].getsockname()[1]
    try:
        yield wire
    finally:
        server.close()
        for task in list(handlers):
            task.cancel()
        if handlers:
            await asyncio.wait(set(handlers))
