"""Handlers for delegated work, by its present state: DNS records, monitors, long-lived programs and HTTP routes."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypedDict, cast

from msgspec import Meta

from latticed.host.call import HostError
from latticed.host.ddns import spec as ddns_specs
from latticed.host.program import calls as longlived
from latticed.model.audit import Event
from latticed.model.errors import Problem
from latticed.rpc.api import Body, QueryParams
from latticed.rpc.counts import paced
from latticed.rpc.running import known

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from latticed.host.ddns.record import KeptRecord
    from latticed.rpc.api import Ask


class Of(QueryParams, frozen=True):
    """Selects the rows of one `plugin`, or all; `after`: the `next` of the previous page; `limit`: rows of a page."""

    plugin: str | None = None
    after: str = ""
    limit: Annotated[int, Meta(ge=1, le=500)] = 100


class Retry(Body, frozen=True):
    """`type` absent: records of both types."""

    type: Literal["A", "AAAA"] | None = None


class DelegatedFault(TypedDict):
    """The last failure: its code, a text for people, and when it happened (RFC 3339)."""

    code: str
    message: str
    at: str


class DdnsRow(TypedDict):
    """`resting`: its plugin may not act now. `address` is what is to be published, `published` what is."""

    plugin: str
    name: str
    type: str
    provider: str
    zone: str | None
    server: str | None
    ttl: int
    interface: str | None
    state: str
    resting: bool
    address: str | None
    published: str | None
    failures: int
    last_success: str | None
    last_change: str | None
    last_error: DelegatedFault | None
    next_try: str | None


class DdnsPage(TypedDict):
    """`next` is what `after` must be for the following page, null on the last."""

    records: list[DdnsRow]
    next: str | None


class DdnsRetried(TypedDict):
    """The records of that name: those that are not published are tried again, at `next_try`."""

    records: list[DdnsRow]


class Check(TypedDict):
    """One check of a monitor: its number and outcome; `status` is that of HTTP, `code` and `reason` say what failed."""

    number: int
    at: str
    outcome: str
    code: str
    reason: str
    took_ms: int
    status: int | None
    certificate_expires_at: str | None


class MonitorRow(TypedDict):
    """`resting`: its plugin may not act now, so nothing is checked and `state` is what it was."""

    plugin: str
    name: str
    kind: str
    target: str
    interval_s: float
    timeout_s: float
    failures: int
    statuses: list[int]
    body: str
    certificate_days: int
    shared: bool
    state: str
    resting: bool
    since: str
    skipped: int
    last: Check | None


class MonitorPage(TypedDict):
    """One page of monitors; `next` is what `after` must be for the following page, null on the last."""

    monitors: list[MonitorRow]
    next: str | None


class ServiceData(TypedDict):
    """What a service may keep, and what the last measurement found (null: none yet)."""

    bytes: int
    files: int
    used_bytes: int | None
    used_files: int | None


class ServiceRow(TypedDict):
    """A long-lived program; `data`: its directory, if it keeps one; `pid`, `sandbox` and `started_at` while it runs,
    `next_retry_at` while it waits.
    """

    plugin: str
    name: str
    program: str
    restart: str
    network: str
    data: ServiceData | None
    hosts: list[str]
    state: str
    pid: int | None
    sandbox: str | None
    restarts: int
    started_at: str | None
    next_retry_at: str | None
    last_error: DelegatedFault | None


class ServicePage(TypedDict):
    """One page of programs; `next` is what `after` must be for the following page, null on the last."""

    services: list[ServiceRow]
    next: str | None


class RouteRow(TypedDict):
    """`state`: served, refused (`reason` says why), or resting while its plugin is not permitted to have it served."""

    plugin: str
    path: str
    target: str
    state: str
    reason: str
    url: str | None
    content_type: str | None
    action: str | None
    methods: list[str]
    origin: str | None
    service: str | None
    login: bool
    public: list[str]
    token: bool
    folder: str | None
    files_of: str | None


class RoutePage(TypedDict):
    """One page of routes; `next` is what `after` must be for the following page, null on the last."""

    routes: list[RouteRow]
    next: str | None


async def ddns(ask: Ask) -> DdnsPage:
    """DNS records that are kept up to date for plugins, by plugin, name and type."""
    found = await _page(ask, ask.api.ddns.every(), lambda one: f"{one.plugin_id}/{one.name} {one.spec.type}")
    return {"records": [_ddns(ask, one) for one in found.rows], "next": found.next}


async def retry_ddns(ask: Ask) -> DdnsRetried:
    """Try the records of this name that are not published again as soon as may be, those that were refused too."""
    kind = (await ask.body(Retry)).type
    plugin_id = known(ask)
    try:
        # In the form in which the host call keeps it: case and a trailing dot make no difference.
        name = ddns_specs.record_name(ask.part("name"))
    except HostError as error:
        raise Problem("bad_request", error.reason) from error
    detail: dict[str, str | int | bool] = {"name": name, "type": kind or "A AAAA"}
    told = Event(actor=str(ask.actor), action="ddns.retry", target=plugin_id, decision="allow", detail=detail)
    async with ask.recorded(told):
        again = await ask.api.ddns.retry(plugin_id, name, kind)
    return {"records": [_ddns(ask, one) for one in again]}


async def monitors(ask: Ask) -> MonitorPage:
    """Monitors of plugins with their state and last check, by plugin and name."""
    watching = ask.api.monitors
    found = await _page(ask, watching.every(), lambda one: f"{one.plugin_id}/{one.name}")
    rows = []
    for one in found.rows:
        view = one.view(whole=True)
        rows.append(
            cast("MonitorRow", {"plugin": view.pop("owner"), **view, "resting": watching.resting(one.plugin_id)})
        )
    return {"monitors": rows, "next": found.next}


async def services(ask: Ask) -> ServicePage:
    """Long-lived programs of plugins with their state, by plugin and name."""
    found = await _page(ask, ask.api.programs.every(), lambda one: f"{one.plugin_id}/{one.name}")
    rows = [cast("ServiceRow", {"plugin": one.plugin_id, **longlived.view(one)}) for one in found.rows]
    return {"services": rows, "next": found.next}


async def routes(ask: Ask) -> RoutePage:
    """HTTP routes of plugins and whether they are served, by plugin and path."""
    found = await _page(ask, ask.api.routes.every(), lambda one: f"{one.plugin_id}{one.path}")
    return {"routes": [cast("RouteRow", ask.api.routes.view(one)) for one in found.rows], "next": found.next}


class _Page(NamedTuple):
    """One page of rows of any kind; `next` is the key of its last row, None on the last page."""

    rows: list[Any]
    next: str | None


async def _page(ask: Ask, everything: Collection[Any], key: Callable[[Any], str]) -> _Page:
    """The page that the query (`Of`) asks for, sorted by `key`, which must be unique.

    There may be thousands of rows: they are filtered in batches, and only the page is sorted.
    """
    wanted = ask.query(Of)
    if wanted.plugin is not None:
        known(ask, wanted.plugin)
    # Keys instead of numbers as cursors: rows may come and go between two pages without one being left out.
    later = {}
    async for one in paced(everything):
        if wanted.plugin in (None, one.plugin_id) and (name := key(one)) > wanted.after:
            later[name] = one
    # Not all rows are sorted: nsmallest costs less where a page is small and the rows are many.
    page = heapq.nsmallest(wanted.limit, later)
    return _Page([later[name] for name in page], page[-1] if len(later) > len(page) else None)


def _ddns(ask: Ask, one: KeptRecord) -> DdnsRow:
    """One DNS record as its row."""
    return cast("DdnsRow", {"plugin": one.plugin_id, **one.view(), "resting": ask.api.ddns.resting(one.plugin_id)})
