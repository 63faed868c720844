"""The routes as an aiohttp application: checks scopes, encodes answers, turns errors into problem documents."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import web

from latticed import wire
from latticed.kit import logs
from latticed.kit.log_limit import LogLimiter
from latticed.model.audit import Event
from latticed.model.errors import Problem
from latticed.rpc import problems
from latticed.rpc.api import Ask
from latticed.rpc.routes import ROUTES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from latticed.rpc.api import Api
    from latticed.rpc.connection import ControlConnection
    from latticed.rpc.schemas import ApiRoute

    _Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logs.get_logger()
_failures: Final = LogLimiter()
"""Unexpected exceptions by method, type and beginning of their text."""


def application(api: Api) -> web.Application:
    """The control API over `api`."""
    # client_max_size bounds chunked bodies, too, whose length `Ask.raw` cannot know beforehand.
    # No middleware, which takes a thirtieth of a request: what no route takes is answered by the connection
    # (`ControlConnection.finish_response`).
    app = web.Application(client_max_size=wire.MAX_BODY_BYTES)
    for route in ROUTES:
        handle = _guarded(_handler(api, route))
        app.router.add_route(route.method, _pattern(route.path), handle)
        if route.method == "GET":  # RFC 9110, section 9.3.2: the same answer without its body
            app.router.add_route("HEAD", _pattern(route.path), handle)
    return app


def _pattern(path: str) -> str:
    """`path` as an aiohttp pattern. Its default for `{name}` excludes braces; ours excludes only slashes."""
    return path.replace("}", ":[^/]+}")


def _handler(api: Api, route: ApiRoute) -> _Handler:
    """The aiohttp handler of one route: scope, query, the route's own handler, its answer as JSON."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if api.closing.is_set():
            raise problems.Stopping(begun=False)
        ask = Ask(api, request)
        try:
            # The scope first: without it the query is not even looked at.
            ask.need(route.scope)
            ask.take_query(route.form.query)
            answer = await route.handle(ask)
        except Problem as problem:
            if problem.code == "access_denied":
                # If the refusal cannot be recorded, audit_unavailable is raised and answered in its place.
                await _record_refusal(ask, problem)
            raise
        # By its type first: asking a class of aiohttp for its instances is slow, where it is not the very one.
        return answer if type(answer) is web.Response or isinstance(answer, web.StreamResponse) else _json(answer)

    return handle


async def _record_refusal(ask: Ask, problem: Problem) -> None:
    """Put a refusal for lack of a scope on record; Problem audit_unavailable."""
    target = f"{ask.request.method} {ask.request.path}"
    event = Event(
        actor=str(ask.actor),
        action="api.refused",
        target=target,
        decision="deny",
        code=problem.code,
        reason=problem.reason,
    )
    await ask.api.ledger.record(event)


def _guarded(handler: _Handler) -> _Handler:
    """`handler` with what goes around each: the connection's deadlines are kept, and an error becomes an answer."""

    async def guarded(request: web.Request) -> web.StreamResponse:
        connection = cast("ControlConnection", request.protocol)  # the server makes no other
        # From here on it is not among the connections that are cut when there are too many.
        connection.complete()
        try:
            return await handler(request)
        except Problem as problem:
            return _broken_off(connection, request, problem) or problems.response(problem)
        except asyncio.CancelledError:
            if not connection.interrupted:
                raise
            # Ours alone (`ControlConnection.interrupt`): the task goes on, to send the answer.
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
            return connection.cut_short() or problems.response(problems.Stopping(begun=True))
        except web.HTTPException:  # aiohttp's own, of a body that is too large
            raise
        except Exception as error:
            if broken_off := _broken_off(connection, request, error):
                return broken_off
            if count := _worth_telling(request, error):
                log.error("request_failed", method=request.method, path=request.path, count=count, exc_info=error)
            return problems.response(Problem("internal", "the daemon failed to answer, see its log"))
        finally:
            connection.answered()

    return guarded


def _broken_off(connection: ControlConnection, request: web.Request, error: Exception) -> web.StreamResponse | None:
    """The answer that had begun when `error` came, and is cut now; None where none had, so that one can tell of it."""
    answer = connection.cut_short()
    # A client that leaves is not worth a log line.
    if answer is not None and not isinstance(error, ConnectionError) and (count := _worth_telling(request, error)):
        log.error("answer_broken_off", path=request.path, error=repr(error), count=count, exc_info=error)
    return answer


def _worth_telling(request: web.Request, error: Exception) -> int | None:
    """How many times such an error came, where that is to be logged; repeats are counted, and few of them logged: a
    client that can cause one could fill the disk.
    """
    return _failures.take((request.method, type(error).__name__, str(error)[:80]), time.monotonic())


def _json(answer: Any) -> web.Response:
    """Plain values as a JSON answer."""
    return web.Response(body=json.dumps(answer, separators=(",", ":")).encode("ascii"), content_type="application/json")
