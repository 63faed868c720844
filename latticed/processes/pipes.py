"""The daemon's ends of a child's pipes: bounded writing, and reading by the caller's asyncio protocols."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(slots=True)
class Pipe:
    """The descriptors of both ends of a pipe; None once an end has been given away."""

    read: int | None
    write: int | None

    @classmethod
    def make(cls) -> Pipe:
        """A new pipe, both ends close-on-exec (os.pipe)."""
        return cls(*os.pipe())

    def give_read(self) -> int:
        """Give the reading end away: the caller closes it."""
        fd, self.read = self.read, None
        return cast("int", fd)

    def give_write(self) -> int:
        """Give the writing end away: the caller closes it."""
        fd, self.write = self.write, None
        return cast("int", fd)

    def close(self) -> None:
        """Close what was not given away."""
        for fd in (self.read, self.write):
            if fd is not None:
                os.close(fd)
        self.read = self.write = None


class PipeWriter(asyncio.BaseProtocol):
    """A pipe that the daemon writes and the child reads. `write` buffers; `drain` waits while too much is buffered.

    `on_lost` is a function without arguments that is called once when the pipe is closed, by either side.
    """

    def __init__(self) -> None:
        self.on_lost: Callable[[], None] = lambda: None
        self._transport: asyncio.WriteTransport | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._lost = False

    @classmethod
    async def connect(cls, fd: int) -> PipeWriter:
        """A writer for the pipe `fd`, which it owns from now on."""
        # asyncio takes a file object, which then owns the descriptor, and makes it non-blocking.
        end = os.fdopen(fd, "wb", buffering=0)
        # Until there is a transport, only `end` owns the descriptor: closed here, also when cancelled.
        try:
            _, writer = await asyncio.get_running_loop().connect_write_pipe(cls, end)
        except BaseException:
            end.close()
            raise
        return writer

    @property
    def closed(self) -> bool:
        """Whether nothing can be written any more: closed by either side."""
        return self._lost or self._transport is None or self._transport.is_closing()

    @property
    def may_write(self) -> bool:
        """Whether `drain` would return at once."""
        return self._may_write.is_set()

    def write(self, data: bytes) -> None:
        """Buffer `data` for the child, without any bound: call `drain` before writing more. BrokenPipeError when the
        pipe is closed.
        """
        if self.closed or self._transport is None:
            raise BrokenPipeError("the child no longer reads")
        self._transport.write(data)

    async def drain(self) -> None:
        """Wait until there is room in the buffer again (asyncio's limit, 64 KiB); BrokenPipeError when the child closed
        its end.
        """
        await self._may_write.wait()
        # connection_lost sets the event too: else this would wait for ever when the pipe is closed meanwhile.
        if self._lost:
            raise BrokenPipeError("the child no longer reads")

    def close(self) -> None:
        """Close after the buffered data was written."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once and drop the buffered data."""
        if self._transport is None or self._lost:
            return
        # abort() on a transport that is closing with an empty buffer calls connection_lost twice
        if not self._transport.is_closing() or self._transport.get_write_buffer_size():
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._lost = True
        self._may_write.set()
        self.on_lost()


class PipeReader(asyncio.Protocol):
    """Passes every protocol event on to `inner`, and calls `on_lost` at the end."""

    def __init__(self, inner: asyncio.Protocol, on_lost: Callable[[], None]) -> None:
        self._inner = inner
        self._on_lost = on_lost

    @classmethod
    async def connect(cls, fd: int, inner: asyncio.Protocol, on_lost: Callable[[], None]) -> asyncio.ReadTransport:
        """Read the pipe `fd`, which the returned transport owns from now on; `inner` gets its events, `on_lost` comes
        last.
        """
        end = os.fdopen(fd, "rb", buffering=0)
        # As in `PipeWriter.connect`.
        try:
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: cls(inner, on_lost), end)
        except BaseException:
            end.close()
            raise
        return transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        try:
            self._inner.connection_lost(exc)
        finally:  # the child's clean-up waits for this call, whatever the protocol does
            self._on_lost()
