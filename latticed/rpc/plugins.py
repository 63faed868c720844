"""Handlers for plugins: list, decide, inspect, verify, grant."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

from aiohttp import web
from msgspec import Meta

from latticed.broker.gate import Count
from latticed.catalog.root import may_be_bundle
from latticed.kit.text import escape, sanitise
from latticed.ledger import audit as rows
from latticed.lifecycle.advance import UpgradeConsent
from latticed.lifecycle.decisions import WantedVersion
from latticed.lifecycle.granting import Regrant
from latticed.model import chain, consents
from latticed.model.audit import Actor
from latticed.model.errors import Problem
from latticed.model.hostcall import FIX
from latticed.model.lifecycle import Status
from latticed.rpc import explain, running, views
from latticed.rpc.access import Scope
from latticed.rpc.api import Body, QueryParams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from latticed.model.lifecycle import Record
    from latticed.rpc.api import Ask
    from latticed.rpc.connection import ControlConnection
    from latticed.rpc.responses import DataLeft, Forgotten

T = TypeVar("T")

SHOWN_DENIALS = 10
"""The newest denials of a plugin that `show` answers with."""
NAME_BYTES = 255  # NAME_MAX of Linux file systems
ROWS_AT_ONCE = 256
"""Rows made between two turns of the event loop."""


class Decision(Body, frozen=True):
    """`accept` has capabilities and `kind=value` (contracts §8).

    With `dry_run`, the answer is the plugin as it would become, and nothing changes or is audited. `identity`: what is
    to be installed or activated, as a dry run shows it; another one is `identity_mismatch`. With `already_so`, a status
    that the plugin has already is no refusal: nothing changes or is audited, and the answer has `changed` false.
    """

    id: str
    status: Literal["installed", "active", "disabled"]
    accept: tuple[str, ...] = ()
    accept_hosts: tuple[str, ...] = ()
    allow_downgrade: bool = False
    dry_run: bool = False
    identity: str | None = None
    already_so: bool = False


class Upgrade(Body, frozen=True):
    """`retry` takes a version that was given up before; the others as in `Decision`. `identity`: of the candidate.
    `already_so`: that there is none is no refusal, where the accepted version is there.
    """

    accept: tuple[str, ...] = ()
    accept_hosts: tuple[str, ...] = ()
    allow_downgrade: bool = False
    accept_publisher: str | None = None
    retry: bool = False
    dry_run: bool = False
    identity: str | None = None
    already_so: bool = False


class RollbackBody(Body, frozen=True):
    """`to`: the version, by default the newest that is kept and was not given up. With `snapshot` values and
    configuration become those of that version, as they were when it was replaced. The others as in `Decision`.
    """

    to: str | None = None
    snapshot: bool = False
    accept: tuple[str, ...] = ()
    accept_hosts: tuple[str, ...] = ()
    dry_run: bool = False


class Nothing(Body, frozen=True):
    pass


class Forget(Body, frozen=True):
    """With `purge` its values, files and notifications are removed too."""

    purge: bool = False


class PathName(Body, frozen=True):
    """`name`: that of a bundle's directory in the plugin directory, without a path."""

    name: str


class About(QueryParams, frozen=True):
    """`explain=1`: the answer has `causes`, too."""

    explain: Literal["0", "1"] = "0"


class RejectedFilter(QueryParams, frozen=True):
    """`about`: only bundles that claim to be this plugin, or whose directory has this name. `limit`: so many."""

    about: str | None = None
    limit: Annotated[int, Meta(ge=1, le=2**31)] | None = None


class Grants(Body, frozen=True):
    """`grant` and `trim` have capabilities and `kind=value` (contracts §8), each by itself.

    `hosts` replaces the accepted hosts, `permits` what else is permitted (`kind=value`); absent leaves them. `force`
    lets an origin be a cloud's metadata address.
    """

    grant: tuple[str, ...] = ()
    trim: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = None
    permits: tuple[str, ...] | None = None
    force: bool = False


async def listing(ask: Ask) -> web.StreamResponse:
    """Every plugin on record, sorted by id."""
    known = ask.api.lifecycle.known()
    # So many rows are cached, so that joining them takes little time.
    if len(known) <= views.ROWS_KEPT:
        body = b",".join([views.plugin_row(ask.api, record) for record in known])
        return web.Response(body=b"[" + body + b"]", content_type="application/json")
    return await _long_listing(ask, known, lambda record: views.plugin_row(ask.api, record))


async def brief(ask: Ask) -> web.StreamResponse:
    """What a table shows of every plugin on record, sorted by id; a long list takes a third of the time of a whole."""
    known = ask.api.lifecycle.known()
    if len(known) > ROWS_AT_ONCE:
        return await _long_listing(ask, known, lambda record: views.brief_row(ask.api, record))
    body = b",".join([views.brief_row(ask.api, record) for record in known])
    return web.Response(body=b"[" + body + b"]", content_type="application/json")


async def _long_listing(ask: Ask, known: Sequence[T], row: Callable[[T], bytes]) -> web.StreamResponse:
    """Stream the list in pieces: ten thousand rows neither block the event loop nor are in memory at once.

    An error after the first piece cuts the connection, so that the client does not take the list for complete.
    """
    if ask.headers_only:
        return web.Response(content_type="application/json")
    answer = web.StreamResponse()
    answer.content_type = "application/json"
    await cast("ControlConnection", ask.request.protocol).begin(answer, ask.request)
    for start in range(0, len(known), ROWS_AT_ONCE):
        made = [row(one) for one in known[start : start + ROWS_AT_ONCE]]
        await answer.write((b"," if start else b"[") + b",".join(made))
        # write() returns at once while the transport's buffer has room: let other tasks run.
        await asyncio.sleep(0)
    await answer.write_eof(b"]")
    return answer


async def decide(ask: Ask) -> dict[str, Any]:
    """Install, activate or disable a plugin; with `dry_run`, show what it would become."""
    body = await ask.body(Decision)
    consent = _consent(body)
    # Not in the table of routes: it depends on what the body consents to.
    if consent.needs_host_scope:
        ask.need(Scope.HOST)
    decide, wanted = ask.api.lifecycle.decisions, Status(body.status)
    if body.dry_run:
        after = decide.foresee(body.id, wanted, consent)
        await decide.need_config(after)
        return _foreseen(ask, views.plugin(ask.api, after), after)
    record, changed = await decide.change(ask.actor, body.id, wanted, consent)
    return _decided(ask, record, changed)


async def upgrade(ask: Ask) -> dict[str, Any]:
    """Replace the accepted version of a plugin by its candidate; with `dry_run`, show what that would change."""
    body = await ask.body(Upgrade)
    consent = replace(_consent(body), publisher=body.accept_publisher, retry=body.retry)
    if consent.needs_host_scope:
        ask.need(Scope.HOST)
    decide = ask.api.lifecycle.decisions
    if body.dry_run:
        after = decide.foresee(ask.part("id"), "upgrade", consent)
        await decide.need_config(after)
        return _foreseen(ask, views.foreseen(ask.api, _record(ask), after), after)
    record, changed = await decide.upgrade(ask.actor, ask.part("id"), consent)
    return _decided(ask, record, changed)


def _decided(ask: Ask, record: Record, changed: bool) -> dict[str, Any]:  # noqa: FBT001 - as the lifecycle has it
    """The plugin after a decision; `changed` is false of one that was so already."""
    return views.plugin(ask.api, record) | ({} if changed else {"changed": False})


def _foreseen(ask: Ask, plain: dict[str, Any], after: Record) -> dict[str, Any]:
    """`plain`, the plugin as a dry run foresees it, with what it takes to have exactly that."""
    now = ask.api.lifecycle.records.get(after.id)
    return plain | {"identity": after.facts.identity} | ({"changed": False} if after is now else {})


async def rollback(ask: Ask) -> dict[str, Any]:
    """Return to a version that was kept; with `dry_run`, show what that would change."""
    body = await ask.body(RollbackBody)
    wanted = WantedVersion(to=body.to, snapshot=body.snapshot, consent=_consent(body))
    if wanted.consent.needs_host_scope:
        ask.need(Scope.HOST)
    decide = ask.api.lifecycle.decisions
    if body.dry_run:
        after = await decide.foresee_rollback(ask.part("id"), wanted)
        return views.foreseen(ask.api, _record(ask), after)
    return views.plugin(ask.api, await decide.rollback(ask.actor, ask.part("id"), wanted))


async def restart(ask: Ask) -> dict[str, Any]:
    """Stop an active plugin and start it again, and close its breaker."""
    await ask.body(Nothing)
    record = await ask.api.lifecycle.decisions.restart(ask.actor, ask.part("id"))
    return views.plugin(ask.api, record)


async def forget(ask: Ask) -> Forgotten:
    """Forget a plugin that is not active: only its publisher and highest version stay on record.

    Its data stays unless `purge` is set; the answer says how much.
    """
    purge = (await ask.body(Forget)).purge
    record, left = await ask.api.lifecycle.decisions.forget(ask.actor, ask.part("id"), purge=purge)
    ask.api.outputs.forget(record.id)
    ask.api.history.forget(record.id)
    ask.api.spawner.usage.forget(record.id)
    data: DataLeft = {
        "values": left.values,
        "files": left.files,
        "notifications": left.notifications,
        "services": left.services,
    }
    return {"id": record.id, "forgotten": record.forgotten, "purged": purge, "data": data}


async def show(ask: Ask) -> dict[str, Any]:
    """One plugin with its verdict, grants and last denials; with `explain=1` also what keeps it from working."""
    record = _record(ask)
    actor = str(Actor(kind="plugin", name=record.id))
    # Nothing is counted of a plugin that made no call.
    count = ask.api.supervisor.calls().get(record.id) or Count()
    denials = await rows.query_in_parts(
        ask.api.ledger.read_slow,
        chains=chain.NAMES,
        actor=actor,
        decision="deny",
        newest_first=True,
        limit=SHOWN_DENIALS,
    )
    # Again: a gate may have been decided while the denials were read.
    record = _record(ask)
    trouble = ask.api.lifecycle.presence(record.id).trouble
    # No trouble means that the accepted bundle is there and verifies.
    report: dict[str, Any] = {
        "plugin": views.plugin(ask.api, record),
        "identity": record.facts.identity,
        "verdict": {
            "ok": trouble is None,
            "code": trouble.code if trouble else None,
            "reason": trouble.reason if trouble else None,
            "hint": (trouble.hint or None) if trouble else None,
        },
        "grants": views.grants(ask.api, record),
        "kept": views.kept(ask.api, record),
        "calls": {"made": count.calls, "denied": count.denied},
        "resources": views.resources(ask.api, record.id),
        "schedules": views.schedules(ask.api, record),
        "denials": denials if Scope.OPERATE in ask.scopes else [_for_readers(event) for event in denials],
    }
    if ask.query(About).explain == "1":
        report["causes"] = await explain.causes(ask.api, record, denials)
    return report


def _for_readers(event: dict[str, Any]) -> dict[str, Any]:
    """As in streams of events: what was asked for (sizes, digests) takes the scope that lets somebody ask.

    What would lift the denial stays, by which `latticectl explain` knows whether it would happen again; `reason` names
    it, too.
    """
    return {**event, "detail": {key: value for key, value in event["detail"].items() if key == FIX}}


async def rejected(ask: Ask) -> web.StreamResponse:
    """Every bundle on disk that may not run, with code and reason."""
    found, asked = ask.api.lifecycle.rejected(), ask.query(RejectedFilter)
    about = asked.about

    def wanted(name: str) -> bool:
        claimed = found[name].manifest
        return about is None or about in {escape(name.partition("/")[2]), claimed.id if claimed else None}

    def row(name: str) -> bytes:
        return json.dumps(views.rejected(name.partition("/")[2], found[name]), separators=(",", ":")).encode("ascii")

    names = sorted(filter(wanted, found))[: asked.limit]
    if len(names) > ROWS_AT_ONCE:
        return await _long_listing(ask, names, row)
    return web.Response(body=b"[" + b",".join(map(row, names)) + b"]", content_type="application/json")


async def verify(ask: Ask) -> dict[str, Any]:
    """Judge one bundle of the plugin directory now; nothing is stored."""
    name = (await ask.body(PathName)).name
    # A single component, so that nothing outside the plugin directory is judged; the catalog ignores some names, too.
    if not name or "/" in name or "\0" in name or not may_be_bundle(name) or len(os.fsencode(name)) > NAME_BYTES:
        raise Problem("bad_request", f"name: expected the name of a bundle's directory, found {sanitise(name, 80)!r}")
    return views.verdict(name, await ask.api.catalog.judge(f"plugins/{name}"))


async def grants(ask: Ask) -> dict[str, Any]:
    """What a plugin declares, and what of it is granted."""
    return views.grants(ask.api, _record(ask))


async def regrant(ask: Ask) -> dict[str, Any]:
    """Grant and withdraw capabilities and other consents by name, replace the accepted hosts and permits."""
    body = await ask.body(Grants)
    # Parsed apart, so that a mistake in one list is reported as such.
    add, remove = _named(body.grant, upgrading=False), _named(body.trim, upgrading=False)
    wanted = Regrant(
        grant=frozenset(add.caps),
        trim=frozenset(remove.caps),
        hosts=body.hosts,
        permits=body.permits,
        add=add,
        remove=remove,
        force=body.force,
    )
    # Named in both, the result would depend on which is applied first.
    if both := sorted(wanted.grant & wanted.trim):
        raise Problem("bad_request", f"expected a capability to be granted or trimmed, found {both[0][:80]!r} in both")
    if wanted.needs_host_scope:
        ask.need(Scope.HOST)
    return views.grants(ask.api, await ask.api.lifecycle.decisions.regrant(ask.actor, ask.part("id"), wanted))


def _consent(body: Decision | Upgrade | RollbackBody) -> UpgradeConsent:
    """The consents that a body names; Problem bad_request for one that is none."""
    named = _named((*body.accept, *(f"host={host}" for host in body.accept_hosts)))
    return UpgradeConsent(
        accept=frozenset(named.caps),
        hosts=named.hosts,
        permits=named.permits,
        terms=named.terms,
        allow_downgrade=not isinstance(body, RollbackBody) and body.allow_downgrade,
        identity=None if isinstance(body, RollbackBody) else body.identity,
        already_so=not isinstance(body, RollbackBody) and body.already_so,
    )


def _named(texts: tuple[str, ...], *, upgrading: bool = True) -> consents.Named:
    """`texts` (capabilities and `kind=value`) by kind; Problem bad_request for one that is none."""
    try:
        return consents.parse(texts, upgrading=upgrading)
    except consents.BadConsent as bad:
        raise Problem("bad_request", str(bad)) from bad


def _record(ask: Ask) -> Record:
    """The record of the plugin in the path; Problem not_found for an unknown or forgotten one."""
    return ask.api.lifecycle.records[running.known(ask)]
