"""A real service behind the proxy: it echoes, streams, delays, redirects, speaks websockets, and exits.

Every answer but those of `/slow` and `/die` is made by aiohttp; `seen` has each request that reached it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from aiohttp import WSMsgType, web

CLAIM = """<!doctype html><link rel="icon" href="data:,"><script>
navigator.serviceWorker.register("worker.js", {scope: "/"}).then(
  () => fetch("told?registered"), error => fetch("told?" + error.name))
</script>"""
"""A page that wants a service worker for the whole origin, and asks for `told?` with what became of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One request as it arrived; `path` as it was on the wire, header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Backend:
    port: int = 0
    seen: list[Seen] = field(default_factory=list)
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    held: int = 0
    sockets: int = 0
    ended: list[object] = field(default_factory=list)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def paths(self) -> list[str]:
        return [one.path for one in self.seen]

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path.endswith("/early"):
            return await self._early(request)
        body = b""
        with contextlib.suppress(web.RequestPayloadError, OSError):
            body = await request.read()
        whole = request.content.at_eof() and request.content.exception() is None
        self.seen.append(
            Seen(
                method=request.method,
                path=request.raw_path,
                headers={name.lower(): value for name, value in request.headers.items()},
                body=body if whole else b"<broken>",
            )
        )
        act = {
            "/sse": self._stream,
            "/ws": self._talk,
            "/slow": self._slow,
            "/die": self._die,
            "/stall": self._stall,
            "/redirect": self._redirect,
            "/cookies": self._cookies,
            "/packed": self._packed,
            "/guarded": self._guarded,
            "/assets/claim.html": self._claim,
            "/assets/worker.js": self._worker,
        }.get(request.path, self._echo)
        return await act(request)

    async def _early(self, request: web.BaseRequest) -> web.StreamResponse:
        """Begins to answer before it has read the body, and ends with the number of bytes that it read."""
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b"begun ")
        await answer.write(str(len(await request.read())).encode())
        await answer.write_eof()
        return answer

    async def _echo(self, request: web.BaseRequest) -> web.Response:
        one = self.seen[-1]
        plain = {"method": one.method, "path": one.path, "headers": one.headers, "body": one.body.decode("latin-1")}
        headers = {"X-Service": "yes", "Keep-Alive": "timeout=5", "Connection": "X-Hop", "X-Hop": "1"}
        headers |= {"WWW-Authenticate": "Basic", "Strict-Transport-Security": "max-age=1", "X-Accel-Redirect": "/etc"}
        return web.Response(body=json.dumps(plain).encode(), content_type="application/json", headers=headers)

    async def _guarded(self, request: web.BaseRequest) -> web.Response:
        return web.Response(status=401, text="who are you?", headers={"WWW-Authenticate": 'Basic realm="here"'})

    async def _claim(self, request: web.BaseRequest) -> web.Response:
        return web.Response(text=CLAIM, content_type="text/html")

    async def _worker(self, request: web.BaseRequest) -> web.Response:
        headers = {"Service-Worker-Allowed": "/"}
        return web.Response(text="self.onfetch = () => {}", content_type="text/javascript", headers=headers)

    async def _stream(self, request: web.BaseRequest) -> web.StreamResponse:
        out = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await out.prepare(request)
        await out.write(b"data: first" + b"." * int(request.query.get("more", 0)) + b"\n\n")
        self.held += 1
        try:
            await self.hold.wait()
            await out.write(b"data: second\n\n")
        finally:
            self.held -= 1
        return out

    async def _talk(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.query.get("go") == "elsewhere":
            raise web.HTTPFound("/echo")
        out = web.WebSocketResponse(protocols=("chat",), autoping=True)
        await out.prepare(request)
        self.sockets += 1
        try:
            async for message in out:
                if message.type is WSMsgType.TEXT and message.data == "bye":
                    await out.close(code=4001)
                elif message.type is WSMsgType.TEXT and message.data == "die":
                    request.transport.abort()
                elif message.type is WSMsgType.TEXT:
                    await out.send_str(f"you said {message.data}")
                elif message.type is WSMsgType.BINARY:
                    await out.send_bytes(message.data[::-1])
        finally:
            self.sockets -= 1
            self.ended.append(out.close_code)
        return out

    async def _slow(self, request: web.BaseRequest) -> web.Response:
        self.held += 1
        try:
            await self.hold.wait()
        finally:
            self.held -= 1
        return web.Response(text="at last")

    async def _die(self, request: web.BaseRequest) -> web.StreamResponse:
        out = web.StreamResponse()
        if "length" in request.query:
            out.content_length = 1_000
        if "early" not in request.query:
            await out.prepare(request)
            await out.write(b"half an ")
            await asyncio.sleep(0)
        request.transport.abort()
        return out

    async def _stall(self, request: web.BaseRequest) -> web.StreamResponse:
        out = web.StreamResponse()
        await out.prepare(request)
        await out.write(b"half an ")
        self.held += 1
        try:
            await self.hold.wait()
        finally:
            self.held -= 1
        return out

    async def _redirect(self, request: web.BaseRequest) -> web.Response:
        return web.Response(status=302, headers={"Location": request.query["to"]})

    async def _cookies(self, request: web.BaseRequest) -> web.Response:
        answer = web.Response(text="ok")
        for cookie in (
            "app=1; Path=/; HttpOnly",
            "deep=2; Path=/api; Domain=example.org",
            "latticed-session=forged; Path=/",
            "__Host-Latticed-Session=forged; Secure; Path=/",
            "=latticed-session=nameless",
        ):
            answer.headers.add("Set-Cookie", cookie)
        answer.headers["Cache-Control"] = "public, max-age=60"
        return answer

    async def _packed(self, request: web.BaseRequest) -> web.Response:
        import gzip

        return web.Response(body=gzip.compress(b"squeezed"), headers={"Content-Encoding": "gzip"})


@contextlib.asynccontextmanager
async def running(backend: Backend | None = None, *, port: int = 0) -> AsyncIterator[Backend]:
    """A backend that listens until the end of the block; `port` to come back at the same place."""
    made = backend or Backend()
    server = web.Server(made.handle, handler_cancellation=True, max_line_size=32_768, max_field_size=32_768)
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(server, "127.0.0.1", port, reuse_address=True)
    made.port = listening.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        listening.close()
        made.hold.set()
        await server.shutdown(1.0)
        await listening.wait_closed()
