"""The controller's control socket: HTTP over a unix socket, who asks by the kernel's word, limits of connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast

from aiohttp import web

from latticed import wire
from latticed.fleet.controller import settings as settings_of
from latticed.kit import descriptors, logs, peers, trusted_files, unix_listener
from latticed.kit.clock import SystemClock
from latticed.kit.connection_limiter import ConnectionLimiter, LimitedConnection
from latticed.model.errors import Problem

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

BODY_BYTES: Final = 1 << 20
"""Largest body but a bundle's, which has a bound of its own."""
STREAMS: Final = 32
"""Streams open at once, per uid."""
_PER_UID: Final = 128
_HEADER_BYTES: Final = 8_190
_DRAIN_S: Final = 5.0
_BACKLOG: Final = 256
MODE: Final = 0o660

STATUS_OF: Final = {
    "bad_request": HTTPStatus.BAD_REQUEST,
    "document_malformed": HTTPStatus.BAD_REQUEST,
    "access_denied": HTTPStatus.FORBIDDEN,
    "operator_unknown": HTTPStatus.FORBIDDEN,
    "operator_revoked": HTTPStatus.FORBIDDEN,
    "not_found": HTTPStatus.NOT_FOUND,
    "too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    **dict.fromkeys(
        """other_fleet document_old intent_revoked intent_expired controller_revoked controller_uncertified
        controller_expired rollout_empty rollout_running exists invalid_transition no_way_back quota_exceeded other_node
        invocation_expired bundle_invalid bundle_mismatch""".split(),
        HTTPStatus.CONFLICT,
    ),
    "too_many_streams": HTTPStatus.TOO_MANY_REQUESTS,
    "answer_forged": HTTPStatus.BAD_GATEWAY,
    "engine_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "store_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "not_leader": HTTPStatus.SERVICE_UNAVAILABLE,
    "stopping": HTTPStatus.SERVICE_UNAVAILABLE,
}
"""Codes that are not here are faults of ours: 500."""

log = logs.get_logger()


class ControllerConnection(LimitedConnection):
    """One connection, with its peer; None for one that ended before the kernel could be asked."""

    request_s = 5.0
    idle_s = 15.0
    answer_s = 60.0

    def __init__(
        self, limiter: ConnectionLimiter[ControllerConnection], server: web.Server, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(
            limiter,
            server,
            loop=loop,
            lingering_time=1.0,
            max_line_size=_HEADER_BYTES,
            max_field_size=_HEADER_BYTES,
            access_log=None,
            auto_decompress=False,
        )
        self.peer: peers.Peer | None = None
        self.streaming = False
        self._answer_s = self.answer_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        try:
            self.peer = peers.of(transport.get_extra_info("socket"))
        except OSError:  # it has ended already
            transport.abort()  # type: ignore[attr-defined] # a unix socket's
            return
        self.limiter.enter(self, self.peer.uid)

    def allow(self, seconds: float) -> None:
        """Let this answer take so long."""
        self._answer_s = max(self.answer_s, seconds)

    def stream(self) -> bool:
        """Exempt the answer from its time; False if the uid has STREAMS already."""
        self.streaming = sum(one.streaming for one in self.limiter.of(self.owner)) < STREAMS
        return self.streaming

    def answered(self) -> None:
        super().answered()
        self.streaming, self._answer_s = False, self.answer_s

    def overdue(self, now_s: float) -> bool:
        if self.answering:
            return not self.streaming and now_s - self.since_s > self._answer_s
        return super().overdue(now_s)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer what does not parse as HTTP with a problem document, and close the connection."""
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return super().handle_error(request, status, exc, message)
        answer = _problem("bad_request", "expected an HTTP/1.1 request", "", status)
        answer.force_close()
        return answer


@web.middleware
async def outermost(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Around every request: keep the connection's time, make a problem document of every error."""
    connection = cast("ControllerConnection", request.protocol)  # the server makes no other
    connection.complete()
    try:
        answer = await handler(request)
    except Problem as problem:
        answer = response(problem)
    except web.HTTPException as error:
        answer = _of_http(error)
    except (ConnectionError, TimeoutError):
        raise
    except Exception as error:
        log.error("request_failed", method=request.method, path=request.path, exc_info=error)
        answer = _problem("internal", "the controller failed to answer, see its log", "", 500)
    finally:
        connection.answered()
    unread = request.body_exists and not request.content.at_eof()
    if connection.last or unread or request.method == "CONNECT" or "Upgrade" in request.headers:
        answer.force_close()
    return answer


def response(problem: Problem) -> web.Response:
    """A problem as an answer."""
    status = STATUS_OF.get(problem.code, HTTPStatus.INTERNAL_SERVER_ERROR)
    return _problem(problem.code, problem.reason, problem.hint, status)


@contextlib.asynccontextmanager
async def listening(application: web.Application, path: Path, *, group: str) -> AsyncIterator[None]:
    """Serve at the unix socket `path` until the block is left; answers under way are finished then. Problem
    settings_invalid, socket_unusable.
    """
    loop = asyncio.get_running_loop()
    limiter: ConnectionLimiter[ControllerConnection] = ConnectionLimiter(
        SystemClock(), most=descriptors.limit() // 2, per_owner=_PER_UID
    )
    runner = web.AppRunner(application, shutdown_timeout=1.0)
    await runner.setup()
    try:
        http = cast("web.Server", runner.server)
        sock = await asyncio.to_thread(_bound, path, group)
        made = await asyncio.to_thread(_identity, path)
        # asyncio calls accept() `backlog` times per wake-up; listen() sets the kernel's queue afterwards.
        server = await loop.create_unix_server(
            lambda: ControllerConnection(limiter, http, loop), sock=sock, backlog=1, **unix_listener.SERVER_OPTIONS
        )
        sock.listen(_BACKLOG)
        sweeping = asyncio.create_task(limiter.sweep(), name="controller sweeper")
        try:
            yield
        finally:
            server.close()
            await limiter.drain(_DRAIN_S)
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)
            if await asyncio.to_thread(_identity, path) == made:
                await asyncio.to_thread(path.unlink, missing_ok=True)
    finally:
        await runner.cleanup()


def _bound(path: Path, group: str) -> socket.socket:
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        trusted_files.check_directory(path.parent)
        return unix_listener.listen(path, mode=MODE, gid=settings_of.gid(group), fresh=path.with_name(".new"))
    except (OSError, trusted_files.ForeignFile) as error:
        hint = "the runtime directory must be the controller's own, and writable by nobody else"
        raise Problem("socket_unusable", f"cannot listen at {path}: {error}", hint) from error


def _identity(path: Path) -> tuple[int, int] | None:
    """(device, inode) of what is at `path`; None when there is nothing."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _problem(code: str, detail: str, hint: str, status: int) -> web.Response:
    title = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Error"
    view = wire.ProblemView(type="about:blank", title=title, status=int(status), code=code, detail=detail, hint=hint)
    body = json.dumps(wire.encode(view)).encode("ascii")
    return web.Response(status=status, body=body, content_type=wire.PROBLEM_TYPE)


def _of_http(error: web.HTTPException) -> web.Response:
    """An error of aiohttp's own; of its headers Allow is kept (RFC 9110, section 15.5.6)."""
    codes = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
    details = {
        404: "there is no such resource",
        405: "this method is not allowed here",
        413: f"expected a body of at most {BODY_BYTES} bytes",
    }
    answer = _problem(codes.get(error.status, "bad_request"), details.get(error.status, error.reason), "", error.status)
    if allow := error.headers.get("Allow"):
        answer.headers["Allow"] = allow
    return answer
