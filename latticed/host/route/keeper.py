"""Keeps the routes that plugins put: stored in the ledger, claimed in a route table while they may be served.

A route is served while its plugin may have it and, unless it is proxied, is armed; after a restart too. `recheck`
applies a change at once; all routes are also rechecked every second, in case a change was missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeVar, cast

from latticed.host.call import HostError
from latticed.host.route import public_token
from latticed.host.route import spec as route_spec
from latticed.host.route import table as prefixes
from latticed.host.route.targets import FilesServed, Invoked, Proxied, Templated, compiled
from latticed.kit import logs, passwords
from latticed.kit.tasks import BackgroundTasks
from latticed.kit.value import Value
from latticed.ledger import routes as rows
from latticed.model import egress
from latticed.model.errors import Problem
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping

    from latticed.host.permissions import Permissions
    from latticed.host.route.spec import RouteSpec
    from latticed.host.route.table import RouteClaim, RouteListener, RouteTable, RouteTarget
    from latticed.host.route.upstreams import UpstreamTable
    from latticed.host.static.calls import StaticCalls
    from latticed.kit.clock import Clock
    from latticed.kit.wheel import Wheel
    from latticed.ledger import Ledger
    from latticed.model.addresses import Address

ROUTE: Final = "worker:route"
"""The capability that every route needs."""
RECHECK_S: Final = 1.0
"""Seconds between rechecks of all routes; a path that another plugin released is claimed after at most so long."""
LISTEN_S: Final = 1.0
"""How long `put` waits for the listener to start."""

T = TypeVar("T")
log = logs.get_logger()


class PluginHandle(Protocol):
    """A plugin that an operator has active, as routes see it: the supervisor's handle."""

    @property
    def armed(self) -> bool:
        """Whether an instance of it is running."""

    async def call(self, method: str, params: dict[str, Any]) -> Any:
        """A host call of the plugin through its Gate, as `broker.gate.Gate.call`; Problem, or HostError."""

    async def invoke(self, action: str, payload: Any, *, by_outsider: bool) -> dict[str, Any]:
        """Have one of its actions carried out; Problem when it is not armed.

        `by_outsider`: for a visitor's request: failures of this instance then leave the breaker alone (docs/adr/0015).
        """


class RouteDeps(Value, frozen=True, kw_only=True):
    """What routes need besides tables and a clock.

    `handles` are the running plugins by id; `secret(plugin_id, name)` is the value of a secret that is bound to a
    plugin (HostError otherwise); `visited(plugin_id)` is called for each visitor's connection to a proxied origin;
    `inside(plugin_id, service, address)` is a socket in the own network of a service, or Problem;
    `has_network(plugin_id, service)`: whether the plugin keeps such a service and may have it run. `files` are those
    that plugins publish.
    """

    permissions: Permissions
    handles: Mapping[str, PluginHandle]
    secret: Callable[[str, str], str]
    visited: Callable[[str], None]
    inside: Callable[[str, str, Address], Awaitable[socket.socket]]
    has_network: Callable[[str, str], bool]
    files: StaticCalls


@dataclass(slots=True, kw_only=True, eq=False)
class StoredRoute:
    """A route that a plugin has put: `claim` while it is served; `fault` why the last claim was refused, or empty."""

    plugin_id: str
    spec: RouteSpec
    target: RouteTarget
    claim: RouteClaim | None = None
    fault: str = ""


class ListedRoute(Value, frozen=True, kw_only=True):
    """One route for a list. `stored` is None when no plugin put it: a running worker's manifest declares it."""

    plugin_id: str
    path: str
    stored: StoredRoute | None


class RouteKeeper:
    """An async context manager: on entry it claims the routes that are stored, on exit it releases all.

    `pages` is the route table of the HTTP listener, `upstreams` that of the service listener. A route is in memory as
    long as its row is in the ledger. Used on the event loop only.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        pages: RouteTable,
        upstreams: UpstreamTable,
        deps: RouteDeps,
        clock: Clock,
        wheel: Wheel,
        quota: rows.RouteQuota | None = None,
    ) -> None:
        self._ledger = ledger
        self._pages = pages
        self._upstreams = upstreams
        self._deps = deps
        self._clock = clock
        self._wheel = wheel
        self._quota = quota or rows.RouteQuota()
        self._routes: dict[tuple[str, str], StoredRoute] = {}  # by plugin and path, in the order they were put
        # Put, delete and forget wait for the ledger between table and dict: one at a time, so that both agree.
        self._changing = asyncio.Lock()
        self._background = BackgroundTasks()
        self._stack = contextlib.ExitStack()

    async def __aenter__(self) -> Self:
        for row in await self._ledger.read_slow(rows.load_all):
            try:
                # In a thread, as in `put`: up to 1,000 templates are parsed before the daemon is ready.
                route = await asyncio.to_thread(self._stored_route, row.plugin_id, route_spec.decoded(row.spec))
            # One damaged row must not keep the other routes, and the daemon, from starting.
            except (ValueError, Problem) as error:
                log.error("route_damaged", plugin_id=row.plugin_id, path=row.path, reason=str(error))
            else:
                self._routes[row.plugin_id, row.path] = route
        # When the first recheck raises, timer and claims are undone; otherwise `pop_all` keeps them until exit.
        with contextlib.ExitStack() as stack:
            # Ends in reverse: the timer is cancelled first, else it could claim the released routes again.
            stack.callback(self._release_all)
            stack.callback(self._wheel.every(RECHECK_S, self._recheck_all).cancel)
            self._recheck_all()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._background.ended()
        self._stack.close()

    async def put(self, plugin_id: str, spec: RouteSpec) -> RouteListener:
        """Store a route and claim it, replacing the plugin's route at this path; returns where it is served.

        HostError `bad_params` (also for `route_taken`, and a secret that is not bound), `egress_blocked`,
        `service_unavailable`; Problem `quota_exceeded`, `ledger_unavailable`. The old route stays when one is raised.
        The target is made in a thread: parsing a template takes milliseconds. Waits up to LISTEN_S for the listener.
        """
        if spec.target == "service":
            self._check_service(plugin_id, spec)
        if spec.target == "static" and not self._leads_somewhere(plugin_id, spec):
            raise self._deps.files.not_shared(plugin_id, spec.plugin or plugin_id)
        route = await asyncio.to_thread(self._stored_route, plugin_id, spec)
        await self._change(self._replace(route))
        # After the lock is released: other changes do not wait for the listener.
        return await self._table(spec).wait_for_listener(LISTEN_S)

    async def put_back(self, plugin_id: str, spec: RouteSpec) -> None:
        """Store again a route that the plugin had, in place of what is at its path now. As `put`; but one that may not
        be served at the moment is stored all the same, and claimed by a recheck once it may.
        """
        if self._may(plugin_id) and self._leads_somewhere(plugin_id, spec):
            await self.put(plugin_id, spec)
            return
        route = await asyncio.to_thread(self._stored_route, plugin_id, spec)
        key, encoded, now_us = (plugin_id, spec.path), route_spec.encoded(spec), self._clock.wall_us()

        async def store() -> None:
            await self._ledger.write(lambda tx: rows.put(tx, *key, encoded, self._quota, now_us=now_us), durable=True)
            if (old := self._routes.get(key)) is not None:
                self._release(old)
            self._routes[key] = route
            self._recheck([route])

        await self._change(store())

    async def delete(self, plugin_id: str, path: str) -> bool:
        """Delete a route; False when the plugin has none at `path`. Problem ledger_unavailable, and the route stays."""
        return await self._change(self._delete((plugin_id, prefixes.normalised(path))))

    async def _delete(self, key: tuple[str, str]) -> bool:
        if key not in self._routes:
            return False
        # The row first: when this write fails, the route is still stored and still served.
        await self._ledger.write(lambda tx: rows.delete(tx, *key), durable=True)
        self._release(self._routes.pop(key))
        return True

    async def settled(self) -> None:
        """Return once all changes that were asked for before have ended, also those whose callers are gone."""
        await self._change(asyncio.sleep(0))

    def stored(self, plugin_id: str) -> dict[str, str]:
        """The routes that a plugin has put: their specs as in the ledger, by path."""
        return {path: route_spec.encoded(one.spec) for (owner, path), one in self._routes.items() if owner == plugin_id}

    def recheck(self, plugin_id: str) -> None:
        """Claim the routes a plugin may have now and release the others; released ones answer no further request. So
        too for routes of others that serve its files.
        """
        self._recheck([route for route in self._routes.values() if plugin_id in {route.plugin_id, route.spec.plugin}])

    def _recheck_all(self) -> None:
        """As `recheck`, for the routes of all plugins."""
        self._recheck(self._routes.values())

    def _recheck(self, routes: Iterable[StoredRoute]) -> None:
        """Claim or release each of these routes as its plugin stands now; a refused claim is logged, not raised."""
        for route in routes:
            allowed = self._may_serve(route)
            if allowed and route.claim is None:
                try:
                    self._claim(route)
                except Problem as problem:
                    # Tried again every RECHECK_S: the same refusal is logged once.
                    if route.fault != problem.reason:
                        log.warning("route_refused", plugin_id=route.plugin_id, reason=problem.reason)
                    route.fault = problem.reason
            elif not allowed:
                self._release(route)

    async def forget(self, plugin_id: str) -> None:
        """Delete all routes of a plugin that was forgotten or taken over. Problem ledger_unavailable."""
        await self._change(self._forget(plugin_id))

    async def _forget(self, plugin_id: str) -> None:
        # Unlike in `delete`, released before the write: even if that fails, nothing answers for the old plugin.
        for key in [key for key in self._routes if key[0] == plugin_id]:
            self._release(self._routes.pop(key))
        await self._ledger.write(lambda tx: rows.clear(tx, plugin_id))

    async def _change(self, change: Coroutine[Any, Any, T]) -> T:
        """The result of `change`, one at a time, and whole even when the caller is cancelled (the deadline of a host
        call, the end of a plugin): else memory and ledger would differ until the next start.
        """

        async def in_turn() -> T:
            async with self._changing:
                return await change

        return await self._background.whole(in_turn())

    # What operators see.

    def every(self) -> list[ListedRoute]:
        """The routes that plugins have put, in the order they were put, then those that running workers declare."""
        stored = [ListedRoute(plugin_id=one.plugin_id, path=one.spec.path, stored=one) for one in self._routes.values()]
        paths = {(route.path, route.plugin_id) for route in stored}
        # The table has the claims of both; those that are also stored are shown once, with what is known of them.
        declared = [one for one in self._pages.claimed() if one not in paths]
        return [*stored, *(ListedRoute(plugin_id=plugin_id, path=path, stored=None) for path, plugin_id in declared)]

    def view(self, listed: ListedRoute) -> dict[str, Any]:
        """One route as `GET /api/routes` shows it (contracts §7), without its template and the name of its secret.

        `state`: `served`; `refused`, with the reason; or `resting`, while its plugin may not have it or is not armed.
        """
        if (route := listed.stored) is None:
            spec = route_spec.RouteSpec(path=listed.path, target="template")
            return self._view(spec, listed.plugin_id, served=True)
        # An earlier fault is not shown while the route may not be served anyway.
        fault = route.fault if self._may_serve(route) else ""
        return self._view(route.spec, route.plugin_id, served=route.claim is not None, fault=fault)

    def _view(self, spec: RouteSpec, plugin_id: str, *, served: bool, fault: str = "") -> dict[str, Any]:
        """A route by its spec, as `view` shows it."""
        listener = self._table(spec).listener
        return {
            "plugin": plugin_id,
            "path": spec.path,
            "target": spec.target,
            "state": "served" if served else "refused" if fault else "resting",
            "reason": listener.fault if served else fault,
            "url": f"{listener.url}{spec.path}" if served and listener.url else None,
            "content_type": spec.content_type or None,
            "action": spec.action or None,
            "methods": list(spec.methods),
            "origin": spec.origin or None,
            "service": spec.service or None,
            "login": bool(spec.login),
            "public": list(spec.public),
            "token": bool(spec.token),
            "folder": spec.folder or None,
            "files_of": (spec.plugin or plugin_id) if spec.target == "static" else None,
        }

    def _check_service(self, plugin_id: str, spec: RouteSpec) -> None:
        """HostError when a proxied route could not be served now, so that the call fails instead of later requests."""
        if not self._upstreams.enabled:
            raise HostError(
                Denial.SERVICE_UNAVAILABLE,
                "http.service_listen is not set, so no services are proxied: the operator names an address there,"
                " such as 127.0.0.1:8788",
            )
        # Else any plugin could take the listener, which is of one at a time, without a grant for an origin.
        if not self._leads_somewhere(plugin_id, spec):
            raise HostError(
                Denial.BAD_PARAMS,
                f"service: expected one of the plugin (service.put) in a network of its own, found no {spec.service}",
            )
        if self._pinned(plugin_id, spec) is None:
            raise HostError(
                Denial.EGRESS_BLOCKED,
                f"origin: the operator does not let routes lead to {spec.origin} (caps grant ID publish={spec.origin})",
                fix=f"publish={spec.origin}",
            )
        # The values are checked, and not kept: the listener asks for them again at each login and each request.
        for what, name, why_not in (
            ("login", spec.login, passwords.fault),
            ("token", spec.token, public_token.fault),
        ):
            if name and (fault := why_not(self._deps.secret(plugin_id, name))):
                raise HostError(Denial.BAD_PARAMS, f"{what}: ${{secret:{name}}}: {fault}")

    async def _replace(self, route: StoredRoute) -> None:
        """Claim first, then store: a refused claim leaves no row, and a failed write no claim."""
        key = (route.plugin_id, route.spec.path)
        old = self._routes.get(key)
        try:
            self._claim(route)
        except Problem as problem:
            path = route.spec.path
            fix = "" if self._may_have(route.plugin_id, path) else f"prefix={path}"
            raise HostError(Denial.BAD_PARAMS, f"{problem.code}: {problem.reason}", fix=fix) from problem
        # Encoded here, not in the transaction, which runs on the ledger's thread and holds up other writes.
        encoded, now_us = route_spec.encoded(route.spec), self._clock.wall_us()
        if old is not None:
            self._release(old)  # the new claim replaced it, unless it is in the other table
        # Before the write: a recheck meanwhile releases it when its plugin loses the permission.
        self._routes[key] = route
        try:
            await self._ledger.write(lambda tx: rows.put(tx, *key, encoded, self._quota, now_us=now_us), durable=True)
        # The old route is served again, and a claim without a row would not survive a restart.
        except BaseException:
            self._release(route)
            if old is None:
                del self._routes[key]
            else:
                self._routes[key] = old
                self._recheck([old])
            raise

    # What answers, and whether it may.

    def _stored_route(self, plugin_id: str, spec: RouteSpec) -> StoredRoute:
        """A route that is not claimed yet. Problem("source_blocked"), ValueError for an origin that does not parse."""
        target: RouteTarget | Proxied
        match spec.target:
            case "template":
                target = Templated(
                    plugin_id, compiled(spec.template), spec.content_type, live=self._live, call=self._call
                )
            case "invoke":
                target = Invoked(plugin_id, spec.action, spec.methods, live=self._live, invoke=self._invoke)
            case "static":
                read = functools.partial(self._deps.files.read, plugin_id, spec.plugin or plugin_id)
                target = FilesServed(plugin_id, spec.path, spec.folder, live=self._may, read=read)
            case _:
                origin = spec.parsed_origin
                target = Proxied(
                    plugin_id=plugin_id,
                    prefix=spec.path,
                    origin=origin,
                    login=spec.login,
                    public=spec.public,
                    token=spec.token,
                    live=lambda: self._may(plugin_id),
                    pinned=lambda: self._pinned(plugin_id, spec),
                    visited=lambda: self._deps.visited(plugin_id),
                    service=spec.service,
                    inside=functools.partial(self._deps.inside, plugin_id, spec.service) if spec.service else None,
                )
        # Proxied has no `methods` and `serve`; only the service listener looks into `upstreams`, and it knows that.
        return StoredRoute(plugin_id=plugin_id, spec=spec, target=cast("RouteTarget", target))

    def _may(self, plugin_id: str) -> bool:
        """Whether the plugin may have routes served."""
        return self._deps.permissions.may(plugin_id, ROUTE)

    def _live(self, plugin_id: str) -> bool:
        """Whether the plugin may have routes served (`_may`) and has a running instance."""
        handle = self._deps.handles.get(plugin_id)
        return handle is not None and handle.armed and self._may(plugin_id)

    async def _call(self, plugin_id: str, method: str, params: dict[str, Any]) -> Any:
        """A host call of the plugin through the Gate of its running instance; raises as `PluginHandle.call`."""
        return await self._handle(plugin_id).call(method, params)

    async def _invoke(self, plugin_id: str, action: str, payload: Any) -> dict[str, Any]:
        """Have an action of the running instance carried out for a visitor; raises as `PluginHandle.invoke`."""
        # Every request that arrives by a route counts as a visitor's.
        return await self._handle(plugin_id).invoke(action, payload, by_outsider=True)

    def _handle(self, plugin_id: str) -> PluginHandle:
        """The handle of a plugin that an operator has active; Problem not_armed for any other."""
        if (handle := self._deps.handles.get(plugin_id)) is None:
            raise Problem("not_armed", f"{plugin_id} is not armed")
        return handle

    def _pinned(self, plugin_id: str, spec: RouteSpec) -> Address | None:
        """The address of its origin if the operator granted `publish` for exactly that origin and address, else None.

        One in the own network of a service needs no grant: nobody but the plugin's own program is there.
        """
        origin = spec.parsed_origin
        if spec.service:
            return origin.address
        rights = self._deps.permissions.published(plugin_id)
        found = egress.pinned(rights, scheme=origin.scheme, host=origin.host, port=origin.port)
        # The address too: a grant of the same origin with another address must not lead to this one.
        return origin.address if origin.address in found else None

    def _table(self, spec: RouteSpec) -> RouteTable:
        """The table that a route of this kind is claimed in."""
        return self._upstreams if spec.target == "service" else self._pages

    def _may_serve(self, route: StoredRoute) -> bool:
        """Whether a route may be served now. One that is proxied or of files does not need a running instance."""
        plugin_id, spec = route.plugin_id, route.spec
        match spec.target:
            case "service" | "static":
                allowed = self._may(plugin_id) and self._leads_somewhere(plugin_id, spec)
            case _:
                allowed = self._live(plugin_id)
        return allowed and self._may_have(plugin_id, spec.path)

    def _leads_somewhere(self, plugin_id: str, spec: RouteSpec) -> bool:
        """Whether the files that a route leads to may be served now, or its plugin has the service that it names."""
        if spec.target == "static":
            return self._deps.files.may_read(plugin_id, spec.plugin or plugin_id)
        return not spec.service or self._deps.has_network(plugin_id, spec.service)

    def _may_have(self, plugin_id: str, path: str) -> bool:
        """Whether a path is the plugin's own or granted; grants may change while a route is stored."""
        return path.startswith(prefixes.own_prefix(plugin_id)) or bool(self._granted(plugin_id, path))

    def _granted(self, plugin_id: str, path: str) -> frozenset[str]:
        """`path` if it is a granted prefix or below one. A granted `/` does not include the paths below it."""
        granted = {prefixes.normalised(one) for one in self._deps.permissions.prefixes(plugin_id)}
        below = any(path.startswith(one) for one in granted - {"/"})
        return frozenset({path} if below or path in granted else ())

    def _claim(self, route: StoredRoute) -> None:
        """Claim the path of a route in its table; Problem route_taken, service_unavailable."""
        path = route.spec.path
        granted = self._granted(route.plugin_id, path)
        table = self._table(route.spec)
        # The setting may have been removed since `put` checked it and the route was stored.
        if isinstance(route.target, Proxied) and not self._upstreams.enabled:
            raise Problem("service_unavailable", "http.service_listen is not set, so no services are proxied")
        route.claim = table.claim(route.plugin_id, [path], route.target, granted_prefixes=granted)
        route.fault = ""

    def _release(self, route: StoredRoute) -> None:
        """Drop the claim of a route, if it has one; nothing answers at its path afterwards."""
        if route.claim is not None:
            self._table(route.spec).release(route.claim)
        route.claim = None

    def _release_all(self) -> None:
        for route in self._routes.values():
            self._release(route)
