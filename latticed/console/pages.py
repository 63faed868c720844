"""The pages: what each asks the daemon for, and what its template gets. Nothing here changes anything."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlencode

from latticed import __version__
from latticed.console import fleet, overview, plain, plugin, templates
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor

    from latticed.console.operator import Operator, Reader

_FRESH_S: Final = 1.0
"""For how long a long list is not asked for anew: many tabs hear of one change at once."""
_DOCTOR_S: Final = 60.0
_DOCTOR_WAIT_S: Final = 3.0
"""The overview waits no longer for what `doctor` finds."""
_LOG_LINES: Final = 200
_LOG_WAIT_S: Final = 20
_MOST_FOLLOWING: Final = 6
"""Logs that wait for lines, on a thread each; more are answered at once, and ask again a moment later."""
_LISTED: Final = 100
_MOST_REVIEWS: Final = 8
_MOST_REJECTED: Final = 5_000
"""Refused bundles that are listed and searched; a page of more says so."""
_MOST_LINES: Final = 4_000
"""Of a script or a difference; a page of more says that it does not show all."""
_WITHIN: Final = MappingProxyType(
    {"hour": ("the last hour", 3600), "day": ("the last day", 86_400), "week": ("the last week", 7 * 86_400)}
)
_AUDIT_FILTERS: Final = ("actor", "action", "target", "decision")


class Section(NamedTuple):
    """A part of a page: what was answered, or why there is nothing."""

    data: Any = None
    problem: Problem | None = None


class ShownText(NamedTuple):
    """The lines of a text. `whole`: whether a page that shows them shows all of it."""

    lines: list[str]
    whole: bool


class HtmlPage(NamedTuple):
    """A template and what it gets; `live`: what has to change for this page to be asked for anew, `*` for anything."""

    template: str
    context: dict[str, Any]
    live: str = ""


class Pages:
    """One method for each page of `addresses`; each gets the arguments of the path, and the query."""

    def __init__(self, operator: Operator, reader: Reader, threads: Executor, *, act: bool) -> None:
        self._operator = operator
        self._reader = reader
        self._threads = threads
        self._act = act
        self._following = 0
        self._kept: dict[str, tuple[float, asyncio.Task[Section]]] = {}
        # By plan, the last one last: its state, when the helper was asked, and its review.
        self._reviews: dict[str, tuple[str, float, Section]] = {}

    def forget(self) -> None:
        """Share no list any more that was asked for before now: something has changed."""
        for name in ("plugins", "rejected"):
            self._kept.pop(name, None)

    async def overview(self, query: Mapping[str, str]) -> HtmlPage:
        """Counts, what needs attention, and a page of the table."""
        rows, status, planned, findings = await asyncio.gather(
            self._fresh("plugins", lambda: overview.rows(self._reader.get("plugins", "brief"))),
            self._section(lambda: self._reader.get("status")),
            self._section(lambda: self._reader.get("plans", query={"state": "unconfirmed"})),
            self._findings(),
        )
        wanted = overview.view(query)
        found = rows.data or []
        context = {
            "problem": rows.problem,
            "counts": overview.counts(found),
            "attention": overview.attention(found),
            "page": overview.page(found, wanted),
            "view": wanted,
            "sorts": overview.SORTS,
            "rejected": plain.number(status.data, "rejected"),
            "troubles": plain.rows(status.data, "problems"),
            "version": other if (other := plain.text(status.data, "version")) != __version__ else "",
            "own_version": __version__,
            "unconfirmed": plain.rows(planned.data, "plans"),
            "findings": [one for one in findings or [] if one.state in {"look", "bad"} and one.check != "daemon"],
            "looking": findings is None,
        }
        return HtmlPage("overview", context, _live("*", rows.problem))

    async def plugin(self, _query: Mapping[str, str], plugin_id: str) -> HtmlPage:
        """One plugin: why it is as it is, what it may do, what it did."""
        about, explained, usage, history = await asyncio.gather(
            self._section(lambda: self._reader.get("plugins", "by-id", plugin_id)),
            self._section(lambda: self._operator.explain(self._reader, plugin_id)),
            self._section(lambda: self._reader.get("plugins", "by-id", plugin_id, "usage")),
            self._section(lambda: self._reader.get("plugins", "by-id", plugin_id, "history")),
        )
        if about.problem and explained.problem:
            raise about.problem
        kinds = await asyncio.gather(*(self._delegated(kind, plugin_id) for kind in _DELEGATED))
        record = plain.mapping(about.data, "plugin")
        context = {
            "id": plugin_id,
            "plugin": record,
            "identity": plain.text(about.data, "identity"),
            "runtime": plain.mapping(record, "runtime"),
            "explained": explained.data,
            "steps": plugin.steps(explained.data.steps) if explained.data else [],
            "explain_problem": explained.problem,
            "groups": plugin.by_risk(record, usage.data),
            "usage": usage.data if isinstance(usage.data, dict) else {},
            "usage_problem": usage.problem,
            "reached": plain.rows(usage.data, "hosts"),
            "hosts": plugin.hosts(plain.mapping(about.data, "grants"), usage.data),
            "permits": plain.texts(plain.mapping(about.data, "grants"), "permits"),
            "withheld": plugin.withheld(plugin_id, plain.mapping(about.data, "grants")),
            "calls": plain.rows(usage.data, "calls"),
            "day": plugin.day(history.data),
            "since": plain.text(history.data, "since"),
            "history_problem": history.problem,
            "candidate": plugin.candidate(record),
            "kept": plain.rows(about.data, "kept"),
            "schedules": plain.rows(about.data, "schedules"),
            "denials": plain.rows(about.data, "denials"),
            "delegated": list(zip(_DELEGATED.values(), kinds, strict=True)),
            "acts": list(plugin.acts(record)) if self._act else [],
        }
        return HtmlPage("plugin", context, _live(plugin_id, about.problem))

    async def logs(self, _query: Mapping[str, str], plugin_id: str) -> HtmlPage:
        """The newest lines of a plugin's log."""
        found = await self._section(
            lambda: self._reader.get("plugins", "by-id", plugin_id, "logs", query={"limit": _LOG_LINES})
        )
        # One that was forgotten, or never was: there is nothing to follow.
        if found.problem and found.problem.code == "not_found":
            raise found.problem
        return HtmlPage("logs", {"id": plugin_id, **_lines(found)})

    async def log_lines(self, query: Mapping[str, str], plugin_id: str) -> HtmlPage:
        """The lines after a number, waiting for them."""
        given = query.get("after", "")
        after = int(given) if given.isascii() and given.isdigit() and len(given) < 17 else 0
        wait_s = _LOG_WAIT_S if self._following < _MOST_FOLLOWING else 0
        asked = {"after": after, "limit": _LOG_LINES, "wait_s": wait_s}
        self._following += 1
        try:
            found = await self._section(lambda: self._reader.get("plugins", "by-id", plugin_id, "logs", query=asked))
        finally:
            self._following -= 1
        if found.problem:
            raise found.problem
        return HtmlPage("log_lines", {"id": plugin_id, **_lines(found)})

    async def rejected(self, query: Mapping[str, str]) -> HtmlPage:
        """Every refused bundle, a page at a time."""
        wanted = overview.view(query)
        word = wanted.search.casefold()
        found = await self._fresh(
            "rejected",
            lambda: plain.rows(self._reader.get("plugins", "rejected", query={"limit": _MOST_REJECTED + 1})),
        )
        every = found.data or []
        shown = every[:_MOST_REJECTED]
        kept = [one for one in shown if word in "\0".join(map(str, one.values())).casefold()] if word else shown
        context = {
            "problem": found.problem,
            "page": overview.paged(kept, wanted.page, total=len(shown)),
            "view": wanted,
            "more": len(every) > len(shown),
        }
        return HtmlPage("rejected", context, _live("*", found.problem))

    async def market(self, query: Mapping[str, str]) -> HtmlPage:
        """The sources, what is being taken, and all that is offered."""
        word = query.get("q", "")[:128]
        asked = {"limit": _LISTED, "text": word or None, **_after(query)}
        glance, offers, outdated = await asyncio.gather(
            self._section(lambda: self._reader.get("market")),
            self._section(lambda: self._reader.get("market", "plugins", query=asked)),
            self._section(lambda: self._reader.get("market", "outdated")),
        )
        problem = glance.problem or offers.problem
        context = {
            "search": word,
            "problem": problem,
            "sources": plain.rows(glance.data, "sources"),
            "taking": _takings(glance),
            "held": plain.texts(glance.data, "held"),
            "offers": plain.rows(offers.data, "plugins"),
            "next": plain.text(offers.data, "next"),
            "outdated": plain.rows(outdated.data, "plugins") or plain.rows(outdated.data),
        }
        return HtmlPage("market", context, _live("*", problem))

    async def offer(self, _query: Mapping[str, str], plugin_id: str) -> HtmlPage:
        """One plugin of an index, with what it would be permitted."""
        found, glance = await asyncio.gather(
            self._section(lambda: self._reader.get("market", "plugins", plugin_id)),
            self._section(lambda: self._reader.get("market")),
        )
        manifest = plain.mapping(found.data, "manifest")
        asked = {"id": plugin_id, "capabilities": plain.texts(manifest, "capabilities"), "granted": []}
        must = plain.texts(manifest, "must_accept")
        context = {
            "id": plugin_id,
            "problem": found.problem,
            "offer": found.data if isinstance(found.data, dict) else {},
            "manifest": manifest,
            "groups": plugin.by_risk(asked, {"enough": False}),
            "must": must,
            "taking": [one for one in _takings(glance) if one["id"] == plugin_id],
            **plugin.take(plugin_id, must),
        }
        # The daemon fetches the manifest from its source: not for whatever happens.
        return HtmlPage("offer", context, _live(plugin_id, found.problem))

    async def plans(self, query: Mapping[str, str]) -> HtmlPage:
        """The newest plans."""
        found = await self._section(lambda: self._reader.get("plans", query={"limit": _LISTED, **_after(query)}))
        context = {
            "problem": found.problem,
            "plans": plain.rows(found.data, "plans"),
            "helper": plain.text(found.data, "helper"),
            "next": plain.text(found.data, "next"),
        }
        return HtmlPage("plans", context, _live("*", found.problem))

    async def plan(self, _query: Mapping[str, str], sha: str, *, again: bool = False) -> HtmlPage:
        """One plan: what was asked for, and what the root helper would do.

        `again`: the page asks for itself. The helper makes a review by running its tools: then it is asked for another
        one where the plan's state has changed, or it made none.
        """
        found = await self._section(lambda: self._reader.get("plans", sha))
        state, at_s, review = self._reviews.pop(sha, ("", 0.0, Section()))
        if not again or not at_s or review.problem or state != plain.text(found.data, "state"):
            state, at_s = plain.text(found.data, "state"), time.monotonic()
            review = await self._section(lambda: self._operator.review(sha))
        self._reviews[sha] = (state, at_s, review)
        if len(self._reviews) > _MOST_REVIEWS:
            self._reviews.pop(next(iter(self._reviews)))
        if found.problem and review.problem:
            raise found.problem
        deadline = (review.data or {}).get("deadline_s")
        left_s = deadline - (time.monotonic() - at_s) if isinstance(deadline, (int, float)) else 0
        context = {
            "sha": sha,
            "plan": found.data if isinstance(found.data, dict) else {},
            "review": review.data or {},
            "review_problem": review.problem,
            "diff": _shown(plain.text(review.data, "diff")),
            "findings": plain.rows(review.data, "findings"),
            "overridden": plain.rows(review.data, "overridden"),
            "intent": _indented(plain.mapping(found.data, "intent")),
            "left_s": int(left_s) if 0 < left_s < 1e6 else 0,
        }
        return HtmlPage("plan", context, _live("*", found.problem))

    async def tasks(self, query: Mapping[str, str]) -> HtmlPage:
        """The newest tasks."""
        found = await self._section(lambda: self._reader.get("tasks", query={"limit": _LISTED, **_after(query)}))
        rows, following = plain.rows(found.data, "tasks"), plain.text(found.data, "next")
        context = {"problem": found.problem, "tasks": rows, "next": following}
        return HtmlPage("tasks", context, _live("*", found.problem))

    async def task(self, _query: Mapping[str, str], task: str) -> HtmlPage:
        """One task with its script, to be read before it is approved elsewhere."""
        found = await self._section(lambda: self._reader.get("tasks", task))
        if found.problem:
            raise found.problem
        texts = {name: _shown(plain.text(found.data, name)) for name in ("script", "stdout", "stderr")}
        context = {"task": found.data, "texts": texts, "arguments": plain.texts(found.data, "targets")}
        return HtmlPage("task", context, "*")

    async def audit(self, query: Mapping[str, str]) -> HtmlPage:
        """The newest events, and whether both chains hold."""
        filters = {name: query[name][:256] for name in _AUDIT_FILTERS if query.get(name)}
        calls = {"calls": 1} if query.get("calls") == "1" else {}
        within = query.get("within", "")
        since = _since(within, time.time())
        found, chains = await asyncio.gather(
            self._section(
                lambda: self._reader.get(
                    "audit", query={"newest": 1, "limit": _LISTED, **_after(query), **calls, **since, **filters}
                )
            ),
            self._section(lambda: self._reader.get("audit", "verify")),
        )
        context = {
            "problem": found.problem,
            "events": plain.rows(found.data, "events"),
            "filters": {name: filters.get(name, "") for name in _AUDIT_FILTERS},
            "calls": bool(calls),
            "within": within,
            "spans": {name: said for name, (said, _) in _WITHIN.items()},
            "older": _older(found, {**filters, **calls, "within": within}),
            "chain": chains.data if isinstance(chains.data, dict) else {},
            "chain_problem": chains.problem,
        }
        return HtmlPage("audit", context, _live("*", found.problem))

    async def notifications(self, query: Mapping[str, str]) -> HtmlPage:
        """The newest notifications, and how their channels are."""
        found = await self._section(
            lambda: self._reader.get("notifications", query={"limit": _LISTED, **_after(query)})
        )
        context = {
            "problem": found.problem,
            "notifications": plain.rows(found.data, "notifications"),
            "channels": plain.rows(found.data, "channels"),
            "next": plain.text(found.data, "next"),
        }
        return HtmlPage("notifications", context, _live("*", found.problem))

    async def health(self, _query: Mapping[str, str]) -> HtmlPage:
        """What `latticectl doctor` finds."""
        found = await self._section(self._operator.doctor)
        status = await self._section(lambda: self._reader.get("status"))
        context = {"problem": found.problem, "findings": found.data or [], "status": status.data or {}}
        return HtmlPage("health", context, _live("*", found.problem or status.problem))

    async def fleet(self, query: Mapping[str, str]) -> HtmlPage:
        """What the fleet's controller has of all nodes."""
        after = query.get("after", "")[:256]
        asked = {"limit": fleet.PER_PAGE, "after": after or None}
        found, page = await asyncio.gather(
            self._fresh("fleet", lambda: self._reader.get("fleet")),
            self._section(lambda: self._reader.get("fleet", "nodes", query=asked)),
        )
        problem = found.problem or page.problem
        context = fleet.overview(found.data, page.data, problem=problem, after=after)
        return HtmlPage("fleet", context, _live("*", problem))

    async def fleet_node(self, _query: Mapping[str, str], name: str) -> HtmlPage:
        """What the fleet's controller has of one node."""
        found, events = await asyncio.gather(
            self._section(lambda: self._reader.get("fleet", "nodes", name)),
            self._section(lambda: self._reader.get("fleet", "events", query={"node": name, "limit": fleet.EVENTS})),
        )
        if found.problem:
            raise found.problem
        return HtmlPage("fleet_node", fleet.node(found.data, events.data, problem=events.problem), "*")

    async def _delegated(self, kind: str, plugin_id: str) -> Section:
        query = {"plugin": plugin_id, "limit": _LISTED}
        found = await self._section(lambda: self._reader.get(kind, query=query))
        return Section(plugin.delegated(kind, found.data, plugin_id), found.problem)

    async def _findings(self) -> list[Any] | None:
        """What `doctor` found within the last minute; None while it still looks."""
        task = self._shared("doctor", self._operator.doctor, _DOCTOR_S)
        done, _ = await asyncio.wait({task}, timeout=_DOCTOR_WAIT_S)
        return (task.result().data or []) if done else None

    async def _fresh(self, name: str, ask: Callable[[], Any]) -> Section:
        """A long answer, shared by those who ask for it within a second."""
        return await asyncio.shield(self._shared(name, ask, _FRESH_S))

    def _shared(self, name: str, ask: Callable[[], Any], fresh_s: float) -> asyncio.Task[Section]:
        now_s = time.monotonic()
        kept = self._kept.get(name)
        # One that still runs is shared however old it is: another beside it would make both slower.
        if kept is None or (kept[1].done() and now_s - kept[0] > fresh_s):
            kept = self._kept[name] = (now_s, asyncio.create_task(self._section(ask)))
        return kept[1]

    async def _section(self, ask: Callable[[], Any]) -> Section:
        """What was answered, or the Problem."""
        loop = asyncio.get_running_loop()
        try:
            return Section(await loop.run_in_executor(self._threads, ask))
        except Problem as problem:
            return Section(None, problem)


_DELEGATED: Final = {
    "routes": "HTTP routes",
    "monitors": "Monitors",
    "services": "Services",
    "ddns": "DNS records",
}


def _takings(glance: Section) -> list[dict[str, Any]]:
    """What is being taken from the market now, with its steps."""
    rows = plain.rows(glance.data, "taking")
    return [
        {"id": plain.text(one, "id"), "version": plain.text(one, "version"), "steps": plugin.taking(one)}
        for one in rows
    ]


def _live(what: str, refused: Problem | None) -> str:
    """`what` a page is asked for anew at; nothing where what it is for is refused, whatever happens."""
    return "" if refused and refused.code == "access_denied" else what


def _since(within: str, now_s: float) -> dict[str, str]:
    """From when on events are asked for."""
    if within not in _WITHIN:
        return {}
    return {"since": datetime.fromtimestamp(now_s - _WITHIN[within][1], UTC).isoformat(timespec="seconds")}


def _lines(found: Section) -> dict[str, Any]:
    """What the templates of a log get."""
    return {
        "problem": found.problem,
        "lines": plain.rows(found.data, "lines"),
        "next": plain.number(found.data, "next"),
    }


def _after(query: Mapping[str, str]) -> dict[str, str]:
    """The cursor of a following page, as the daemon gave it."""
    return {"after": query["after"][:256]} if query.get("after") else {}


def _older(found: Section, asked: Mapping[str, Any]) -> str:
    """The query of the page with older events, empty where there are none."""
    cursor = plain.text(found.data, "older")
    return urlencode({**{name: one for name, one in asked.items() if one}, "after": cursor}) if cursor else ""


def _shown(said: str) -> ShownText:
    lines = said.removesuffix("\n").replace("\t", "    ").split("\n") if said else []
    whole = len(lines) <= _MOST_LINES and all(len(one) <= templates.MOST for one in lines)
    return ShownText(lines[:_MOST_LINES], whole)


def _indented(value: Any) -> ShownText:
    return _shown(json.dumps(value, indent=2, ensure_ascii=False) if value else "")
