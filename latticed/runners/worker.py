"""The worker runner: a plugin whose artifact is a template that answers HTTP requests on its routes.

No code of it is executed: the template is data, rendered in one pass. All reads go through its Gate.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING, Any, Final

from latticed.host.route import own_style, rendering, table, template
from latticed.host.route.table import RouteResponse
from latticed.kit import files
from latticed.kit.tasks import in_thread
from latticed.model.errors import Problem
from latticed.model.runtime import Health
from latticed.runners.contract import Checkup
from latticed.sandbox import artifact

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.broker.gate import Gate
    from latticed.bundle.read import BundleDirectory
    from latticed.host.route.table import RouteClaim, RouteRequest, RouteTable
    from latticed.host.route.template import Template
    from latticed.model.manifest import Manifest
    from latticed.runners.contract import PluginToRun

ROUTE: Final = "worker:route"
LISTEN_S: Final = 1.0
"""How long, in seconds, a start waits to learn whether its routes have a listener."""


def _none(plugin_id: str) -> frozenset[str]:
    """The default of `granted_prefixes`: nothing is granted."""
    del plugin_id
    return frozenset()


class WorkerRunner:
    """The runner of templates; see `runners.contract.Runner`. `granted_prefixes(id)` returns the route prefixes that
    the operator granted to a plugin besides its own.
    """

    name = "worker"
    hashes_artifact = True

    def __init__(self, routes: RouteTable, *, granted_prefixes: Callable[[str], frozenset[str]] = _none) -> None:
        self._routes = routes
        self._granted_prefixes = granted_prefixes

    async def admit(self, plugin: PluginToRun, pair: BundleDirectory) -> None:
        """Problem: `source_blocked` for template or content type, `route_taken` for its routes, `digest_mismatch`."""
        # What `start` does, without its effects: a template that does not parse is refused before it is activated.
        mime = content_type(plugin.manifest)
        own_style.of_template((await _compiled(pair, plugin.manifest.digest_sha256.lower())).parts, mime)
        granted = self._granted_prefixes(plugin.id)
        self._routes.check(plugin.id, _prefixes(plugin, granted), granted_prefixes=granted)

    async def start(
        self, plugin: PluginToRun, pair: BundleDirectory, gate: Gate, on_exit: Callable[[str, str], None]
    ) -> Serving:
        """Compile the template and claim its routes. Problem as `admit`; nothing is claimed then."""
        del on_exit  # no process that could exit
        mime = content_type(plugin.manifest)
        compiled = await _compiled(pair, plugin.manifest.digest_sha256.lower())
        instance = Serving(gate, compiled, mime, self._routes)
        granted = self._granted_prefixes(plugin.id)
        if prefixes := _prefixes(plugin, granted):
            instance.claim = self._routes.claim(plugin.id, prefixes, instance, granted_prefixes=granted)
            try:
                # Else a health check right after a start would report a listener that is about to be there as missing.
                await self._routes.wait_for_listener(LISTEN_S)
            except BaseException:
                self._routes.release(instance.claim)
                raise
        return instance


class Serving:
    """An armed worker; see `runners.contract.Instance`. `claim` holds its routes, None when it has none.

    Slots, because thousands may be armed at once.
    """

    __slots__ = ("_compiled", "_content_type", "_gate", "_own", "_routes", "claim")

    pid = 0
    sandbox = ""
    methods = frozenset({"GET", "HEAD"})

    def __init__(self, gate: Gate, compiled: Template, mime: str, routes: RouteTable) -> None:
        self._gate = gate
        self._compiled = compiled
        self._content_type = mime
        self._own = own_style.of_template(compiled.parts, mime)
        self._routes = routes
        self.claim: RouteClaim | None = None

    @property
    def message(self) -> str:
        """What a health check says now: where it serves, or why it does not."""
        return self._checkup().message

    async def check(self) -> Checkup:
        """Healthy when its routes are served, degraded when not; nothing is asked or rendered."""
        return self._checkup()

    async def invoke(self, action: str, payload: Any) -> dict[str, Any]:
        """`render` {path, query, method}: the answer that such a request would get, in `result.body`."""
        if action != "render":
            raise Problem("bad_request", f"expected the action render, found {action[:80]!r}")
        path, method, query = _asked(payload, self._gate.caller.plugin_id)
        try:
            body = await self._render(path, method, query)
        except Problem as problem:
            return {"ok": False, "message": "", "result": None, "error": f"{problem.code}: {problem.reason}"}
        result = {"content_type": self._content_type, "body": body.decode("utf-8")}
        return {"ok": True, "message": "", "result": result, "error": None}

    def claim_again(self) -> None:
        """See ClaimsRoutes; what another plugin has claimed meanwhile stays with that one."""
        if self.claim is not None:
            prefixes = self.claim.prefixes
            with contextlib.suppress(Problem):
                self.claim = self._routes.claim(
                    self._gate.caller.plugin_id, prefixes, self, granted_prefixes=frozenset(prefixes)
                )

    async def stop(self, grace_s: float) -> None:
        """Release the claimed routes; returns at once, `grace_s` is not used. Requests under way are not cancelled:
        they finish, or fail at the closed Gate.
        """
        del grace_s
        if self.claim is not None:
            self._routes.release(self.claim)

    async def serve(self, request: RouteRequest) -> RouteResponse:
        """Answer a request to one of its routes. Problem("not_found") while the plugin may not use routes; other
        Problems when a value cannot be read or the answer is too long.
        """
        # Asked for each request, so that a grant or a trim takes effect without a restart.
        self._check_route()
        body = await self._render(request.path, request.method, request.query)
        self._check_route()  # stopped or trimmed meanwhile
        return RouteResponse(body=body, content_type=self._content_type, own=self._own)

    def _check_route(self) -> None:
        """Problem("not_found") unless the capability `worker:route` is effective now."""
        if ROUTE not in self._gate.capabilities():
            raise Problem("not_found", "there is no such route")

    def _checkup(self) -> Checkup:
        """See `check`: judged by what holds at this moment (claim, capability, listener)."""
        if self.claim is None:
            return Checkup(health=Health.HEALTHY, message=f"no route: the manifest does not declare {ROUTE}")
        where = " ".join(self.claim.prefixes)
        if ROUTE not in self._gate.capabilities():
            return Checkup(health=Health.DEGRADED, message=f"no route at {where}: {ROUTE} is not granted")
        listener = self._routes.listener
        if not listener.url:
            reason = listener.fault or "not yet"
            return Checkup(health=Health.DEGRADED, message=f"listener unavailable for {where}: {reason}")
        return Checkup(health=Health.HEALTHY, message=f"serves {where} at {listener.url}")

    async def _render(self, path: str, method: str, query: tuple[tuple[str, str], ...]) -> bytes:
        """The body that answers such a request, as bytes; all values are read through the Gate."""
        return await rendering.render(
            self._compiled, path, method, query, content_type=self._content_type, call=self._gate.call
        )


def content_type(manifest: Manifest) -> str:
    """The Content-Type of a worker's answers; Problem("source_blocked") for one that cannot be served safely."""
    return rendering.content_type(manifest.routes.content_type, "routes.content_type")


def _prefixes(plugin: PluginToRun, granted: frozenset[str]) -> tuple[str, ...]:
    """The prefixes to claim: its own and those both declared and granted; none without the capability for routes."""
    if ROUTE not in plugin.manifest.capabilities:
        return ()
    return table.claimable(plugin.id, plugin.manifest.routes.prefixes, granted)


def _asked(payload: Any, plugin_id: str) -> tuple[str, str, tuple[tuple[str, str], ...]]:
    """(path, method, query) of an invocation's payload; Problem("bad_request") when it is malformed.

    Left out: the plugin's own prefix, GET, no query. `{"path": "/demo/", "query": {"q": "x"}}` gives `("/demo/", "GET",
    (("q", "x"),))`.
    """
    asked = {} if payload is None else payload
    if not isinstance(asked, dict) or not asked.keys() <= {"path", "method", "query"}:
        raise Problem("bad_request", "expected a payload such as {path, method, query}, found something else")
    path, method = asked.get("path", table.own_prefix(plugin_id)), asked.get("method", "GET")
    query = asked.get("query", {})
    if not isinstance(path, str) or method not in ("GET", "HEAD"):
        raise Problem("bad_request", "expected path to be text and method to be GET or HEAD")
    if not isinstance(query, dict) or not all(isinstance(value, str) for value in query.values()):
        raise Problem("bad_request", "expected query to be an object of texts")
    return path, method, tuple(query.items())


async def _compiled(pair: BundleDirectory, sha256: str) -> Template:
    """The compiled template of `pair`; Problem as `_source`, and source_blocked when it does not parse."""
    return await in_thread(lambda: template.parse(_source(pair, sha256)))


def _source(pair: BundleDirectory, sha256: str) -> bytes:
    """The artifact's bytes; Problem when it is too large for a template, or its digest is not the verified one."""
    room = template.MAX_BYTES + 1
    with files.closing(_memory(room)) as fd:
        try:
            found, size = pair.hash_artifact(copy_to=fd)
        # EPERM of the sealed memfd: the artifact is larger than a template may be, which `template.parse` reports.
        except PermissionError:
            size, found = room, sha256  # as if it were intact: its size is the reason
        if found != sha256:
            detail = f"the artifact no longer matches (expected {sha256[:12]}…, found {found[:12]}…)"
            raise Problem("digest_mismatch", detail)
        return os.pread(fd, size, 0)


def _memory(room: int) -> int:
    """A memfd of at most `room` bytes (EPERM beyond): copying stops early for an artifact of any size."""
    fd = artifact.memory()
    try:
        os.ftruncate(fd, room)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    except BaseException:
        os.close(fd)
        raise
    return fd
