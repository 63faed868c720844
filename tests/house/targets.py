"""Monitor targets: servers on loopback that answer, refuse, hang, flap; with TLS from an authority of the tests."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from latticed.host.egress.guard import Guard
from latticed.model.egress import EgressRights, origin

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
MAX_REQUEST = 64 << 10


@dataclass
class Site:
    """A server whose answer may be changed at any time; None hangs, b"" closes without a word."""

    answer: bytes | None = OK
    port: int = 0
    requests: list[bytes] = field(default_factory=list)
    open_now: int = 0
    most_open: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def url(self, host: str = "127.0.0.1", scheme: str = "http", path: str = "/") -> str:
        return f"{scheme}://{host}:{self.port}{path}"


@contextlib.asynccontextmanager
async def site(
    answer: bytes | None = OK, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Site]:
    """A site of its own port, gone with its connections at the end of the block."""
    made, writers = Site(answer=answer), set()
    over = asyncio.Event()
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())  # type: ignore[arg-type]
        writers.add(writer)
        made.open_now += 1
        made.idle.clear()
        made.most_open = max(made.most_open, made.open_now)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                made.requests.append(await reader.readuntil(b"\r\n\r\n"))
                if made.answer is None:
                    gone = asyncio.ensure_future(reader.read(1))
                    ended = asyncio.ensure_future(over.wait())
                    await asyncio.wait({gone, ended}, return_when=asyncio.FIRST_COMPLETED)
                    gone.cancel()
                    ended.cancel()
                    await asyncio.gather(gone, ended, return_exceptions=True)
                else:
                    writer.write(made.answer)
                    await writer.drain()
        finally:
            made.open_now -= 1
            if not made.open_now:
                made.idle.set()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(serve, host, 0, ssl=tls)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        over.set()
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*serving, return_exceptions=True)


@contextlib.contextmanager
def deaf() -> Iterator[int]:
    """The port of a listener that never accepts: connections are made, but get no answer."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        yield listener.getsockname()[1]


def bound(*origins: str) -> EgressRights:
    """The rights of a plugin to which an operator has bound these origins, and nothing else."""
    return EgressRights(origins=tuple(origin(one) for one in origins))


def guard() -> Guard:
    return Guard()
