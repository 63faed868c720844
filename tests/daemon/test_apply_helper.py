"""The real root helper over its socket: review, approve, apply, confirm, undo; narrowing, secrets, drift, boot."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from latticed.plans import protocol, steps
from tests.house import apply_helpers, faults, processes
from tests.house.apply_helpers import APPROVER, BASE, DAEMON, WIDE

pytestmark = [pytest.mark.daemon, pytest.mark.root]
OTHER = {"allow": ["admin", "eve"]}
NAMES = [one + two for one in "abcdef" for two in "abcdef"]
KEYED = {"allow": ["admin"], "key": "${secret:DB#main}"}


@pytest.fixture
def place():
    with apply_helpers.place() as place:
        yield place


@pytest.fixture
def helper(place):
    with place.running():
        yield place


def code(answer):
    return answer.code if isinstance(answer, protocol.ErrorAnswer) else str(answer.state)


def until_content(place, wanted):
    processes.until(lambda: place.content() == wanted, what=f"the file to be {wanted!r}")


def test_plan_goes_from_offer_to_applied(helper):
    """The daemon's user offers and applies, an approver reviews, approves and confirms."""
    plan = helper.offer(WIDE)
    assert code(helper.ask(protocol.Apply(plan=plan), user=DAEMON)) == "not_approved"
    reviewed = helper.ask(protocol.Review(plan=plan), user=APPROVER)
    assert "+allow ada\n+allow admin\n+allow bob\n" in reviewed.diff
    assert (reviewed.target, reviewed.narrows, reviewed.intent) == ("the file of file", False, WIDE)
    assert code(helper.ask(protocol.Approve(plan=plan, review=reviewed.review), user=APPROVER)) == "approved"
    assert helper.content() is None
    answer = helper.ask(protocol.Apply(plan=plan), user=DAEMON)
    assert (answer.state, answer.review) == ("unconfirmed", reviewed.review)
    assert 20 < answer.deadline_s < 30
    assert helper.content() == "allow ada\nallow admin\nallow bob\n"
    assert code(helper.ask(protocol.Confirm(plan=plan), user=APPROVER)) == "applied"
    (target, _) = helper.observed().targets
    assert (target.approved, target.confirmed, target.unconfirmed) == (plan, plan, "")
    processes.until(lambda: not helper.dead_men(), what="the dead-man to end")
    found = helper.steps()
    assert apply_helpers.words(found) == ["plan.approve", "plan.apply", "plan.confirm"]
    assert steps.verify(found) == 3
    assert found[0].actor.startswith(f"uid:{APPROVER.uid} ")
    assert found[1].actor.startswith(f"uid:{DAEMON.uid} ")


def test_unconfirmed_change_is_undone_within_two_seconds_of_its_deadline(place):
    with place.running():
        place.applied(BASE)
        plan = place.approved(WIDE)
        started = time.monotonic()
        assert code(place.ask(protocol.Apply(plan=plan, confirm_within_s=5))) == "unconfirmed"
        # On a machine with much else to do the deadline may have come meanwhile.
        assert place.content() != "allow admin\n" or time.monotonic() > started + 5
        place.until_back(lambda: place.content() == "allow admin\n")
        processes.until(lambda: place.state_of(plan) == "rolled_back", what="the state")
        assert code(place.ask(protocol.Confirm(plan=plan))) == "expired"
        assert place.content() == "allow admin\n"
        assert place.steps()[-1].code == "deadline"


def test_operator_undoes_before_the_deadline(helper):
    plan = helper.approved(WIDE)
    helper.ask(protocol.Apply(plan=plan))
    assert code(helper.ask(protocol.Rollback(plan=plan))) == "rolled_back"
    assert helper.content() is None, "there was nothing before"
    assert code(helper.ask(protocol.Rollback(plan=plan))) == "invalid_transition"
    assert code(helper.ask(protocol.Confirm(plan=plan))) == "invalid_transition"
    assert code(helper.ask(protocol.Apply(plan=plan))) == "not_approved", "an approval is for one time"


def test_review_changes_with_the_live_state_and_a_stale_one_touches_nothing(helper):
    """Somebody else changes the file, then an old review is approved, or an approved one applied."""
    plan = helper.offer(WIDE)
    old = helper.review(plan).review
    helper.live.write_text("allow stranger\n")
    assert code(helper.ask(protocol.Approve(plan=plan, review=old))) == "stale"
    helper.ask(protocol.Approve(plan=plan, review=helper.review(plan).review))
    helper.live.write_text("allow stranger\nallow friend\n")
    assert code(helper.ask(protocol.Apply(plan=plan))) == "stale"
    assert helper.content() == "allow stranger\nallow friend\n"
    assert helper.state_of(plan) == "stale"
    assert helper.dead_men() == []
    assert apply_helpers.words(helper.steps()) == ["plan.approve"]
    assert protocol.CODES["stale"] == 409


def test_one_unconfirmed_change_for_each_target(helper):
    """A second plan of the kind waits; another kind's does not."""
    first, second = helper.approved(WIDE), helper.approved(OTHER)
    elsewhere = helper.approved(OTHER, kind="other")
    helper.ask(protocol.Apply(plan=first))
    answers = [helper.ask(protocol.Apply(plan=plan)) for plan in (first, second, elsewhere)]
    assert [code(answer) for answer in answers] == ["target_busy", "target_busy", "unconfirmed"]
    assert "bob" in helper.content()


def test_two_applies_at_once_commit_one(helper):
    plans = [helper.approved(intent) for intent in (WIDE, OTHER)]
    answers = {}

    def apply(plan):
        answers[plan] = code(helper.ask(protocol.Apply(plan=plan)))

    threads = [threading.Thread(target=apply, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers.values()) == ["target_busy", "unconfirmed"]


def test_what_narrows_the_approved_intent_needs_no_approval(helper):
    """And going back within it neither; what widens does, also a plan that was approved once and superseded."""
    wide = helper.applied(WIDE)
    narrow = helper.offer({"allow": ["admin", "ada"]})
    assert helper.review(narrow).narrows
    assert code(helper.ask(protocol.Apply(plan=narrow), user=DAEMON)) == "applied"
    assert helper.content() == "allow ada\nallow admin\n"
    assert helper.dead_men() == [] or processes.until(lambda: not helper.dead_men(), what="the dead-man to end")
    assert code(helper.ask(protocol.Apply(plan=wide), user=DAEMON)) == "applied"
    wider = helper.offer({"allow": ["admin", "ada", "bob", "eve"]})
    assert not helper.review(wider).narrows
    assert code(helper.ask(protocol.Apply(plan=wider), user=DAEMON)) == "not_approved"
    helper.applied(BASE)
    assert code(helper.ask(protocol.Apply(plan=wide), user=DAEMON)) == "not_approved", "the last approval bounds"
    assert helper.content() == "allow admin\n"


def test_what_is_approved_and_not_confirmed_bounds_nothing(helper):
    """An undone approval leaves the bound of before."""
    helper.applied(BASE)
    plan = helper.approved(WIDE)
    helper.ask(protocol.Apply(plan=plan))
    helper.ask(protocol.Rollback(plan=plan))
    assert (
        code(helper.ask(protocol.Apply(plan=helper.offer({"allow": ["admin", "ada"]})), user=DAEMON)) == "not_approved"
    )


def test_refused_plan_stays_refused(helper):
    plan = helper.offer(WIDE)
    review = helper.review(plan).review
    assert code(helper.ask(protocol.Refuse(plan=plan), user=APPROVER)) == "refused"
    assert helper.offer(WIDE) == plan
    answers = [helper.ask(protocol.Approve(plan=plan, review=review)), helper.ask(protocol.Apply(plan=plan))]
    assert [code(answer) for answer in answers] == ["invalid_transition", "not_approved"]


def test_faults_of_an_intent_are_all_named(helper):
    answer = helper.ask(protocol.Offer(kind="file", intent={"allow": ["A", 1, "ok"]}), user=DAEMON)
    assert answer.code == "intent_refused"
    assert [(one.code, one.path) for one in answer.findings] == [
        ("name", "allow[0]"),
        ("name", "allow[1]"),
        ("lockout", "allow"),
    ]
    assert helper.observed().plans == ()


def test_unknown_kind_says_which_there_are(helper):
    answer = helper.ask(protocol.Offer(kind="nft", intent={}), user=DAEMON)
    assert (answer.code, answer.message) == (
        "kind_unknown",
        "this root helper does not apply plans of kind 'nft'; it applies: file, other",
    )


@pytest.mark.parametrize("effect", ["commit", "self_check"])
@pytest.mark.parametrize("how", ["fail", "half", "missing", "bug"])
def test_failed_change_is_undone_at_once(place, effect, how):
    """The helper undoes it; after a mistake in the kind itself the dead-man does."""
    if how == "bug":  # its end is waited for
        place.settings["confirm_within_s"] = 8
    with place.running():
        place.applied(BASE)
        plan = place.approved(WIDE)
        place.order(**{effect: how})
        answer = place.ask(protocol.Apply(plan=plan))
        assert answer.code == ("internal" if how == "bug" else "apply_failed")
        until_content(place, "allow admin\n")
        wanted = "rolled_back" if how == "bug" else "failed"
        processes.until(lambda: place.state_of(plan) == wanted, what="the state")
        place.order()
        assert code(place.ask(protocol.Approve(plan=plan, review=place.review(plan).review))) == "approved"
        assert code(place.ask(protocol.Apply(plan=plan))) == "unconfirmed"


@pytest.mark.parametrize("effect", ["validate", "snapshot"])
def test_failure_before_the_commit_touches_nothing(helper, effect):
    plan = helper.approved(WIDE)
    helper.order(**{effect: "fail"})
    assert code(helper.ask(protocol.Apply(plan=plan))) == "tool_failed"
    assert (helper.content(), helper.state_of(plan), helper.dead_men()) == (None, "approved", [])
    helper.order()
    assert code(helper.ask(protocol.Apply(plan=plan))) == "unconfirmed"


def test_undo_that_fails_is_repeated(place):
    """It is repeated until it works; meanwhile nothing else is applied to the target."""
    with place.running():
        place.applied(BASE)
        plan, other = place.approved(WIDE), place.approved(OTHER)
        place.order(restore="fail")
        place.ask(protocol.Apply(plan=plan, confirm_within_s=1))
        apply_helpers.pause(2.0)
        assert "bob" in place.content()
        assert code(place.ask(protocol.Apply(plan=other))) == "target_busy"
        assert code(place.ask(protocol.Confirm(plan=plan))) == "expired"
        place.order()
        until_content(place, "allow admin\n")


@pytest.mark.parametrize("asked", ["apply", "rollback"])
def test_undo_that_was_begun_is_repeated_from_then_on(place, asked):
    """Not only at the deadline, and what is half undone is not confirmed."""
    with place.running():
        place.applied(BASE)
        plan = place.approved(WIDE)
        place.order(**{"restore": "fail", **({"self_check": "fail"} if asked == "apply" else {})})
        answer = place.ask(protocol.Apply(plan=plan, confirm_within_s=600))
        if asked == "rollback":
            answer = place.ask(protocol.Rollback(plan=plan))
        assert (answer.code, "it is tried again" in answer.message) == ("tool_failed", True)
        assert "bob" in place.content()
        assert place.ask(protocol.Confirm(plan=plan)).code in {"expired", "invalid_transition"}
        place.order()
        until_content(place, "allow admin\n")
        wanted = "failed" if asked == "apply" else "rolled_back"
        processes.until(lambda: place.state_of(plan) == wanted, what="the state")
        processes.until(lambda: not place.dead_men(), what="the dead-man's end")


def test_time_for_confirming_is_the_operators_to_choose_not_the_daemons(helper):
    plans = [helper.approved(WIDE), helper.approved(WIDE, kind="other")]
    mine = helper.ask(protocol.Apply(plan=plans[0], confirm_within_s=600))
    daemons = helper.ask(protocol.Apply(plan=plans[1], confirm_within_s=600), user=DAEMON)
    assert 590 < mine.deadline_s <= 600
    assert daemons.deadline_s <= 30


def test_secret_is_bound_by_the_review_and_shown_nowhere(helper):
    """It is not in answers, steps, log or argument lists; files that hold it are root's alone."""
    value, other = "correct-horse-battery", "another-value"
    plan = helper.offer(KEYED, secrets=[apply_helpers.secret("DB#main", value)])
    reviewed = helper.review(plan)
    assert "+key ${secret:DB#main}" in reviewed.diff
    assert helper.offer(KEYED, secrets=[apply_helpers.secret("DB#main", other)]) == plan
    assert helper.review(plan).review != reviewed.review, "another value is another review"
    assert code(helper.ask(protocol.Approve(plan=plan, review=reviewed.review))) == "stale"
    helper.offer(KEYED, secrets=[apply_helpers.secret("DB#main", value)])
    assert helper.review(plan).review == reviewed.review
    helper.ask(protocol.Approve(plan=plan, review=reviewed.review))
    helper.ask(protocol.Apply(plan=plan))
    assert f"key {value}\n" in helper.content()
    helper.ask(protocol.Confirm(plan=plan))
    shown = repr([helper.observed(kind="file", steps_after=0), helper.review(plan)]) + helper.log()
    assert value not in shown
    holding = [path for path in helper.state.rglob("*") if path.is_file() and value.encode() in path.read_bytes()]
    assert holding
    assert {path.stat().st_mode & 0o777 for path in holding} == {0o600}


def test_approved_plan_with_another_secret_is_not_applied(helper):
    """Offered again with another value it is planned again; and a confirmed one is no longer what is applied."""
    value, other = apply_helpers.secret("DB#main", "first-value"), apply_helpers.secret("DB#main", "other-value")
    plan = helper.approved(KEYED, secrets=[value])
    helper.offer(KEYED, secrets=[other])
    assert code(helper.ask(protocol.Apply(plan=plan), user=DAEMON)) == "not_approved"
    plan = helper.applied(KEYED, secrets=[value])
    helper.offer(KEYED, secrets=[other])
    assert helper.state_of(plan) == "planned"
    assert code(helper.ask(protocol.Apply(plan=plan), user=DAEMON)) == "not_approved", "it does not narrow either"
    assert "first-value" in helper.content()


@pytest.mark.parametrize("effect", ["validate", "commit"])
def test_secret_that_a_tool_repeats_is_hidden(helper, effect):
    """So it is where the tool's words are cut."""
    value = "correct-horse-battery"
    plan = helper.approved(KEYED, secrets=[apply_helpers.secret("DB#main", value)])
    helper.order(**{effect: "leak"})
    answer = helper.ask(protocol.Apply(plan=plan))
    assert answer.code in {"tool_failed", "apply_failed"}
    shown = repr([answer, helper.observed(kind="file", steps_after=0)]) + helper.log()
    assert "xxx" in shown
    assert "correct" not in shown


@pytest.mark.parametrize(
    "given",
    [
        [],
        [("DB#main", "password", "long-enough"), ("DB#main", "password", "long-enough")],
        [("DB#other", "password", "long-enough")],
        [("DB#main", "uuid", "long-enough")],
        [("DB#main", "password", "with a space")],
        [("DB#main", "password", "line\nallow stranger")],
    ],
    ids=["none", "twice", "another", "form", "space", "newline"],
)
def test_secrets_that_do_not_fit_the_intent_are_refused_unseen(helper, given):
    secrets = tuple(protocol.SecretValue(reference=r, form=f, value=v) for r, f, v in given)
    answer = helper.ask(protocol.Offer(kind="file", intent=KEYED, secrets=secrets), user=DAEMON)
    assert answer.code == "bad_request"
    assert all(v not in repr(answer) + helper.log() for _, _, v in given)


def test_confirmed_state_is_put_back_where_settings_say_so(place):
    """Drift shows within a poll, is one step, and is repaired for kinds under `restore` alone."""
    place.settings["restore"] = ["file"]
    with place.running():
        place.applied(BASE)
        place.applied(BASE, kind="other")
        for name in ("file", "other"):
            (place.home / f"live/{name}.target").write_text("allow stranger\n")
        until_content(place, "allow admin\n")
        processes.until(lambda: [one.drifted for one in place.observed().targets] == [False, True], what="drift")
        apply_helpers.pause(1.0)
        assert (place.home / "live/other.target").read_text() == "allow stranger\n"
        found = [(step.action, step.detail["kind"]) for step in place.steps() if "drift" in step.action]
        assert sorted(found) == [("plan.drift", "file"), ("plan.drift", "other"), ("plan.drift_restored", "file")]


def test_drift_that_cannot_be_put_back_is_told_until_it_can(place):
    """It is drift all the while, with one step; what keeps it so is told in the same words."""
    place.settings["restore"] = ["file"]
    with place.running():
        place.applied(BASE)
        place.order(commit="fail")
        place.live.write_text("allow stranger\n")
        told = (True, "drift that could not be put back: tool_failed")
        processes.until(lambda: target_of(place) == told, what="the failure")
        place.order(observe="bug")
        told = (None, "the look at the live state failed: ZeroDivisionError")
        processes.until(lambda: target_of(place) == told, what="the look's failure")
        place.order(commit="fail")
        processes.until(lambda: target_of(place)[0], what="drift again")
        place.order()
        until_content(place, "allow admin\n")
        processes.until(lambda: target_of(place) == (False, ""), what="the end of it")
        found = [step.action for step in place.steps() if "drift" in step.action]
        assert found == ["plan.drift", "plan.drift_restored"]


def target_of(place):
    (found,) = [one for one in place.observed().targets if one.kind == "file"]
    return found.drifted, found.problem


def test_applying_what_is_applied_puts_it_back_where_it_drifted(helper):
    """The daemon may, as it is within what was approved; without drift nothing is done."""
    plan = helper.applied(BASE)
    assert helper.ask(protocol.Apply(plan=plan), user=DAEMON).message == "it is applied already"
    helper.live.write_text("allow stranger\n")
    assert "put back" in helper.ask(protocol.Apply(plan=plan), user=DAEMON).message
    assert helper.content() == "allow admin\n"


def test_bound_that_the_kind_no_longer_understands_bounds_nothing(helper):
    """Nothing narrows it; plans are approved and applied as ever."""
    helper.applied({"allow": ["admin", "broken"]})
    assert code(helper.ask(protocol.Apply(plan=helper.offer(BASE)), user=DAEMON)) == "not_approved"
    helper.applied(BASE)
    assert helper.content() == "allow admin\n"


def test_socket_and_readiness_of_a_service_manager(place):
    """It takes the socket that is passed to it, leaves its path alone, and says when it is ready."""
    with contextlib.ExitStack() as stack:
        listening, told = (stack.enter_context(socket.socket(socket.AF_UNIX, kind)) for kind in (1, 2))
        path = place.home / "passed.sock"
        listening.bind(str(path))
        path.chmod(0o666)
        listening.listen()
        told.bind(str(place.home / "notify"))
        told.settimeout(20)
        place.settings["socket"] = str(path)
        place.write_settings()
        place.env |= {"LISTEN_FDS": "1", "NOTIFY_SOCKET": str(place.home / "notify")}
        number = listening.fileno()
        # What a service manager does between fork and exec (sd_listen_fds(3)).
        prepare = f"import os, sys; os.dup2({number}, 3); os.environ['LISTEN_PID'] = str(os.getpid())"
        start = "os.execv(sys.argv[1], sys.argv[1:])"
        command = [sys.executable, "-c", f"{prepare}; {start}", *place.command()]
        helper = stack.enter_context(
            processes.spawned(command, env=place.env, pass_fds=[number], stdout=place.home / "log")
        )
        assert b"READY=1" in told.recv(1024)
        assert place.observed().kinds == ("file", "other")
        plan = place.approved(WIDE)
        assert code(place.ask(protocol.Apply(plan=plan))) == "unconfirmed"
        helper.terminate()
        assert helper.wait(processes.PATIENCE_S) == 0
        assert path.exists()


def test_announced_socket_that_is_not_open_is_told(place):
    """LISTEN_FDS with descriptor 3 closed, or a file, or with more than are open."""
    place.write_settings()
    for count, opened in ((1, "<&-"), (1, "</dev/null"), (50, "<&-")):
        shell = f'export LISTEN_FDS={count} LISTEN_PID=$$; exec 3{opened}; exec "$@"'
        command = ["/bin/sh", "-c", shell, "sh", *place.command()]
        ran = subprocess.run(command, env=place.env, capture_output=True, text=True, check=False)
        words = "latticed-apply: socket_unusable: expected a listening unix socket at"
        assert (ran.returncode, ran.stderr.startswith(words)) == (1, True), ran.stderr
        assert "Traceback" not in ran.stderr


def test_boot_restores_what_was_confirmed(place):
    """It does so by the request, which only root may make, and by the option; unconfirmed changes of an earlier boot
    go.
    """
    with place.running():
        plan = place.applied(BASE)
        place.live.unlink()
        assert code(place.ask(protocol.Boot(), user=APPROVER)) == "denied"
        booted = place.ask(protocol.Boot())
        assert [(one.kind, one.outcome) for one in booted.targets] == [
            ("file", "restored"),
            ("other", "nothing"),
        ]
        assert place.content() == "allow admin\n"
        unconfirmed = place.approved(WIDE)
        place.ask(protocol.Apply(plan=unconfirmed))
    for pid in place.dead_men():
        os.kill(pid, signal.SIGKILL)
    record = place.state / "targets/file.json"
    target = json.loads(record.read_text())
    target["armed"]["boot_id"] = "00000000-0000-0000-0000-000000000000"
    record.write_text(json.dumps(target))
    with place.running("--boot"):
        assert place.content() == "allow admin\n"
        assert place.state_of(unconfirmed) == "rolled_back"
        assert place.state_of(plan) == "applied"
        assert code(place.ask(protocol.Confirm(plan=unconfirmed))) == "expired"


def test_change_of_an_earlier_boot_is_undone_at_the_start(place):
    with place.running():
        plan = place.approved(WIDE)
        place.ask(protocol.Apply(plan=plan))
    for pid in place.dead_men():
        os.kill(pid, signal.SIGKILL)
    record = place.state / "targets/file.json"
    target = json.loads(record.read_text())
    target["armed"]["boot_id"] = "00000000-0000-0000-0000-000000000000"
    record.write_text(json.dumps(target))
    with place.running():
        assert place.content() is None
        assert (place.state_of(plan), place.steps()[-1].code) == ("rolled_back", "boot")


def test_setting_the_clock_changes_no_deadline(place, shim):
    """It is set back an hour and on a year, by a clock that is preloaded."""
    with faults.attached(place, shim) as sick:
        place.settings["confirm_within_s"] = 8
        with place.running():
            plan = place.approved(WIDE)
            started = time.monotonic()
            answer = place.ask(protocol.Apply(plan=plan))
            sick.shift_clock(-3_600)
            later = place.ask(protocol.Apply(plan=place.approved(OTHER, kind="other")))
            assert 0 < answer.deadline_s <= 8
            assert 0 < later.deadline_s <= 8
            sick.shift_clock(365 * 86_400)
            apply_helpers.pause(0.7)
            content = place.content()
            # On a machine with much else to do the deadline may have come meanwhile.
            assert "bob" in (content or "") or time.monotonic() > started + 8
            assert code(place.ask(protocol.Confirm(plan=later.plan))) == "applied"
            until_content(place, None)


def test_offers_are_bounded_and_take_nothing_from_operators(helper):
    """32 are kept; what is approved, confirmed or being read outlives any number of offers beside it."""
    approved, confirmed = helper.approved(WIDE), helper.applied(BASE)
    read = helper.offer(OTHER)
    review = helper.review(read).review
    for number in range(80):
        helper.offer({"allow": ["admin", "x" + re.sub(r"\d", lambda m: chr(97 + int(m[0])), str(number))]}, user=None)
    kept = {one.plan for one in helper.observed().plans}
    assert len(kept) == protocol.OFFERS
    assert {approved, confirmed, read} <= kept
    assert code(helper.ask(protocol.Approve(plan=read, review=review))) == "approved"
    assert apply_helpers.words(helper.steps())[:2] == ["plan.approve", "plan.approve"]
    assert len(helper.steps()) < 10, "offers are no steps"


def test_approved_plans_that_nobody_applies_keep_no_offer_out(helper):
    """Of 32, the one approved first makes room, which is on record; a flood takes no other."""
    plans = [helper.approved({"allow": ["admin", f"u{name}"]}, user=None) for name in NAMES[: protocol.OFFERS]]
    for name in NAMES[protocol.OFFERS :]:
        new = helper.offer({"allow": ["admin", f"v{name}"]}, user=None)
        assert {one.plan for one in helper.observed().plans} == {*plans[1:], new}
    (step,) = [one for one in helper.steps() if one.action == "plan.forget"]
    assert (step.target, step.actor) == (plans[0], "latticed-apply")
    assert code(helper.ask(protocol.Apply(plan=plans[0]))) == "not_found"
    assert code(helper.ask(protocol.Apply(plan=plans[1]))) == "unconfirmed"


def test_missing_tool_leaves_planning(place):
    place.settings["programs"] = {}
    with place.running():
        plan = place.approved(WIDE)
        place.order(validate="missing")
        answer = place.ask(protocol.Apply(plan=plan))
        assert (answer.code, answer.hint) == ("tool_missing", "install it")
        assert place.state_of(place.offer(OTHER)) == "planned"


def undoing(place, apply_id, helper):
    """What a timer unit starts, for a helper that `undo_timers.me` named so."""
    return processes.spawned(place.command("--undo", "file", apply_id, helper), env=place.env)


def named(pid):
    """As `undo_timers.me` in that process."""
    return f"{pid}:{Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"


@pytest.mark.parametrize("stopped", [True, False], ids=["helper stopped", "helper gone"])
def test_service_of_a_timer_undoes_without_the_helper(place, stopped):
    """It looks for the helper by pid and start, so another process with that pid is none."""
    with place.running() as helper:
        plan = place.approved(WIDE)
        place.ask(protocol.Apply(plan=plan, confirm_within_s=8))
        for pid in place.dead_men():
            os.kill(pid, signal.SIGKILL)
        helper.send_signal(signal.SIGSTOP if stopped else signal.SIGKILL)
        apply_id = json.loads((place.state / "targets/file.json").read_text())["armed"]["apply_id"]
        who = named(helper.pid) if stopped else f"{os.getpid()}:1"
        with undoing(place, apply_id, who) as service:
            assert service.wait(60) == 0
        assert place.content() is None
        helper.send_signal(signal.SIGCONT)
    with place.running():
        assert (place.state_of(plan), place.steps()[-1].code) == ("rolled_back", "deadline")


def test_service_of_a_timer_waits_for_the_record_of_a_helper_that_was_stopped_before_it(place):
    """As long as the helper lives and has its snapshot; then there is nothing to undo."""
    with place.running() as helper:
        kept = place.state / "held/aa.snapshot"
        kept.write_bytes(b"")
        with undoing(place, "aa", named(helper.pid)) as service:
            processes.until(lambda: b"--undo" in Path(f"/proc/{service.pid}/cmdline").read_bytes(), what="the program")
            assert service.poll() is None
            kept.unlink()
            assert service.wait(60) == 0
        kept.write_bytes(b"")
        with undoing(place, "aa", named(helper.pid)) as service:
            helper.kill()
            assert service.wait(60) == 0
