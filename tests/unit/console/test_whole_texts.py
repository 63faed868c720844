"""What somebody reads before approving it elsewhere: all of it, or a page that says that it is not all."""

from __future__ import annotations

import html
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from latticed.console import forwarded, templates
from latticed.console.operator import Reader
from latticed.console.pages import Pages
from latticed.ctl import plan_view
from latticed.model.errors import Problem

TASK = {"id": "5c0f", "sha256": "ab" * 32, "state": "submitted", "plugin": "acme.demo", "timeout_s": 60}
PLAN = "ab" * 32
LONG = ["x\n" * 4_000 + "rm -r /srv\n", "# " + "x" * 4_200 + "; rm -r /srv\n"]
SHORT = "x\n" * 3_999 + "\trm -r /srv\n"


@dataclass
class Daemon:
    """Answers of a daemon and a helper; without `answers` neither is there."""

    answers: dict[str, Any] = field(default_factory=dict)

    def ask(self, method: str, parts: tuple[str, ...], query: Mapping[str, Any], body: Mapping[str, Any]) -> Any:
        if parts[0] not in self.answers:
            raise Problem("unreachable", "the daemon is not running", "")
        return self.answers[parts[0]]

    def review(self, plan: str) -> Any:
        found = self.answers["review"]
        return {**found, "approve": plan_view.approval(found)[0]}

    def doctor(self) -> list[Any]:
        return []

    def when(self, moment: str) -> str:
        return moment


async def shown(daemon: Any, name: str, *arguments: str) -> str:
    made = templates.environment()
    made.globals.update(base="/base", act=False, with_fleet=False, when=daemon.when, may_consent=forwarded.may_consent)
    with ThreadPoolExecutor(4) as threads:
        pages = Pages(daemon, Reader(daemon, act=False), threads, act=False)
        page = await getattr(pages, name)({}, *arguments)
        return html.unescape(
            made.get_template(f"{page.template}.html").render(notes=[], live=page.live, **page.context)
        )


@pytest.mark.parametrize("script", LONG, ids=["many lines", "a long line"])
async def test_a_script_that_is_not_shown_whole_has_no_command_that_approves_it(script: str):
    page = await shown(Daemon({"tasks": {**TASK, "script": script}}), "task", "5c0f")
    assert "This is not all of it" in page
    assert "latticectl task show 5c0f" in page
    assert "task approve" not in page


async def test_a_script_that_is_shown_whole_has_it_with_its_arguments():
    task = {**TASK, "script": SHORT, "targets": ["--delete", "/srv"]}
    page = await shown(Daemon({"tasks": task}), "task", "5c0f")
    assert f"latticectl task approve 5c0f {TASK['sha256']}" in page
    for words in ("    rm -r /srv", "<code>--delete</code>", "<code>/srv</code>", "60 s"):
        assert words in page
    assert "This is not all of it" not in page


@pytest.mark.parametrize("diff", LONG, ids=["many lines", "a long line"])
async def test_a_difference_that_is_not_shown_whole_has_no_command_that_approves_it(diff: str):
    answers = {
        "plans": {"sha256": PLAN, "intent": {}},
        "review": {"plan": PLAN, "state": "planned", "diff": diff, "review": "c0de"},
    }
    page = await shown(Daemon(answers), "plan", PLAN)
    assert "This is not all of it" in page
    assert "plan approve" not in page
    answers["review"]["diff"] = SHORT
    assert f"latticectl plan approve {PLAN[:12]} c0de" in await shown(Daemon(answers), "plan", PLAN)


@pytest.mark.parametrize("name", ["overview", "rejected", "market", "plans", "tasks", "audit", "notifications"])
async def test_a_page_without_an_answer_does_not_say_that_there_is_nothing(name: str):
    """The reason is in a part of the page that is exchanged while it is seen."""
    page = await shown(Daemon(), name)
    assert "the daemon is not running" in page.partition('id="problem" data-part')[2][:300]
    assert "Not known." in page
    for words in ("None.", "There is no plugin yet", "No source is set", "Nothing was sent yet", ">0<"):
        assert words not in page, words
