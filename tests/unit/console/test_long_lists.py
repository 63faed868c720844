"""Lists that are longer than a page: what is shown of them, what is asked for, and how to come to the rest."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qsl

import pytest

from latticed.console import forwarded, pages, templates
from latticed.console.operator import Reader
from latticed.console.pages import Pages
from latticed.model.errors import Problem

EVENT = {"seq": 7, "ts": "2026-01-01T00:00:00Z", "actor": "latticed", "action": "plugin.status", "target": "acme.demo"}


class Daemon:
    """Has so many rejected bundles, an audit record and a task."""

    def __init__(self, bundles: int = 0, **task: Any) -> None:
        self.bundles = bundles
        self.task = task
        self.asked: list[dict[str, Any]] = []

    def ask(self, method: str, parts: tuple[str, ...], query: Mapping[str, Any], body: Mapping[str, Any]) -> Any:
        self.asked.append(dict(query or {}))
        if parts == ("plugins", "rejected"):
            made = min(self.bundles, int(query["limit"]))
            return [{"name": f"b{number:06}", "code": "digest_mismatch", "reason": "r"} for number in range(made)]
        if parts == ("audit",):
            return {"events": [EVENT], "next": None, "older": "7.1"}
        if parts[0] == "tasks":
            return {"id": "5c0f", "plugin": "acme.demo", "state": "failed", **self.task}
        raise Problem("not_found", "there is no plugin 'acme.gone'", "latticectl list")

    def when(self, moment: str) -> str:
        return moment


async def shown(daemon: Daemon, name: str, *arguments: str, **query: str) -> str:
    made = templates.environment()
    made.globals.update(base="/base", act=False, with_fleet=False, when=daemon.when, may_consent=forwarded.may_consent)
    with ThreadPoolExecutor(4) as threads:
        reading = Pages(daemon, Reader(daemon, act=False), threads, act=False)  # type: ignore[arg-type]
        page = await getattr(reading, name)(query, *arguments)
        return html.unescape(
            made.get_template(f"{page.template}.html").render(notes=[], live=page.live, **page.context)
        )


@pytest.mark.parametrize("search", ["", "b0", "b09999"])
async def test_many_rejected_bundles_are_shown_and_searched_in_part(search: str):
    daemon = Daemon(bundles=100_000)
    page = await shown(daemon, "rejected", q=search)
    assert daemon.asked == [{"limit": pages._MOST_REJECTED + 1}]
    assert "There are more: these are the first 5000" in page
    assert page.count('class="card bad"') == (0 if search == "b09999" else 50)


async def test_few_rejected_bundles_are_all_there_are():
    page = await shown(Daemon(bundles=pages._MOST_REJECTED), "rejected")
    assert "There are more" not in page
    assert "5000 of 5000" in page


async def test_older_events_are_on_the_next_page_under_the_same_filters():
    daemon = Daemon()
    page = await shown(daemon, "audit", actor="plugin:acme.demo", calls="1", q="")
    (link,) = re.findall(r'/base/audit\?([^"]+)" rel="next">Older', page)
    query = dict(parse_qsl(link))
    assert query == {"actor": "plugin:acme.demo", "calls": "1", "after": "7.1"}
    await shown(daemon, "audit", **query)
    asked = [one for one in daemon.asked if "newest" in one]
    assert asked[1] == {**asked[0], "after": "7.1"}


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"exit_code": 3}, "It ended with exit code 3."),
        ({"exit_code": 0}, "It ended with exit code 0."),
        ({"exit_code": None, "signal": 9}, "It was ended by signal 9."),
        ({"exit_code": None, "signal": None}, ""),
    ],
)
async def test_a_task_that_ended_has_its_exit_code(task: dict[str, Any], said: str):
    page = await shown(Daemon(**task), "task", "5c0f")
    found = re.findall(r"<p>(It ended with[^<]*|It was ended[^<]*)</p>", page)
    assert found == ([said] if said else [])


async def test_the_log_of_a_plugin_that_is_not_there_is_no_page():
    """As its own page: nothing is followed for ever."""
    with pytest.raises(Problem, match="not_found"):
        await shown(Daemon(), "logs", "acme.gone")
