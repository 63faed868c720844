"""route.*: HTTP routes that a plugin puts for itself (system-plugins.md, worker:route and Sub-Store's proxy rules).

A route is kept in the ledger and claimed in a table of routes while its owner lives and may have it; then it answers,
also after a restart. Events are hints: once a second all of them are looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, cast

from latticed.host.call import Caller, HostError, Params, Served
from latticed.host.route import spec as route_spec
from latticed.host.route import table as routes
from latticed.host.route.targets import Invoked, Proxied, Templated, compiled
from latticed.kit import logs, passwords
from latticed.ledger import routes as rows
from latticed.model import egress
from latticed.model.errors import Problem
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from latticed.host.permissions import Permissions
    from latticed.host.route.spec import RouteSpec
    from latticed.host.route.table import RouteClaim, RouteTable, RouteTarget
    from latticed.host.route.upstreams import UpstreamTable
    from latticed.kit.clock import Clock
    from latticed.kit.wheel import Wheel
    from latticed.ledger import Ledger
    from latticed.model.addresses import Address

ROUTE: Final = "worker:route"
LOOK_S: Final = 1.0
LISTEN_S: Final = 1.0
"""How long route.put waits to learn whether anybody listens."""

log = logs.get_logger()


class RouteDelete(Params, frozen=True):
    path: str


class PluginHandle(Protocol):
    """A plugin that an operator has active, as routes see it: the supervisor's handle."""

    @property
    def armed(self) -> bool:
        """Whether an instance of it is running."""

    async def call(self, method: str, params: dict[str, Any]) -> Any:
        """A host call of the plugin through its Gate; Problem, or HostError."""

    async def invoke(self, action: str, payload: Any, *, by_outsider: bool) -> dict[str, Any]:
        """Have one of its actions carried out; Problem when it is not armed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteDeps:
    """What routes work with besides tables and time.

    `handles` are the running plugins by id; `secret(plugin_id, name)` is the value of a secret that is bound to a
    plugin (HostError otherwise); `visited(plugin_id)` is called for each visitor's connection to a proxied origin.
    """

    permissions: Permissions
    handles: Mapping[str, PluginHandle]
    secret: Callable[[str, str], str]
    visited: Callable[[str], None]


@dataclass(slots=True, kw_only=True, eq=False)
class RouteKept:
    """One route: `claim` while it is served, `fault` why not, as far as that was told."""

    plugin_id: str
    spec: RouteSpec
    target: RouteTarget
    claim: RouteClaim | None = None
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteView:
    """One route for a list; `kept` None: a worker declares it."""

    plugin_id: str
    path: str
    kept: RouteKept | None


class RouteCalls:
    """The service, an async context manager: entered, the routes of earlier lives are back."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        pages: RouteTable,
        services: UpstreamTable,
        deps: RouteDeps,
        clock: Clock,
        wheel: Wheel,
        quota: rows.RouteQuota | None = None,
    ) -> None:
        self._ledger = ledger
        self._pages = pages
        self._services = services
        self._deps = deps
        self._clock = clock
        self._wheel = wheel
        self._quota = quota or rows.RouteQuota()
        self._kept: dict[tuple[str, str], RouteKept] = {}  # by plugin and path, the oldest first
        self._one_at_a_time = asyncio.Lock()
        self._stack = contextlib.ExitStack()

    async def __aenter__(self) -> Self:
        for row in await self._ledger.read_slow(rows.load_all):
            try:
                kept = await asyncio.to_thread(self._made, row.plugin_id, route_spec.decoded(row.spec))
            except (ValueError, Problem) as error:
                log.error("route_damaged", plugin_id=row.plugin_id, path=row.path, reason=str(error))
            else:
                self._kept[row.plugin_id, row.path] = kept
        with contextlib.ExitStack() as stack:
            stack.callback(self._release_all)
            stack.callback(self._wheel.every(LOOK_S, self._look_at_all).cancel)
            self._look_at_all()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stack.close()

    def calls(self) -> tuple[Served, ...]:
        return (
            Served(method="route.put", params=route_spec.RoutePut, serve=self._put),
            Served(method="route.delete", params=RouteDelete, serve=self._delete),
        )

    def look(self, plugin_id: str) -> None:
        """Claim what one plugin may have now, release what it may not: nothing of it is answered any more."""
        self._look([kept for kept in self._kept.values() if kept.plugin_id == plugin_id])

    def _look_at_all(self) -> None:
        self._look(self._kept.values())

    def _look(self, looked_at: Iterable[RouteKept]) -> None:
        for kept in looked_at:
            wanted = self._wanted(kept)
            if wanted and kept.claim is None:
                try:
                    self._claim(kept)
                except Problem as problem:
                    if kept.fault != problem.reason:
                        log.warning("route_refused", plugin_id=kept.plugin_id, reason=problem.reason)
                    kept.fault = problem.reason
            elif not wanted:
                self._release(kept)

    async def forget(self, plugin_id: str) -> None:
        """The plugin is gone, or in other hands: so are its routes."""
        async with self._one_at_a_time:
            for key in [key for key in self._kept if key[0] == plugin_id]:
                self._release(self._kept.pop(key))
            await self._ledger.write(lambda tx: rows.clear(tx, plugin_id))

    # What operators see.

    def every(self) -> list[RouteView]:
        """Those that plugins have put, and those that armed workers declare."""
        put = [RouteView(plugin_id=kept.plugin_id, path=kept.spec.path, kept=kept) for kept in self._kept.values()]
        held = {(kept.spec.path, kept.plugin_id) for kept in self._kept.values()}
        declared = [one for one in self._pages.claimed() if one not in held]
        return [*put, *(RouteView(plugin_id=plugin_id, path=path, kept=None) for path, plugin_id in declared)]

    def view(self, shown: RouteView) -> dict[str, Any]:
        """One route as it stands; without its template."""
        if shown.kept is not None:
            return self._view(shown.kept)
        return self._described(route_spec.RouteSpec(path=shown.path, target="template"), shown.plugin_id, served=True)

    def _view(self, kept: RouteKept) -> dict[str, Any]:
        return self._described(
            kept.spec,
            kept.plugin_id,
            served=kept.claim is not None,
            fault=kept.fault if self._wanted(kept) else "",
        )

    def _described(self, spec: RouteSpec, plugin_id: str, *, served: bool, fault: str = "") -> dict[str, Any]:
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
            "login": bool(spec.login),
            "public": list(spec.public),
        }

    # The calls.

    async def _put(self, caller: Caller, asked: route_spec.RoutePut) -> dict[str, Any]:
        spec = await asyncio.to_thread(route_spec.checked, asked)
        if spec.target == "service":
            self._check_service(caller.plugin_id, spec)
        kept = await asyncio.to_thread(self._made, caller.plugin_id, spec)
        async with self._one_at_a_time:
            await self._replace(kept)
        listener = await self._table(spec).listened(LISTEN_S)
        where = f"{listener.url}{spec.path}" if listener.url else None
        return {"ok": True, "path": spec.path, "url": where, "message": listener.fault}

    async def _delete(self, caller: Caller, asked: RouteDelete) -> dict[str, Any]:
        key = (caller.plugin_id, routes.normal(asked.path))
        async with self._one_at_a_time:
            if key not in self._kept:
                return {"ok": False}
            await self._ledger.write(lambda tx: rows.delete(tx, *key), durable=True)
            self._release(self._kept.pop(key))
        return {"ok": True}

    def _check_service(self, plugin_id: str, spec: RouteSpec) -> None:
        if not self._services.on:
            raise HostError(
                Denial.SERVICE_UNAVAILABLE,
                "http.service_listen is not set, so no services are proxied: the operator names an address there,"
                " such as 127.0.0.1:8788",
            )
        if self._pinned(plugin_id, spec.bound) is None:
            raise HostError(
                Denial.EGRESS_BLOCKED,
                f"origin: the operator does not let routes lead to {spec.origin} (caps grant ID publish={spec.origin})",
            )
        if spec.login and (fault := passwords.fault(self._deps.secret(plugin_id, spec.login))):
            raise HostError(Denial.BAD_PARAMS, f"login: ${{secret:{spec.login}}}: {fault}")

    async def _replace(self, kept: RouteKept) -> None:
        """Claim first, then keep: a route that is taken leaves no row, one that cannot be kept leaves no claim."""
        key = (kept.plugin_id, kept.spec.path)
        old = self._kept.get(key)
        held = old is not None and old.claim is not None
        try:
            self._claim(kept)
        except Problem as problem:
            raise HostError(Denial.BAD_PARAMS, f"{problem.code}: {problem.reason}") from problem
        stored, now_us = route_spec.encoded(kept.spec), self._clock.wall_us()
        try:
            await self._ledger.write(lambda tx: rows.put(tx, *key, stored, self._quota, now_us=now_us), durable=True)
        except BaseException:
            self._release(kept)
            if old is not None and held:
                self._claim(old)
            raise
        if old is not None:
            self._release(old)  # where the new one is in the other table
        self._kept[key] = kept

    # What answers, and where.

    def _made(self, plugin_id: str, spec: RouteSpec) -> RouteKept:
        target: RouteTarget | Proxied
        match spec.target:
            case "template":
                made = compiled(spec.template)
                target = Templated(plugin_id, made, spec.content_type, live=self._live, call=self._call)
            case "invoke":
                target = Invoked(plugin_id, spec.action, spec.methods, live=self._live, invoke=self._invoke)
            case _:
                bound = spec.bound
                target = Proxied(
                    plugin_id=plugin_id,
                    prefix=spec.path,
                    origin=bound,
                    login=spec.login,
                    public=spec.public,
                    live=lambda: self._may(plugin_id),
                    pinned=lambda: self._pinned(plugin_id, bound),
                    visited=lambda: self._deps.visited(plugin_id),
                )
        return RouteKept(plugin_id=plugin_id, spec=spec, target=cast("RouteTarget", target))

    def _may(self, plugin_id: str) -> bool:
        """Whether anything may be served for a plugin."""
        return self._deps.permissions.may(plugin_id, ROUTE)

    def _live(self, plugin_id: str) -> bool:
        """Whether a plugin may serve routes, and is running to do so."""
        handle = self._deps.handles.get(plugin_id)
        return handle is not None and handle.armed and self._may(plugin_id)

    async def _call(self, plugin_id: str, method: str, params: dict[str, Any]) -> Any:
        return await self._handle(plugin_id).call(method, params)

    async def _invoke(self, plugin_id: str, action: str, payload: Any) -> dict[str, Any]:
        return await self._handle(plugin_id).invoke(action, payload, by_outsider=True)

    def _handle(self, plugin_id: str) -> PluginHandle:
        if (handle := self._deps.handles.get(plugin_id)) is None:
            raise Problem("not_armed", f"{plugin_id} is not armed")
        return handle

    def _pinned(self, plugin_id: str, bound: egress.Origin) -> Address | None:
        rights = self._deps.permissions.published(plugin_id)
        found = egress.pinned(rights, scheme=bound.scheme, host=bound.host, port=bound.port)
        return bound.address if bound.address in found else None

    def _table(self, spec: RouteSpec) -> RouteTable:
        return self._services if spec.target == "service" else self._pages

    def _wanted(self, kept: RouteKept) -> bool:
        """Whether it is to be served now."""
        answers = self._may if kept.spec.target == "service" else self._live
        return answers(kept.plugin_id) and self._may_have(kept.plugin_id, kept.spec.path)

    def _may_have(self, plugin_id: str, path: str) -> bool:
        return path.startswith(routes.own(plugin_id)) or bool(self._free(plugin_id, path))

    def _free(self, plugin_id: str, path: str) -> frozenset[str]:
        """`path`, when it lies below a prefix that was granted; below `/` lies what belongs to others."""
        granted = {routes.normal(one) for one in self._deps.permissions.prefixes(plugin_id)}
        below = any(path.startswith(one) for one in granted - {"/"})
        return frozenset({path} if below or path in granted else ())

    def _claim(self, kept: RouteKept) -> None:
        path = kept.spec.path
        free = self._free(kept.plugin_id, path)
        table = self._table(kept.spec)
        if isinstance(kept.target, Proxied) and not self._services.on:
            raise Problem("service_unavailable", "http.service_listen is not set, so no services are proxied")
        kept.claim = table.claim(kept.plugin_id, [path], kept.target, granted_prefixes=free)
        kept.fault = ""

    def _release(self, kept: RouteKept) -> None:
        if kept.claim is not None:
            self._table(kept.spec).release(kept.claim)
        kept.claim = None

    def _release_all(self) -> None:
        for kept in self._kept.values():
            self._release(kept)
