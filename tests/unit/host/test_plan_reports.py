"""Plans and the root helper: what is offered, what is believed of its reports, and what a broken one can do."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import threading
import time
import uuid

import msgspec
import pytest

from latticed.host.call import Caller, HostError
from latticed.host.network import keeper as keepers
from latticed.host.network.apply_client import ApplyHelper
from latticed.host.network.calls import NetworkCalls
from latticed.host.network.keeper import PlanKeeper
from latticed.host.secret import typed
from latticed.host.secret.keeper import SecretKeeper
from latticed.host.secret.key import KeyLocation
from latticed.ledger import audit, open_ledger
from latticed.ledger import plans as rows
from latticed.model import plan
from latticed.model.errors import Problem
from latticed.model.hostcall import Denial
from latticed.plans import protocol
from tests.house import root_helpers
from tests.house.clocks import ManualClock

A = Caller(plugin_id="acme.guard")
KEY = base64.b64encode(bytes(range(32))).decode()


class Site:
    """The service with a scripted helper; `user`: who the helper has to be."""

    def __init__(self, ledger, home, helper, *, user=None):
        self.ledger, self.helper, self.clock, self.may = ledger, helper, ManualClock(), True
        self.secrets = SecretKeeper(ledger, KeyLocation(path=home / "secrets.key", ours=True), clock=self.clock)
        asked = ApplyHelper(home / "apply.sock", uid=os.geteuid() if user is None else user)
        rights = dict.fromkeys(("may_plan", "may_apply"), lambda _: self.may)
        self.plans = PlanKeeper(ledger, asked, clock=self.clock, secrets_of=self.secrets.for_plugin, kinds={}, **rights)
        self.service = NetworkCalls(self.plans, clock=self.clock)

    async def call(self, method, **params):
        served = next(one for one in self.service.calls() if one.method == f"network.{method}")
        return await served.answer(A, msgspec.convert(params, served.params, strict=True))

    async def refused(self, method, **params):
        with pytest.raises(HostError) as caught:
            await self.call(method, **params)
        return caught.value

    async def planned(self, **intent):
        return (await self.call("plan", kind="nft", intent=intent))["sha256"]

    async def report(self, **observed):
        self.helper.answers["observe"] = root_helpers.observed(**observed)
        await self.plans.refresh(anew=True)

    def row(self, sha256):
        return self.ledger.read(lambda db: rows.get(db, A.plugin_id, sha256))

    def steps(self):
        """(action, code, actor) of the copies."""
        found = self.ledger.read(lambda db: audit.query(db, limit=500))
        return [(one["action"], one["code"], one["actor"]) for one in found if one["action"].startswith("plan.")]


@pytest.fixture
async def ledger(tmp_path):
    async with open_ledger(tmp_path / "state", clock=ManualClock()) as found:
        yield found


@pytest.fixture
def home(tmp_path):
    return tmp_path


@pytest.fixture
def site(ledger, home):
    with root_helpers.serving(home / "apply.sock") as helper:
        helper.answers["offer"] = lambda asked: root_helpers.moved(name_of(asked), "planned")
        yield Site(ledger, home, helper)


def name_of(offer):
    return plan.sha256(plan.canonical(offer["kind"], offer["intent"]))


# Offers.


async def test_plan_is_offered_with_values_of_its_secrets(site):
    """Each once, with the form that its value has; the value is in no row, answer or event."""
    for name, value in (("PSK", KEY), ("USER", "6ff42ae2-765d-4adf-8112-31c55c1551ef"), ("PASS", "hunter2-hunter2\n")):
        await site.secrets.set(name, value)
        await site.secrets.bind(name, A.plugin_id)
    intent = {"psk": "${secret:PSK}", "users": [{"token": "${secret:USER}"}, {"password": "${secret:PASS}"}]}
    answer = await site.call("plan", kind="nft", intent={**intent, "again": ["${secret:PSK}"]})
    (offer,) = site.helper.asked
    assert offer["secrets"] == [
        {"reference": "PASS", "form": "password", "value": "hunter2-hunter2"},
        {"reference": "PSK", "form": "key", "value": KEY},
        {"reference": "USER", "form": "uuid", "value": "6ff42ae2-765d-4adf-8112-31c55c1551ef"},
    ]
    events = site.ledger.read(lambda db: audit.query(db, limit=500))
    assert not re.search("hunter2|" + re.escape(KEY), str((answer, site.row(answer["sha256"]), events)))


@pytest.mark.parametrize("value", ["two words", "x" * 257, 'quo"ted', "\u00fcmlaut", "a\nb c d"])
async def test_secret_that_no_field_can_hold_is_refused_without_its_value(site, value):
    await site.secrets.set("S", value)
    await site.secrets.bind("S", A.plugin_id)
    error = await site.refused("plan", kind="nft", intent={"password": "${secret:S}"})
    assert (error.code, "the secret 'S' cannot be used here" in error.reason) == (Denial.BAD_PARAMS, True)
    assert value not in error.reason
    assert site.helper.asked == []


def test_derived_values_differ_by_label_plugin_secret_and_form():
    """Each in the form of its field; the same again for the same."""
    forms = {form: re.compile(pattern) for form, pattern in protocol.SECRET_FORMS.items()}
    given = [
        (value, plugin, label, form)
        for value in ("one-secret", "another")
        for plugin in ("acme.a", "acme.b")
        for label in ("ada", "bob")
        for form in forms
    ]
    made = [typed.derived(*one) for one in given]
    assert len(set(made)) == len(given)
    assert made == [typed.derived(*one) for one in given]
    for (*_, form), value in zip(given, made, strict=True):
        assert forms[form].fullmatch(value)
    assert uuid.UUID(typed.derived("one-secret", "acme.a", "ada", "uuid")).version == 4


async def test_intent_that_helper_refuses_is_bad_params(site):
    """With each fault; the plan has failed and is not offered again until it is planned again."""
    finding = {"code": "port", "path": "rules[3].ports", "expected": "1 to 65535", "found": "70000\x1b[2J", "hint": ""}
    site.helper.answers["offer"] = root_helpers.fault("intent_refused", "1 fault", findings=[finding])
    error = await site.refused("plan", kind="nft", intent={"n": 1})
    assert error.code is Denial.BAD_PARAMS
    assert "rules[3].ports: expected 1 to 65535, found 70000\\x1b[2J" in error.reason
    (row,) = site.ledger.read(rows.page)
    assert (row.state, row.code) == ("failed", "intent_refused")
    await site.plans.refresh(anew=True)
    await site.plans.offer_again()
    assert site.helper.verbs() == ["offer", "observe"]


@pytest.mark.parametrize("code", ["kind_unknown", "tool_missing", "quota_exceeded", "busy", "a code of tomorrow"])
async def test_plan_that_helper_cannot_take_now_stays_planned(site, code):
    """With the reason, in the answer and in the row; it is offered again after a minute."""
    site.helper.answers["offer"] = root_helpers.fault(code, "not now")
    answer = await site.call("plan", kind="nft", intent={"n": 1})
    assert (answer["ok"], answer["state"], answer["reason"]) == (True, "planned", "not now")
    assert answer["code"] == (code if code in protocol.CODES else "internal")
    await site.plans.refresh(anew=True)
    await site.plans.offer_again()
    assert site.helper.verbs().count("offer") == 1
    site.clock.advance(keepers.REPEAT_S + 1)
    site.helper.answers["offer"] = root_helpers.moved(answer["sha256"], "planned")
    await site.plans.offer_again()
    assert site.helper.verbs().count("offer") == 2
    assert (site.row(answer["sha256"]).code, site.row(answer["sha256"]).reason) == ("", "")


async def test_plan_made_without_helper_is_offered_once_it_runs(ledger, home):
    site = Site(ledger, home, None)
    sha256 = await site.planned(n=1)
    assert site.row(sha256).code == "helper_unavailable"
    with root_helpers.serving(home / "apply.sock") as helper:
        helper.answers["offer"] = root_helpers.moved(sha256, "planned")
        site.helper = helper
        site.clock.advance(keepers.REPEAT_S + 1)
        await site.plans.refresh()
        await site.plans.offer_again()
        assert helper.verbs() == ["observe", "offer"]
        assert (site.plans.trouble, site.row(sha256).code) == ("", "")


async def test_plan_of_a_stopped_plugin_is_not_offered(site):
    """Again, that is: once it may plan, it is."""
    site.helper.answers["offer"] = root_helpers.fault("busy")
    await site.planned(n=1)
    site.may = False
    for wanted in (1, 2):
        site.clock.advance(keepers.REPEAT_S + 1)
        await site.plans.refresh()
        await site.plans.offer_again()
        assert site.helper.verbs().count("offer") == wanted
        site.may = True


async def test_flood_of_plans_leaves_room_at_the_helper(site):
    """It takes 4 requests of one user at a time: offers are at most 2 of them, one of a plugin."""
    now, most = [0], [0]
    counting = threading.Lock()

    def answer(asked):
        with counting:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.005)
        with counting:
            now[0] -= 1
        return root_helpers.moved(name_of(asked), "planned")

    site.helper.answers["offer"] = answer

    async def made(plugin_id, number):
        form = plan.canonical("nft", {"n": number})
        await site.plans.plan(plugin_id, "nft", form.decode(), plan.sha256(form), {"n": number})

    await asyncio.gather(*(made("acme.guard", number) for number in range(20)))
    assert most == [1]
    await asyncio.gather(*(made(f"acme.a{number}", 100 + number) for number in range(20)))
    assert most == [2]


async def test_many_calls_apply_a_plan_once(site):
    """While one waits for its end."""
    sha256 = await site.planned(n=1)
    site.helper.answers["apply"] = lambda _: time.sleep(0.05) or root_helpers.moved(sha256, "applied")
    await asyncio.gather(*(site.call("apply", sha256=sha256) for _ in range(10)))
    assert site.helper.verbs().count("apply") == 1


@pytest.mark.root
async def test_nothing_is_sent_to_a_helper_that_is_not_root(site, ledger, home):
    """Whoever else listens there gets no request, so no value of a secret."""
    site = Site(ledger, home, site.helper, user=12345)
    await site.planned(n=1)
    error = await site.refused("apply", sha256=site.ledger.read(rows.page)[0].sha256)
    assert "what listens as the root helper is uid" in error.reason
    await site.plans.refresh(anew=True)
    assert site.helper.asked == []


# Reports.


async def test_rows_take_what_the_helper_reports(site):
    """Review and reason too; a forged state is put right by the next report."""
    sha256 = await site.planned(n=1)
    await site.report(plans=(root_helpers.plan(sha256, "approved", review="cd" * 32),))
    assert (site.row(sha256).state, site.row(sha256).review) == ("approved", "cd" * 32)
    for forged in ("applied", "unconfirmed", "refused", "stale"):
        await site.ledger.write(lambda tx, state=forged: tx.execute("UPDATE plans SET state = ?", (state,)))
        await site.report(plans=(root_helpers.plan(sha256, "rolled_back", message="not confirmed in time"),))
        assert (site.row(sha256).state, site.row(sha256).reason) == ("rolled_back", "not confirmed in time")


async def test_row_that_claims_more_than_the_helper_knows_goes_stale(site):
    """What is approved or applied in the ledger alone is so nowhere; nothing is asked of the helper by it."""
    sha256 = await site.planned(n=1)
    for forged in ("approved", "applying", "unconfirmed", "applied"):
        await site.ledger.write(lambda tx, state=forged: tx.execute("UPDATE plans SET state = ?", (state,)))
        await site.report()
        assert (site.row(sha256).state, site.row(sha256).reason) == (
            "stale",
            "the root helper does not keep this plan any more",
        )
    assert set(site.helper.verbs()) == {"offer", "observe"}


async def test_report_without_news_writes_nothing(site):
    sha256 = await site.planned(n=1)
    await site.report(plans=(root_helpers.plan(sha256, "approved"),), steps=root_helpers.steps("plan.approve"))
    before = site.ledger.read(lambda db: db.execute("PRAGMA data_version").get), site.row(sha256).updated_at
    site.clock.advance(10)
    for _ in range(3):
        await site.plans.refresh(anew=True)
    assert (site.ledger.read(lambda db: db.execute("PRAGMA data_version").get), site.row(sha256).updated_at) == before


async def test_report_is_used_again_for_half_a_second(site):
    """However many ask, one request is made."""
    await asyncio.gather(*(site.plans.refresh() for _ in range(20)))
    assert site.helper.verbs() == ["observe"]
    site.clock.advance(keepers.FRESH_S)
    await site.plans.refresh()
    assert site.helper.verbs() == ["observe"] * 2


# The chain of steps.


async def test_steps_are_copied_once_in_pages(site):
    """With actor, number and hash; the position is kept with them."""
    every = root_helpers.steps("plan.offer", "plan.approve", "plan.apply", "plan.confirm")
    asked = []

    def answer(request):
        asked.append(request["steps_after"])
        page = [one for one in every if one["seq"] > request["steps_after"]][:3]
        return root_helpers.observed(steps=tuple(page), first_step=1, last_step=4)

    site.helper.answers["observe"] = answer
    await site.plans.refresh(anew=True)
    await site.plans.refresh(anew=True)
    assert asked == [0, 3, 4]
    assert site.steps() == [(one["action"], "", "uid:0 user:root pid:7") for one in every]
    (event,) = site.ledger.read(lambda db: audit.query(db, action="plan.confirm"))
    assert event["detail"] == {"kind": "nft", "step": 4, "step_hash": every[3]["hash"], "at": root_helpers.AT}
    assert site.ledger.read(rows.steps_read) == (4, every[3]["hash"])


async def test_broken_chain_of_helper_is_an_event_of_its_own(site):
    """Changed, replaced, cut, or with a gap; copying goes on."""
    one = root_helpers.steps("plan.offer", "plan.approve")
    await site.report(steps=one)
    # Changed: the hash is not that of the content.
    (changed,) = root_helpers.steps("plan.apply", after=2, prev=one[-1]["hash"])
    await site.report(steps=({**changed, "actor": "uid:1 user:x pid:1"},))
    assert site.steps()[2:] == [("plan.chain", "chain_broken", "latticed"), ("plan.apply", "", "uid:1 user:x pid:1")]
    # A gap, and a step that follows another chain.
    await site.report(steps=root_helpers.steps("plan.confirm", after=6))
    await site.report(steps=root_helpers.steps("plan.offer", after=7))
    assert [code for action, code, _ in site.steps()[4:] if action == "plan.chain"] == ["steps_missing", "chain_broken"]
    # Its state was removed: the chain begins anew.
    fresh = root_helpers.steps("plan.offer")

    def answer(request):
        return root_helpers.observed(steps=() if request["steps_after"] else fresh, first_step=1, last_step=1)

    site.helper.answers["observe"] = answer
    await site.plans.refresh(anew=True)
    assert [code for _, code, _ in site.steps()[-2:]] == ["chain_lost", ""]
    assert site.ledger.read(rows.steps_read) == (1, fresh[0]["hash"])


# Applying.


async def test_apply_answers_applying_and_state_follows(site):
    """Whatever the helper answers in time; the plan's state says what became of it."""
    sha256 = await site.planned(n=1)
    site.helper.answers["apply"] = root_helpers.moved(sha256, "unconfirmed", deadline_s=60.0)
    site.helper.answers["observe"] = root_helpers.observed(plans=(root_helpers.plan(sha256, "unconfirmed"),))
    assert await site.call("apply", sha256=sha256) == {"ok": True, "sha256": sha256, "state": "applying"}
    assert (await site.call("plans", sha256=sha256))["plans"][0]["state"] == "unconfirmed"
    assert site.helper.asked[1] == {"verb": "apply", "plan": sha256, "confirm_within_s": 0, "source": ""}


async def test_slow_apply_is_answered_before_it_ends(site, monkeypatch):
    """The helper may take longer than a call; its end is taken when it comes."""
    monkeypatch.setattr(keepers, "REFUSAL_S", 0.05)
    sha256 = await site.planned(n=1)
    loop, go = asyncio.get_running_loop(), asyncio.Event()

    def answer(_):
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result(10)
        return root_helpers.moved(sha256, "applied")

    site.helper.answers["apply"] = answer
    async with site.plans:
        assert (await site.call("apply", sha256=sha256))["state"] == "applying"
        site.helper.answers["observe"] = root_helpers.observed(plans=(root_helpers.plan(sha256, "applied"),))
        go.set()
        await asyncio.gather(*site.plans._applying.values())
        assert site.row(sha256).state == "applied"


async def test_apply_that_waits_is_not_sent_once_its_plugin_may_not_apply(site, monkeypatch):
    """Its call was answered while another apply was under way; then the plugin is disabled."""
    monkeypatch.setattr(keepers, "REFUSAL_S", 0.05)
    first, second = await site.planned(n=1), await site.planned(n=2)
    loop, go = asyncio.get_running_loop(), asyncio.Event()

    def answer(asked):
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result(10)
        return root_helpers.moved(asked["plan"], "applied")

    site.helper.answers["apply"] = answer
    async with site.plans:
        for sha256 in (first, second):
            assert (await site.call("apply", sha256=sha256))["state"] == "applying"
        waiting = list(site.plans._applying.values())
        site.may = False
        go.set()
        _, refused = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(refused, Problem)
    assert refused.code == "not_permitted"
    assert [one["plan"] for one in site.helper.asked if one["verb"] == "apply"] == [first]


@pytest.mark.parametrize("code", ["not_approved", "stale", "target_busy", "kind_unknown", "not_found", "apply_failed"])
async def test_apply_that_helper_refuses_names_the_code(site, code):
    sha256 = await site.planned(n=1)
    site.helper.answers["apply"] = root_helpers.fault(code)
    error = await site.refused("apply", sha256=sha256)
    assert error.code is Denial.SERVICE_UNAVAILABLE
    assert error.reason == f"nothing was applied: {code}: it says why"


async def test_apply_of_a_foreign_plan_asks_nothing_of_the_helper(site):
    error = await site.refused("apply", sha256="0" * 64)
    assert (error.code, site.helper.asked) == (Denial.NOT_FOUND, [])


# The live state.


async def test_state_of_nft_is_what_the_helper_sees(site):
    target = {"kind": "nft", "confirmed": "ab" * 32, "drifted": True}
    site.helper.answers["observe"] = root_helpers.observed(live={"tables": ["x"]}, targets=[target])
    found = await site.call("state", kind="nft")
    assert (found["kind"], found["live"]) == ("nft", {"tables": ["x"]})
    assert (found["target"]["confirmed"], found["target"]["drifted"]) == ("ab" * 32, True)
    assert site.helper.asked == [{"verb": "observe", "kind": "nft", "steps_after": -1}]
    site.helper.answers["observe"] = root_helpers.fault("kind_unknown", "it has no kind nft")
    error = await site.refused("state", kind="nft")
    assert "kind_unknown: it has no kind nft; listeners and interfaces" in error.reason


# A helper that is broken.


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"",
        b"\n",
        b"{}\n",
        b"[]\n",
        b"no JSON\n",
        b'{"plan": 1}\n',
        b'{"kinds": [], "targets": [], "plans": [{"plan": "x"}]}\n',
        b"[" * 100_000 + b"\n",
        b"x" * (protocol.MAX_ANSWER_BYTES + 10),
        b'{"plan": "\xff"}\n',
        b'{"code": 5, "message": []}\n',
    ],
)
async def test_broken_answer_is_no_answer(site, answer):
    """The daemon goes on, and says that the helper cannot be asked."""
    site.helper.answers = dict.fromkeys(("observe", "offer", "apply"), answer)
    sha256 = await site.planned(n=1)
    assert (site.row(sha256).state, site.row(sha256).code) == ("planned", "helper_unavailable")
    error = await site.refused("apply", sha256=sha256)
    assert error.reason.startswith("nothing was applied: helper_unavailable")
    await site.plans.refresh(anew=True)
    assert site.plans.trouble


async def test_helper_that_never_answers_costs_a_deadline(site, monkeypatch):
    """Nothing waits longer: neither a list of plans nor the end of the daemon."""
    for name in ("REPORT_S", "REFUSAL_S"):
        monkeypatch.setattr(keepers, name, 0.05)
    site.plans.call_s = 0.05
    release = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stall(_):
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result(10)

    site.helper.answers = dict.fromkeys(("observe", "offer", "apply"), stall)
    async with site.plans:
        sha256 = await site.planned(n=1)
        assert site.row(sha256).code == "deadline_exceeded"
        assert (await site.call("plans"))["plans"][0]["sha256"] == sha256
        assert "did not answer" in site.plans.trouble
        assert (await site.call("apply", sha256=sha256))["state"] == "applying"
        started_s = loop.time()
    # The apply above would have waited APPLY_S.
    assert loop.time() - started_s < 5
    release.set()


async def test_live_state_that_is_late_for_one_call_is_there_for_the_next(site):
    """However slow the machine is: a look is not made in vain. After an apply it is made anew."""
    release, looks = threading.Event(), []

    def late(asked):
        if not asked["kind"]:
            return root_helpers.observed()
        looks.append(asked["kind"])
        release.wait(20)
        return root_helpers.observed(live={"look": len(looks)})

    site.helper.answers["observe"] = late
    site.plans.call_s = 0.1
    for _ in range(3):
        error = await site.refused("state", kind="nft")
        assert "still at it: ask again, or raise host_calls.deadline_s" in error.reason
    release.set()
    site.plans.call_s = 20.0
    assert ((await site.call("state", kind="nft"))["live"], looks) == ({"look": 1}, ["nft"])
    release.clear()
    site.plans.call_s = 0.1
    await site.refused("state", kind="nft")
    site.helper.answers["apply"] = lambda _: root_helpers.fault("not_approved", "")
    await site.refused("apply", sha256=await site.planned(n=1))
    release.set()
    site.plans.call_s = 20.0
    assert (await site.call("state", kind="nft"))["live"] == {"look": 3}


async def test_problem_of_ledger_is_no_trouble_of_the_loop(site, monkeypatch):
    """A full disk: the report is tried again, `refresh` never raises."""

    async def full(*_, **__):
        raise Problem("ledger_unavailable", "the disk is full")

    await site.planned(n=1)
    monkeypatch.setattr(site.ledger, "write", full)
    await site.report(steps=root_helpers.steps("plan.offer"))
    assert site.plans.trouble == "the disk is full"
    monkeypatch.undo()
    await site.plans.refresh(anew=True)
    assert (site.plans.trouble, len(site.steps())) == ("", 1)
