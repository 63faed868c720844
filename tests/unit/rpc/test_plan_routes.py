"""GET /api/plans: the handlers over a real ledger and a scripted root helper."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from types import SimpleNamespace

import msgspec
import pytest

from latticed.host.network.apply_client import ApplyHelper
from latticed.host.network.keeper import PlanKeeper
from latticed.ledger import open_ledger
from latticed.model import plan as plans
from latticed.model.errors import Problem
from latticed.rpc import plans as handlers
from tests.house import root_helpers
from tests.house.clocks import ManualClock
from tests.house.plugin_secrets import no_secrets


@dataclass
class Asked:
    """A decoded request, as handlers get it: stands in for `rpc.api.Ask`."""

    api: SimpleNamespace
    path: dict = field(default_factory=dict)
    given: dict = field(default_factory=dict)

    def part(self, name):
        return self.path[name]

    def query(self, kind):
        return msgspec.convert(self.given, kind, strict=False)


@contextlib.asynccontextmanager
async def opened(directory):
    clock = ManualClock()
    with root_helpers.serving(directory / "apply.sock") as helper:
        async with open_ledger(directory / "state", clock=clock) as ledger:
            asked = ApplyHelper(directory / "apply.sock", uid=os.geteuid())
            rights = dict.fromkeys(("may_plan", "may_apply"), lambda _: True)
            keeper = PlanKeeper(ledger, asked, clock=clock, secrets_of=no_secrets, kinds={}, **rights)
            yield SimpleNamespace(plans=keeper, helper=helper, clock=clock)


async def planned(api, plugin_id, kind="nft", **intent):
    form = plans.canonical(kind, intent)
    sha256 = plans.sha256(form)
    api.helper.answers["offer"] = root_helpers.moved(sha256, "planned")
    await api.plans.plan(plugin_id, kind, form.decode(), sha256, intent)
    return sha256


async def test_plans_are_listed_newest_first_in_pages(tmp_path):
    """By state and plugin; as the helper reports them at that moment."""
    async with opened(tmp_path) as api:
        mine = [await planned(api, "acme.a", kind, n=n) for n, kind in enumerate(("nft", "nginx", "proxy"))]
        theirs = await planned(api, "acme.b", n=7)
        api.helper.answers["observe"] = root_helpers.observed(
            plans=(root_helpers.plan(mine[1], "approved", review="cd" * 32),)
        )
        first = await handlers.listing(Asked(api, given={"limit": "2"}))
        assert [one["sha256"] for one in first["plans"]] == [theirs, mine[2]]
        rest = await handlers.listing(Asked(api, given={"limit": "2", "after": str(first["next"])}))
        assert [(one["sha256"], one["state"], one["review"]) for one in rest["plans"]] == [
            (mine[1], "approved", "cd" * 32),
            (mine[0], "planned", ""),
        ]
        assert (rest["next"], rest["helper"]) == (None, "")
        of_state = await handlers.listing(Asked(api, given={"state": "approved"}))
        of_plugin = await handlers.listing(Asked(api, given={"plugin": "acme.b"}))
        assert [one["sha256"] for one in of_state["plans"] + of_plugin["plans"]] == [mine[1], theirs]
        assert set(of_state["plans"][0]) == set(handlers.PlanSummary.__annotations__)
        for bad in ({"state": "done"}, {"limit": "0"}, {"limit": "501"}, {"after": "-1"}):
            with pytest.raises(msgspec.ValidationError):
                await handlers.listing(Asked(api, given=bad))


async def test_plan_is_shown_with_its_intent_and_all_that_planned_it(tmp_path):
    async with opened(tmp_path) as api:
        sha256 = await planned(api, "acme.b", ports=[22])
        assert await planned(api, "acme.a", ports=[22]) == sha256
        whole = await handlers.show(Asked(api, {"sha": sha256}))
        assert (whole["intent"], whole["plugins"], whole["plugin"]) == ({"ports": [22]}, ["acme.a", "acme.b"], "acme.a")
        assert set(whole) == {*handlers.PlanSummary.__annotations__, *handlers.PlanWhole.__annotations__}
        for sha in ("0" * 64, sha256[:12], "../x", sha256.upper()):
            with pytest.raises(Problem, match="not_found"):
                await handlers.show(Asked(api, {"sha": sha}))


async def test_answer_says_why_the_helper_cannot_be_asked(tmp_path):
    """States are then those of the last report."""
    async with opened(tmp_path) as api:
        sha256 = await planned(api, "acme.a", n=1)
        api.helper.answers["observe"] = b"no JSON\n"
        for answer in (await handlers.listing(Asked(api)), await handlers.show(Asked(api, {"sha": sha256}))):
            assert answer["helper"] == "the root helper gave an answer that cannot be read"
