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
from latticed.kit import descriptors, logs, trusted_files, unix_listener
from latticed.kit.clock import SystemClock
from latticed.kit.connection_limiter import ConnectionLimiter
from latticed.kit.peer_connection import PER_UID, PeerConnection
from latticed.model.errors import Problem

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

BODY_BYTES: Final = 1 << 20
"""Largest body but a bundle's, which has a bound of its own."""
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


class ControllerConnection(PeerConnection):
    """One connection of the controller's socket."""

    def of_http_error(self, error: web.HTTPException) -> web.Response:
        """A problem document; of the error's headers Allow is kept (RFC 9110, section 15.5.6)."""
        codes = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
        details = {
            404: "there is no such resource",
            405: "this method is not allowed here",
            413: f"expected a body of at most {BODY_BYTES} bytes",
        }
        code, detail = codes.get(error.status, "bad_request"), details.get(error.status, error.reason)
        answer = _problem(code, detail, "", error.status)
        if allow := error.headers.get("Allow"):
            answer.headers["Allow"] = allow
        return answer

    def no_request(self, status: int) -> web.Response:
        """A problem document."""
        return _problem("bad_request", "expected an HTTP/1.1 request", "", status)


@web.middleware
async def outermost(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Around every request: keep the connection's time, make an answer of every error but those of HTTP itself."""
    connection = cast("ControllerConnection", request.protocol)  # the server makes no other
    connection.complete()
    try:
        return await handler(request)
    except Problem as problem:
        return response(problem)
    except (web.HTTPException, ConnectionError, TimeoutError):
        raise
    except Exception as error:
        log.error("request_failed", method=request.method, path=request.path, exc_info=error)
        return _problem("internal", "the controller failed to answer, see its log", "", 500)
    finally:
        connection.answered()


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
        SystemClock(), most=descriptors.limit() // 2, per_owner=PER_UID
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
