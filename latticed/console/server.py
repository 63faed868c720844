"""The console's HTTP server: what `guard`, `sessions`, `addresses` and `forwarded` decide, done with aiohttp.

It listens on a loopback address or a unix socket, and for links on another socket, until it is interrupted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import signal
import time
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import parse_qs, parse_qsl

from aiohttp import web

from latticed.console import acts, addresses, connection, forwarded, guard, templates
from latticed.console.live import LiveHub
from latticed.console.operator import Reader
from latticed.console.pages import HtmlPage, Pages
from latticed.console.sessions import SessionKeys, UiSession
from latticed.console.threads import WaitingThreads
from latticed.kit import os_signals, unix_listener
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from latticed.console.acts import ActRequest
    from latticed.console.addresses import FoundPage
    from latticed.console.guard import ListenAt, PageOrigin
    from latticed.console.operator import Operator

COOKIE: Final = "latticed_ui"
MOST_COOKIES: Final = 8
THREADS: Final = 12
"""Requests to the daemon under way at a time for pages, where logs that follow wait in one each; as many more for acts,
which may take minutes.
"""
_MOST_FIELDS: Final = 200
_LIVE_PAUSE_S: Final = 0.5
"""A page hears of changes at most twice a second."""
_HEARTBEAT_S: Final = 15.0
_WRITE_S: Final = 20.0
"""A page that reads nothing for that long is not told any more; it comes back by itself."""
_STATUS: Final = {
    "foreign_host": 403,
    "foreign_origin": 403,
    "console_reads": 403,
    "needs_command": 403,
    "no_session": 401,
    "not_forwarded": 404,
    "not_found": 404,
    "bad_form": 400,
}
_OF_FLEET: Final = frozenset({"fleet", "fleet_node"})
_FORM: Final = "application/x-www-form-urlencoded"
_READ_HEADER: Final = "Latticed-Live"
"""Sent by a page that asks for itself again: what acts came to stays for the next page that somebody opens."""


class ConsoleOptions(NamedTuple):
    """`act`: acts too; `link_socket`: where `latticectl ui link` asks, or empty; `with_fleet`: asks a controller."""

    at: ListenAt
    origins: tuple[PageOrigin, ...]
    act: bool
    link_socket: str
    with_fleet: bool = False


class Console:
    """One start: its path, its keys, its pages."""

    def __init__(self, operator: Operator, *, act: bool, with_fleet: bool = False) -> None:
        self.base = secrets.token_urlsafe(16)
        self.origins: frozenset[PageOrigin] = frozenset()
        self._act = act
        self._with_fleet = with_fleet
        self._operator = operator
        self._keys = SessionKeys()
        self._threads = WaitingThreads(THREADS)
        self._acting = WaitingThreads(THREADS)
        self._reader = Reader(operator, act=act)
        self._pages = Pages(operator, self._reader, self._threads, act=act)
        self._hub = LiveHub(operator.changes, self._pages.forget)
        self._html = templates.environment()
        self._html.globals.update(
            base=f"/{self.base}",
            act=act,
            with_fleet=with_fleet,
            when=operator.when,
            may_consent=forwarded.may_consent,
        )

    def link(self) -> str:
        """A new one-time link, by the first of the names of this console: that of --origin, if there is one."""
        called = max(self.origins, key=lambda one: (one.scheme == "https", not one.authority.startswith("localhost")))
        return f"{called.text}/{self.base}/open/{self._keys.link(time.monotonic())}"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Any request there is."""
        try:
            called = guard.called_by(request.headers.get("Host", ""), self.origins)
            site = request.headers.get("Sec-Fetch-Site", "")
            guard.check_site(request.method, called, request.headers.get("Origin"), site)
            raw_path, _, query = request.raw_path.partition("?")
            found = addresses.found(request.method, raw_path, self.base)
            if found is not None and found.page == "open":
                return self._opened(found.arguments[0], called)
            session = self._session(request)
            # Before it is told whether there is such a page: without a session there is nothing to find out.
            if session is None:
                raise Problem(
                    "no_session", "this is not a session of this console", "latticectl ui prints a link to open"
                )
            if found is None or (found.page in _OF_FLEET and not self._with_fleet):
                raise Problem("not_found", "there is no such page", "")
            asked = dict(parse_qsl(query, max_num_fields=_MOST_FIELDS)) if query else {}
            return await self._page(request, found, session, asked)
        except ValueError:
            return self._failed(Problem("bad_form", "the address or the form is not well-formed", ""))
        except Problem as problem:
            return self._failed(problem)

    def _session(self, request: web.Request) -> UiSession | None:
        """The session of any cookie of that name: another page of this address may have planted one beside ours."""
        now_s = time.monotonic()
        return next((found for one in _cookies(request) if (found := self._keys.session(one, now_s))), None)

    def _opened(self, link: str, called: PageOrigin) -> web.Response:
        """A session for a link that was not used yet."""
        secret = self._keys.opened(link, time.monotonic())
        if secret is None:
            hint = "each opens once, and within ten minutes; a new one: latticectl ui, or of a unit latticectl ui link"
            raise Problem("no_session", "this link was used, or is too old", hint)
        answer = self._to("/")
        answer.headers["Set-Cookie"] = guard.cookie(COOKIE, secret, f"/{self.base}/", called)
        return answer

    async def _page(
        self, request: web.Request, found: FoundPage, session: UiSession, query: Mapping[str, str]
    ) -> web.StreamResponse:
        asked_again = _READ_HEADER in request.headers or found.page == "log_lines"
        if not asked_again and found.page not in {"live", "static"}:
            self._reader.ask_anew()
        page: HtmlPage
        match found.page:
            case "live":
                return await self._live(request, session)
            case "static":
                return _static(found.arguments[0])
            case "leave":
                for one in _cookies(request):
                    self._keys.close(one)
                self._hub.wake()
                return web.Response(text="The session is over.\n", headers=guard.HEADERS)
            case "act" | "on_offer" | "refresh" | "cancel" | "retry":
                return await self._acted(request, found, session)
            case "plan":
                page = await self._pages.plan(query, *found.arguments, again=asked_again)
            case name:
                page = await getattr(self._pages, name)(query, *found.arguments)
        return self._shown(page, [] if asked_again else session.take_notes())

    async def _acted(self, request: web.Request, found: FoundPage, session: UiSession) -> web.Response:
        """Carry out what a form asks for, and lead back to its page."""
        form = await _form(request)
        back = {"refresh": "/market", "on_offer": "/market/{}", "cancel": "/tasks/{}", "retry": "/notifications"}
        argument = found.arguments[0] if found.arguments else ""
        path = back.get(found.page, "/plugins/{}").format(templates.part(argument))
        try:
            wanted = _wanted(found.page, argument, form)
            came_to = await asyncio.get_running_loop().run_in_executor(self._acting, lambda: self._done(wanted))
            session.notes.append(came_to)
        except Problem as problem:
            # On the page that it was asked on: the daemon's refusal says what to type instead.
            session.notes.append(
                ("bad", f"{problem.code}: {problem.reason}" + (f" ({problem.hint})" if problem.hint else ""))
            )
        return self._to("/" if form.get("act") == ["forget"] else path)

    def _done(self, wanted: ActRequest) -> tuple[str, str]:
        """Send one request of the table; the tone and the words of what it came to."""
        answer = self._reader.send(wanted.method, wanted.parts, wanted.body)
        if wanted.answer == "reply":
            failed = isinstance(answer, dict) and answer.get("ok") is False
            return "bad" if failed else "good", f"{wanted.said}: {json.dumps(answer, ensure_ascii=False)}"
        if wanted.answer:
            tone, why = self._operator.became(answer, upgraded=wanted.answer == "upgrade")
            return tone, why or wanted.said
        return "good", wanted.said

    async def _live(self, request: web.Request, session: UiSession) -> web.StreamResponse:
        """Tell a page that something changed, until it is closed or its session is over."""
        listener = self._hub.listen(lambda: request.transport is None or request.transport.is_closing())
        if listener is None:
            raise Problem("busy", "too many pages are open", "close some")
        answer = web.StreamResponse(headers={**guard.HEADERS, "Content-Type": "text/event-stream"})
        try:
            await answer.prepare(request)
            # The first line at once: then the browser knows that it is connected.
            await answer.write(b"retry: 2000\n\n")
            while True:
                try:
                    await asyncio.wait_for(listener.ready.wait(), _HEARTBEAT_S)
                    line = f"data: {json.dumps(listener.take())}\n\n"
                except TimeoutError:
                    line = ": still here\n\n"
                if not self._keys.holds(session):
                    return answer
                await asyncio.wait_for(answer.write(line.encode()), _WRITE_S)
                await asyncio.sleep(_LIVE_PAUSE_S)
        except (ConnectionError, TimeoutError):
            return answer
        finally:
            self._hub.leave(listener)

    def _shown(self, page: HtmlPage, notes: list[tuple[str, str]], status: int = 200) -> web.Response:
        """A page; Problem bad_reply where the daemon's answers are not of this version."""
        try:
            html = self._rendered(page, notes)
        except (templates.TemplateError, TypeError, AttributeError) as error:
            raise Problem(
                "bad_reply", "the daemon's answer is not as this version has it", "latticectl version"
            ) from error
        return web.Response(text=html, content_type="text/html", headers=guard.HEADERS, status=status)

    def _rendered(self, page: HtmlPage, notes: list[tuple[str, str]]) -> str:
        return self._html.get_template(f"{page.template}.html").render(notes=notes, live=page.live, **page.context)

    def _failed(self, problem: Problem) -> web.Response:
        """A page that says what is wrong; without the names of other pages for somebody without a session."""
        status = getattr(problem, "status", 0) or _STATUS.get(problem.code, 503)
        outside = problem.code in {"foreign_host", "foreign_origin", "no_session"}
        return self._shown(HtmlPage("failed", {"problem": problem, "outside": outside}), [], status)

    def _to(self, path: str) -> web.Response:
        return web.Response(status=303, headers={**guard.HEADERS, "Location": f"/{self.base}{path}"})


def _cookies(request: web.Request) -> list[str]:
    """All values of our cookie, as they were sent; a parser of cookies keeps one."""
    sent = "; ".join(request.headers.getall("Cookie", ()))
    pairs = (one.strip().partition("=") for one in sent.split(";"))
    return [value for name, _, value in pairs if name == COOKIE][:MOST_COOKIES]


def _wanted(page: str, argument: str, form: Mapping[str, list[str]]) -> ActRequest:
    """The request that a form of this page comes to."""
    match page:
        case "act":
            return acts.on_plugin(argument, form)
        case "on_offer":
            return acts.on_offer(argument, form)
        case "refresh":
            return acts.refresh(form)
        case "cancel":
            return acts.ActRequest("POST", ("tasks", argument, "cancel"), {}, "the task is cancelled")
        case _:
            return acts.ActRequest("POST", ("notifications", argument, "retry"), {}, "the notification is queued again")


def _static(name: str) -> web.Response:
    body = templates.static(name)
    if body is None:
        raise Problem("not_found", "there is no such file", "")
    return web.Response(body=body, content_type=templates.STATIC[name], charset="utf-8", headers=guard.HEADERS)


async def _form(request: web.Request) -> dict[str, list[str]]:
    """The fields of a form; Problem bad_form for what is none, or does not come in time."""
    if request.content_type != _FORM:
        raise Problem("bad_form", f"expected {_FORM}, found {request.content_type[:80]!r}", "")
    try:
        async with asyncio.timeout(connection.REQUEST_S):
            body = await request.read()
        return parse_qs(body.decode("ascii"), max_num_fields=_MOST_FIELDS, errors="strict")
    except (TimeoutError, ConnectionError, web.RequestPayloadError, web.HTTPRequestEntityTooLarge) as error:
        raise Problem("bad_form", "the form is too long, broken off, or did not come in time", "") from error


async def serve(operator: Operator, options: ConsoleOptions, *, started: Callable[[Console], None]) -> None:
    """Serve until SIGINT or SIGTERM; `started` is called once it listens. Problem listen_failed."""
    console = Console(operator, act=options.act, with_fleet=options.with_fleet)
    ended = asyncio.Event()
    os_signals.act_on({signal.SIGINT: ended.set, signal.SIGTERM: ended.set})
    app = web.Application(client_max_size=acts.MOST_FORM_BYTES, middlewares=[connection.timed])
    app.router.add_route("*", "/{any:.*}", console.handle)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    async with contextlib.AsyncExitStack() as stack:
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        try:
            at = await stack.enter_async_context(connection.listening(runner, options.at))
            console.origins = guard.origins(at, options.origins)
            if options.link_socket:
                await _offer_links(console, options.link_socket, stack)
        except OSError as error:
            raise Problem(
                "listen_failed", f"cannot listen: {error.strerror or error}", "choose another --listen"
            ) from error
        started(console)
        await ended.wait()


async def _offer_links(console: Console, path: str, stack: contextlib.AsyncExitStack) -> None:
    """Hand a link to whoever can connect to the socket at `path`: its mode and its directory say who that is."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json.dumps({"link": console.link()}).encode() + b"\n")
        writer.close()

    sock = stack.enter_context(connection.unix_socket(path))
    server = await asyncio.start_unix_server(
        answer, sock=sock, backlog=connection.BACKLOG, **unix_listener.SERVER_OPTIONS
    )
    stack.callback(server.close)
