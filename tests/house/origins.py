"""HTTP servers that send exactly the bytes they are given, and record their requests."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import trustme


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One request as it arrived; `at` is the address it arrived at, `sni` the name of the TLS handshake."""

    method: str
    path: str
    header: dict[str, str]
    body: bytes
    at: str
    sni: str | None


Say = Callable[[Seen, asyncio.StreamWriter], Awaitable[None]]


@dataclass(slots=True)
class Origin:
    """A server; `say(request, writer)` answers. The connection is closed after each answer."""

    say: Say
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0
    names: dict[int, str] = field(default_factory=dict)
    busy: set[asyncio.Task] = field(default_factory=set)
    ports: list[int] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.ports[0]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.busy.add(asyncio.current_task())
        try:
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the test has ended
        finally:
            self.busy.discard(asyncio.current_task())
            writer.transport.abort() if writer.transport.is_closing() else writer.close()

    async def _answer(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("utf-8")
        first, *lines = head.rstrip("\r\n").split("\r\n")
        method, path, _ = first.split(" ")
        header = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(header.get("content-length", 0)))
        tls = writer.get_extra_info("ssl_object")
        sni = self.names.get(id(tls)) if tls else None
        at = writer.get_extra_info("sockname")[0]
        request = Seen(method=method, path=path, header=header, body=body, at=at, sni=sni)
        self.seen.append(request)
        await self.say(request, writer)
        await writer.drain()


@contextlib.asynccontextmanager
async def serving(
    say: Say | bytes, *, tls: ssl.SSLContext | None = None, at: tuple[tuple[str | None, int], ...] = (("127.0.0.1", 0),)
) -> AsyncIterator[Origin]:
    """The server at each (address, port); with `tls`, over TLS."""
    origin = Origin(say=say if callable(say) else saying(say))
    if tls is not None:
        tls.sni_callback = lambda sock, name, _context: origin.names.__setitem__(id(sock), name)
    servers = [await asyncio.start_server(origin.serve, host, port, ssl=tls) for host, port in at]
    origin.ports = [server.sockets[0].getsockname()[1] for server in servers]
    try:
        yield origin
    finally:
        for server in servers:
            server.close()
        for task in list(origin.busy):
            task.cancel()
        while origin.busy:  # noqa: ASYNC110 - until each has ended
            await asyncio.sleep(0.001)


def saying(raw: bytes) -> Say:
    """Always the same bytes."""

    async def say(_request: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)

    return say


def answer(body: bytes = b"", *lines: str, status: str = "200 OK") -> bytes:
    """An answer with its length, and further header lines."""
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *lines, "", ""])
    return head.encode("utf-8") + body


def redirect(location: str | None, status: int = 302) -> bytes:
    """An answer that sends the caller elsewhere."""
    return answer(b"", *([f"Location: {location}"] if location is not None else []), status=f"{status} Elsewhere")


class Authority:
    """A certificate authority of the tests."""

    def __init__(self) -> None:
        self._ca = trustme.CA()

    def trust(self) -> ssl.SSLContext:
        """A client's context that trusts this authority and no other."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._ca.configure_trust(context)
        return context

    def certificate(self) -> bytes:
        """The certificate of this authority, in PEM."""
        return self._ca.cert_pem.bytes()

    def server(self, *names: str) -> ssl.SSLContext:
        """A server's context with a certificate for these names."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert(*names).configure_cert(context)
        return context
