"""The controller's API: each route with what it takes to ask it, and its handler. Shapes are in `controller_view`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar, cast

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from latticed.fleet import controller_view as view
from latticed.fleet.controller import dry_run, measures, serving, store, views
from latticed.fleet.controller.operations import FleetOperations, sources
from latticed.fleet.documents import MAX_BYTES
from latticed.fleet.rollout import RolloutState
from latticed.kit import strict_json
from latticed.kit.peer_connection import STREAMS
from latticed.kit.value import Value
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from latticed.fleet.controller.running import RunningController
    from latticed.fleet.controller.serving import ControllerConnection
    from latticed.fleet.controller.settings import Peers

_BODY_S: Final = 5.0
_BUNDLE_S: Final = 600.0
_HEARTBEAT_S: Final = 15.0
_WRITE_S: Final = 20.0
"""A reader that takes nothing for that long is not told any more."""
_PAGE: Final = 200
_HELP: Final = "latticectl fleet --help; a latticectl of another version may ask for what is not known here"

T = TypeVar("T")
_Limit = Annotated[int, Meta(ge=1, le=view.MOST_LISTED)]


class NoQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing may be asked."""


class NodesQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    after: Annotated[str, Meta(max_length=63)] = ""
    limit: _Limit = _PAGE


class EventsQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    node: Annotated[str, Meta(max_length=63)] = ""
    after: Annotated[int, Meta(ge=0, le=2**53 - 1)] | None = None
    limit: _Limit = _PAGE
    follow: Annotated[int, Meta(ge=0, le=1)] = 0


class FleetRoute(Value, frozen=True, kw_only=True):
    """One route. `word`: read, operate, or empty for everybody who can connect."""

    method: str
    path: str
    word: str
    handle: Callable[[FleetApi, web.Request], Awaitable[Any]]


class FleetApi:
    """The handlers, over one running controller."""

    def __init__(self, running: RunningController, allowed: Peers, *, version: str) -> None:
        self.running, self.core, self.version = running, running.core, version
        self.operations = FleetOperations(running)
        self.closing = asyncio.Event()
        self._allowed = allowed

    def application(self) -> web.Application:
        """All routes."""
        app = web.Application(client_max_size=serving.BODY_BYTES, middlewares=[serving.outermost])
        for route in ROUTES:
            app.router.add_route(route.method, route.path.replace("}", ":[^/]+}"), self._handler(route))
        return app

    def _handler(self, route: FleetRoute) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            if self.closing.is_set():
                raise Problem("stopping", "the controller is stopping; nothing was done", "ask again")
            peer = cast("ControllerConnection", request.protocol).peer
            if route.word and (peer is None or route.word not in self._allowed.words(peer)):
                hint = f'[access] users = {{ NAME = ["{route.word}"] }} in /etc/latticed/controller.toml'
                uid = peer.uid if peer is not None else -1
                raise Problem("access_denied", f"expected a peer that may {route.word}, found uid {uid}", hint)
            answer = await route.handle(self, request)
            if isinstance(answer, web.StreamResponse):
                return answer
            return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

        return handle

    async def health(self, request: web.Request) -> view.HealthView:
        _query(request, NoQuery)
        return view.HealthView(status="degraded" if self.alarms() else "ok")

    async def fleet(self, request: web.Request) -> view.FleetView:
        _query(request, NoQuery)
        core, lease = self.core, self.running.lease
        seen = lease.seen
        return view.FleetView(
            fleet=core.fleet,
            controller=core.controller,
            version=self.version,
            leader=self.running.leader.acts,
            lease=view.LeaseView(holder=seen.holder, until=seen.until) if seen is not None else view.LeaseView(),
            engine=view.EngineView(
                connected=self.running.connection.up,
                reason=self.running.connection.reason,
                cuts_off=self.running.cutting_off.able,
            ),
            certificate=views.certificate(core),
            nodes=views.counts(core),
            rollouts=tuple(self.operations.rollout_view(one) for one in core.rollouts.values() if not one.over),
            alarms=self.alarms(),
            operators=core.shelf.operators,
            at=core.now_s(),
        )

    def alarms(self) -> tuple[view.AlarmView, ...]:
        """What somebody has to look at now."""
        return views.alarms(self.core, self.running.facts())

    async def nodes(self, request: web.Request) -> view.NodesPage:
        asked = _query(request, NodesQuery)
        names = sorted(name for name in self.core.nodes if name > asked.after)
        shown = names[: asked.limit]
        rows = tuple(views.node_row(self.core, name) for name in shown)
        return view.NodesPage(nodes=rows, next=shown[-1] if len(names) > len(shown) else "")

    async def node(self, request: web.Request) -> view.NodeView:
        _query(request, NoQuery)
        name = request.match_info["name"]
        if name not in self.core.nodes:
            reason = f"expected a node of this fleet, found none that is {name[:80]}"
            raise Problem("not_found", reason, "latticectl fleet nodes lists them")
        return views.node_view(self.core, name)

    async def events(self, request: web.Request) -> view.EventsPage | web.StreamResponse:
        asked = _query(request, EventsQuery)
        if asked.follow:
            return await self._follow(request, asked)
        found = await self._events(asked.node, asked.after, asked.limit)
        return view.EventsPage(events=found, next=found[-1].id if found else asked.after or 0)

    async def _events(self, node: str, after: int | None, limit: int) -> tuple[view.EventView, ...]:
        rows = await self.core.database.read(
            lambda connection: store.events(connection, node=node, after=after, limit=limit)
        )
        return tuple(views.event(row) for row in rows)

    async def _follow(self, request: web.Request, asked: EventsQuery) -> web.StreamResponse:
        """Events as lines of JSON, those that there are and those that come."""
        if not cast("ControllerConnection", request.protocol).stream():
            reason = f"expected at most {STREAMS} streams of a user, found more"
            raise Problem("too_many_streams", reason, "end another latticectl fleet events -f of this user")
        answer = web.StreamResponse(headers={"Content-Type": view.LINES_TYPE})
        await answer.prepare(request)
        after, came = asked.after, self.core.events_came
        with contextlib.suppress(ConnectionError, TimeoutError):
            while not self.closing.is_set():
                # Taken first: what comes while these are written is looked for once more.
                came = self.core.events_came
                found = await self._events(asked.node, after, asked.limit)
                if found:
                    after = found[-1].id
                    lines = b"".join(msgspec.json.encode(one) + b"\n" for one in found)
                    await asyncio.wait_for(answer.write(lines), _WRITE_S)
                    continue
                after = after or 0
                await asyncio.wait_for(answer.write(b"\n"), _WRITE_S)
                await self._woken(came)
        return answer

    async def _woken(self, came: asyncio.Event) -> None:
        waiting = {asyncio.ensure_future(came.wait()), asyncio.ensure_future(self.closing.wait())}
        try:
            await asyncio.wait(waiting, timeout=_HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()

    async def take_document(self, request: web.Request) -> view.DocumentTaken:
        _query(request, NoQuery)
        return await self.operations.take_document(await _raw(request, MAX_BYTES))

    async def intents(self, request: web.Request) -> view.IntentsPage:
        _query(request, NoQuery)
        return views.intents(self.core)

    async def bundles(self, request: web.Request) -> view.BundlesPage:
        _query(request, NoQuery)
        return await self.operations.bundles()

    async def take_bundle(self, request: web.Request) -> view.BundleView:
        _query(request, NoQuery)
        sha256 = request.match_info["sha256"]
        with _bad_request():
            msgspec.convert(sha256, view.Sha256)
        cast("ControllerConnection", request.protocol).allow(_BUNDLE_S)
        return await self.operations.take_bundle(sha256, _pieces(request))

    async def plan(self, request: web.Request) -> view.PlanView:
        wanted = await _body(request, view.PlanWanted)
        core, operations = self.core, self.operations
        operations.check_counts(wanted.intent, core.now_s())
        targets = operations.targets(wanted.intent, wanted.nodes)
        named = sources(wanted.sources)
        kept = core.sources_for(wanted.intent) if not named else operations.sources_with(wanted.intent, named)
        return dry_run.plan(
            core,
            wanted.intent,
            name=operations.name_for(wanted.intent),
            targets=targets,
            asked=wanted.nodes,
            ways_back=operations.ways_back(wanted.intent, targets, core.now_s()),
            sizes=self.running.settings.rollout.sizes,
            sources=kept,
        )

    async def begin(self, request: web.Request) -> view.RolloutView:
        return await self.operations.begin(await _body(request, view.RolloutWanted))

    async def rollouts(self, request: web.Request) -> view.RolloutsPage:
        _query(request, NoQuery)
        kept = sorted(self.core.rollouts.values(), key=lambda one: (-one.began, one.name))
        return view.RolloutsPage(rollouts=tuple(self.operations.rollout_view(one) for one in kept[:_PAGE]))

    async def rollout(self, request: web.Request) -> view.RolloutView:
        _query(request, NoQuery)
        name = request.match_info["name"]
        if (record := self.core.rollouts.get(name)) is None:
            reason = f"expected a rollout, found none of the name {name[:80]}"
            raise Problem("not_found", reason, "latticectl fleet status shows rollouts")
        return self.operations.rollout_view(record)

    async def act(self, request: web.Request) -> view.RolloutView:
        wanted = await _body(request, view.WithReason)
        return await self.operations.act(request.match_info["name"], request.path.rpartition("/")[2], wanted.reason)

    async def invoke(self, request: web.Request) -> view.InvocationAnswer:
        _query(request, NoQuery)
        return await self.operations.invoke(await _raw(request, MAX_BYTES))

    async def backup(self, request: web.Request) -> view.BackupDone:
        wanted = await _body(request, view.BackupWanted)
        cast("ControllerConnection", request.protocol).allow(_BUNDLE_S)
        return await self.operations.backup(wanted)

    async def metrics(self, request: web.Request) -> web.Response:
        _query(request, NoQuery)
        running = [one for one in self.core.rollouts.values() if not one.over]
        body = measures.text(
            self.core,
            self.running.facts(),
            alarms=self.alarms(),
            rollouts={state: sum(one.state is state for one in running) for state in RolloutState},
            heard=self.running.readers.heard,
            now_s=time.time(),
        )
        return web.Response(body=body, headers={"Content-Type": measures.CONTENT_TYPE})


ROUTES: Final = tuple(
    FleetRoute(method=method, path=path, word=word, handle=handle)
    for method, path, word, handle in (
        ("GET", "/api/health", "", FleetApi.health),
        ("GET", "/api/fleet", "read", FleetApi.fleet),
        ("GET", "/api/fleet/nodes", "read", FleetApi.nodes),
        ("GET", "/api/fleet/nodes/{name}", "read", FleetApi.node),
        ("GET", "/api/fleet/events", "read", FleetApi.events),
        ("POST", "/api/fleet/documents", "operate", FleetApi.take_document),
        ("GET", "/api/fleet/intents", "read", FleetApi.intents),
        ("GET", "/api/fleet/bundles", "read", FleetApi.bundles),
        ("PUT", "/api/fleet/bundles/{sha256}", "operate", FleetApi.take_bundle),
        ("POST", "/api/fleet/plan", "read", FleetApi.plan),
        ("POST", "/api/fleet/rollouts", "operate", FleetApi.begin),
        ("GET", "/api/fleet/rollouts", "read", FleetApi.rollouts),
        ("GET", "/api/fleet/rollouts/{name}", "read", FleetApi.rollout),
        ("POST", "/api/fleet/rollouts/{name}/halt", "operate", FleetApi.act),
        ("POST", "/api/fleet/rollouts/{name}/resume", "operate", FleetApi.act),
        ("POST", "/api/fleet/rollouts/{name}/back", "operate", FleetApi.act),
        ("POST", "/api/fleet/invoke", "operate", FleetApi.invoke),
        ("POST", "/api/fleet/backup", "operate", FleetApi.backup),
        ("GET", "/metrics", "read", FleetApi.metrics),
    )
)


@contextlib.contextmanager
def _bad_request() -> Any:
    try:
        yield
    except (msgspec.ValidationError, strict_json.InvalidJson) as error:
        raise Problem("bad_request", str(error)[:300], _HELP) from error


def _query(request: web.Request, shape: type[T]) -> T:
    """The parameters of a request; Problem bad_request."""
    given = dict(request.query)
    if len(given) != len(request.query):
        raise Problem("bad_request", "expected each parameter once, found one twice", _HELP)
    with _bad_request():
        return msgspec.convert(given, shape, strict=False)


async def _raw(request: web.Request, most: int) -> bytes:
    """The body, of at most `most` bytes; Problem too_large, bad_request."""
    try:
        async with asyncio.timeout(_BODY_S):
            data = await request.read()
    except (web.RequestPayloadError, TimeoutError) as error:
        raise Problem("bad_request", "expected a body that is whole and comes in time", "ask again") from error
    if len(data) > most:
        raise Problem("too_large", f"expected a body of at most {most} bytes, found {len(data)}", _HELP)
    return data


async def _body(request: web.Request, shape: type[T]) -> T:
    """A JSON body; Problem as `_raw`. An empty one is an object without members."""
    _query(request, NoQuery)
    data = await _raw(request, serving.BODY_BYTES)
    with _bad_request():
        return msgspec.convert(strict_json.loads(data or b"{}"), shape)


async def _pieces(request: web.Request) -> AsyncIterator[bytes]:
    try:
        async for data in request.content.iter_chunked(1 << 18):
            yield data
    except web.RequestPayloadError as error:
        raise Problem(
            "bad_request", "expected a body that is whole", "send it again: latticectl fleet roll --bundle"
        ) from error
