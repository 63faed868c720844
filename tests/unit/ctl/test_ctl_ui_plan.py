"""The console's page of a plan: what latticectl plan show says of it, and when the root helper is asked."""

from __future__ import annotations

import re
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor

import pytest

from latticed.console import templates
from latticed.console.operator import Reader
from latticed.console.pages import Pages
from latticed.ctl import ui
from latticed.ctl.session import CtlSession
from tests.house import api_server, root_helpers

pytestmark = pytest.mark.root

PLAN, REVIEW = "3f0c91ab" + "0" * 56, "91aa" * 16
FINDING = {"code": "lockout_source", "path": "bindings", "expected": "a way in for 192.0.2.7", "found": "none"}
REVIEWED = {
    "plan": PLAN,
    "kind": "nft",
    "target": "table inet latticed_guard",
    "state": "planned",
    "review": REVIEW,
    "diff": "+ port 22\n",
    "intent": {},
    "narrows": False,
    "findings": [],
    "overridden": [],
}
APPROVE = f"latticectl plan approve {PLAN[:12]} {REVIEW}"


class _Shown:
    """The page of the plan, asked for by the console's own operator; `state` sets it at the daemon and the helper."""

    def __init__(self, api, helper, pages, operator):
        self.api, self.helper, self.pages = api, helper, pages
        self.html = templates.environment()
        self.html.globals.update(base="/b", act=False, with_fleet=False, when=operator.when)

    def state(self, word, **more):
        self.helper.answers["review"] = {**REVIEWED, "state": word, **more}
        plan = {"sha256": PLAN, "kind": "nft", "state": word, "intent": {}}
        self.api.override[f"GET plans/{PLAN}"] = 200, plan

    async def text(self, *, again=False):
        page = await self.pages.plan({}, PLAN, again=again)
        html = self.html.get_template("plan.html").render(notes=[], live=page.live, **page.context)
        return " ".join(re.sub(r"<[^>]+>", " ", html).split())

    def reviews(self):
        return self.helper.verbs().count("review")


@pytest.fixture
def shown(tmp_path):
    settings = tmp_path / "latticed.toml"
    settings.write_text(f'[apply]\nsocket = "{tmp_path}/apply.sock"\n')
    with (
        api_server.serving(tmp_path / "api.sock") as api,
        root_helpers.serving(tmp_path / "apply.sock") as helper,
        ThreadPoolExecutor(2) as threads,
    ):
        args = Namespace(socket=str(api.socket), config=str(settings))
        operator = ui._Caller(CtlSession(args=args, screen=None, environ={}))
        yield _Shown(api, helper, Pages(operator, Reader(operator, act=False), threads, act=False), operator)


@pytest.mark.parametrize("state", ["planned", "stale", "rolled_back", "failed"])
async def test_a_plan_that_waits_for_it_has_the_command_that_approves_it(shown, state):
    shown.state(state)
    assert APPROVE in await shown.text()


@pytest.mark.parametrize("state", ["approved", "applying", "unconfirmed", "applied", "refused"])
async def test_a_plan_that_cannot_be_approved_says_nothing_of_it(shown, state):
    """The command that stood there failed."""
    shown.state(state)
    text = await shown.text()
    assert "for table inet latticed_guard" in text
    assert "Approve" not in text
    assert "plan approve" not in text


async def test_a_plan_that_narrows_needs_no_approval_and_says_so(shown):
    shown.state("planned", narrows=True)
    text = await shown.text()
    assert "it may be applied without approval" in text
    assert "plan approve" not in text


async def test_what_stands_against_a_plan_is_to_be_mended_or_overridden_by_name(shown):
    """Without that the command is refused."""
    shown.state("planned", findings=[FINDING])
    assert f"Mend the findings, or add --override lockout_source to: {APPROVE}" in await shown.text()
    shown.state("approved", overridden=[FINDING])
    assert "Approved in spite of lockout_source : expected a way in for 192.0.2.7, found none" in await shown.text()


async def test_a_page_that_asks_for_itself_again_asks_a_helper_again_that_made_no_review(shown):
    """It was busy, for example: the page would show no review for as long as the state stays."""
    shown.state("unconfirmed")
    shown.helper.answers["review"] = root_helpers.fault("busy", "another change is under way")
    assert "another change is under way" in await shown.text()
    shown.state("unconfirmed")
    assert "+ port 22" in await shown.text(again=True)


async def test_a_page_that_asks_for_itself_again_asks_the_helper_only_for_another_state(shown):
    """A review runs the helper's tools; the page shows the one that it has, and opened by hand a new one."""
    shown.state("planned")
    text = await shown.text()
    for _ in range(3):
        assert await shown.text(again=True) == text
    assert shown.reviews() == 1
    shown.state("refused")
    assert "refused" in await shown.text(again=True)
    assert shown.reviews() == 2
    await shown.text(again=True)
    assert shown.reviews() == 2
    await shown.text()
    assert shown.reviews() == 3
