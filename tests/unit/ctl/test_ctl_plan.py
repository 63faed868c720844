"""latticectl plan and apply: what is shown before an approval, what is sent to whom, and how each step fails."""

from __future__ import annotations

import io
import json
import os
import re
import select
import socket
import sys

import pytest

from latticed.ctl import apply as apply_verb
from latticed.ctl import root_helper
from latticed.plans import protocol
from tests.house import api_server, root_helpers

PLAN, OTHER, REVIEW = "3f0c91ab" + "0" * 56, "3f0c91ab" + "1" * 56, "91aa" * 16
DIFF = "--- live\n+++ plan\n@@ -1 +1,2 @@\n port 22\n-port 23\n+port 2\x1b[2J\n+\tport 80\n"
ROW = {
    "number": 7,
    "plugin": "acme.guard",
    "sha256": PLAN,
    "kind": "nft",
    "state": "planned",
    "review": "",
    "code": "kind_unknown",
    "reason": "it has no kind nft",
    "created_at": "2025-01-31T08:00:00.000000Z",
    "updated_at": "2025-01-31T08:00:00.000000Z",
}
REVIEWED = {
    "plan": PLAN,
    "kind": "nft",
    "target": "table inet latticed_guard",
    "state": "planned",
    "review": REVIEW,
    "rendering": "5e" * 32,
    "diff": DIFF,
    "intent": {"ports": [22, 80]},
    "narrows": False,
}


@pytest.fixture
def helper(tmp_path, monkeypatch):
    """A scripted helper that the settings lead to."""
    settings = tmp_path / "latticed.toml"
    settings.write_text(f'[apply]\nsocket = "{tmp_path}/apply.sock"\n')
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.7 50000 192.0.2.1 22")
    with root_helpers.serving(tmp_path / "apply.sock") as script:
        script.config = str(settings)
        script.answers["review"] = REVIEWED
        script.answers["observe"] = root_helpers.observed(plans=(root_helpers.plan(PLAN, "planned"),))
        for verb, state in (("approve", "approved"), ("refuse", "refused"), ("confirm", "applied")):
            script.answers[verb] = root_helpers.moved(PLAN, state)
        script.answers["rollback"] = root_helpers.moved(PLAN, "rolled_back")
        script.answers["apply"] = root_helpers.moved(PLAN, "unconfirmed", deadline_s=60.0)
        yield script


@pytest.fixture
def run(ctl, helper):
    return lambda *words: ctl(*words, "--config", helper.config)


pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0 to answer as the root helper"),
]


# The list.


def test_plan_list_shows_a_row_per_plan(run, api):
    """From the daemon; filters are sent as query parameters, and an outdated report is said."""
    api.override["GET plans"] = 200, {"plans": [ROW], "next": None, "helper": "the root helper is not running"}
    ran = run("plan", "list", "--state", "planned", "--plugin", "acme.guard", "--last", "9")
    assert ran.code == 0
    assert ran.out.splitlines()[1].split()[:4] == ["3f0c91ab0000", "planned", "nft", "acme.guard"]
    assert "kind_unknown: it has no kind nft" in ran.out
    assert "last report: the root helper is not running" in ran.err
    assert run("plan", "list", "--format", "json").json["plans"] == [ROW]


def test_plan_list_without_daemon_is_the_helpers(run):
    """What has to be undone must be found without a daemon."""
    ran = run("plan", "list", "--socket", "/nonexistent/control.sock")
    assert ran.code == 0
    assert ran.out.splitlines()[1].split()[:3] == ["3f0c91ab0000", "planned", "nft"]
    assert "the daemon is not running" in ran.err
    nowhere = ("--socket", "/nonexistent/control.sock")
    assert run("plan", "list", "--plugin", "acme.guard", *nowhere).out.count("\n") == 1


# Reviews.


@pytest.mark.parametrize(
    ("connection", "source"),
    [
        ("fe80::1%eth0 50000 fe80::2%eth0 22", "fe80::1%eth0"),
        # sshd's words for a connection that is no socket of the network.
        ("UNKNOWN 65535 UNKNOWN 65535", ""),
    ],
)
def test_source_is_the_address_of_the_session_or_none(run, helper, monkeypatch, connection, source):
    monkeypatch.setenv("SSH_CONNECTION", connection)
    assert run("plan", "show", PLAN).code == 0
    assert helper.asked[-1]["source"] == source


def test_plan_show_prints_difference_and_review(run, helper):
    """Escaped; the command that approves has the whole review; the operator's address is sent."""
    ran = run("plan", "show", "3f0c91ab")
    assert ran.code == 0
    assert re.search(f"review +{REVIEW}\n", ran.out)
    assert re.search(f"rendering +{'5e' * 32}\n", ran.out)
    assert "-port 23\n+port 2\\x1b[2J\n+    port 80\n" in ran.out
    assert f"latticectl plan approve 3f0c91ab0000 {REVIEW}" in ran.err
    assert helper.asked[-1] == {"verb": "review", "plan": PLAN, "source": "192.0.2.7"}
    assert run("plan", "show", PLAN, "--format", "json").json == REVIEWED


def test_plan_show_is_coloured_on_a_terminal(run, monkeypatch, capsysbinary):
    """Added lines green, removed ones red; NO_COLOR is respected."""
    for no_color, wanted in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", no_color)
        out = io.StringIO()
        out.isatty = lambda: True
        monkeypatch.setattr(sys, "stdout", out)
        run("plan", "show", PLAN)
        assert ("\x1b[32m+port 2\\x1b[2J\x1b[0m\n" in out.getvalue()) is wanted
        assert ("\x1b[31m-port 23\x1b[0m\n" in out.getvalue()) is wanted
    assert capsysbinary.readouterr().out == b""


@pytest.mark.parametrize("answer", [root_helpers.fault("denied", "you are no approver"), None])
def test_plan_show_without_helper_shows_the_intent(run, api, helper, answer):
    """And fails as the helper does."""
    helper.answers = {"observe": answer}
    api.override["GET plans"] = 200, {"plans": [ROW], "next": None, "helper": ""}
    api.override[f"GET plans/{PLAN}"] = 200, {**ROW, "plugins": ["acme.guard"], "intent": {"n": "\x1b"}, "helper": ""}
    ran = run("plan", "show", "3F0C91AB")
    assert ran.code == (5 if answer else 7)
    assert f"plan     {PLAN}" in ran.out
    assert '    "n": "\\u001b"' in ran.out
    assert "error:" in ran.err


def test_faults_of_an_intent_are_printed(run, helper):
    finding = {"code": "port", "path": "rules[3].ports", "expected": "1 to 65535", "found": "70000\x1b", "hint": ""}
    helper.answers["review"] = root_helpers.fault("intent_refused", "1 fault", findings=[finding], hint="mend it")
    ran = run("plan", "show", "3f0c91ab")
    assert (ran.code, ran.out) == (1, "")
    assert "rules[3].ports: expected 1 to 65535, found 70000\\x1b\nerror: 1 fault\nhint: mend it\n" in ran.err


# Names.


@pytest.mark.parametrize("given", ["3f0c91a", "3f0c91ag", "", "x" * 64, PLAN + "0", "3f0c91ab\n", "３f0c91ab"])
def test_what_cannot_name_a_plan_is_usage(run, helper, given):
    ran = run("plan", "confirm", given)
    assert (ran.code, helper.asked) == (2, [])


def test_beginning_of_two_plans_names_none(run, helper):
    helper.answers["observe"] = root_helpers.observed(
        plans=(root_helpers.plan(PLAN, "planned"), root_helpers.plan(OTHER, "stale"))
    )
    ran = run("plan", "rollback", "3f0c91ab")
    assert (ran.code, helper.verbs()) == (2, ["observe"])
    assert PLAN in ran.err
    assert OTHER in ran.err
    assert run("plan", "rollback", PLAN[:9]).code == 0
    assert helper.asked[-1] == {"verb": "rollback", "plan": PLAN}


def test_unknown_plan_is_not_found(run, helper):
    ran = run("plan", "confirm", "deadbeef")
    assert (ran.code, helper.verbs()) == (4, ["observe"])
    helper.answers["confirm"] = root_helpers.fault("not_found", "there is no such plan")
    assert run("plan", "confirm", OTHER).code == 4


# Actions.


@pytest.mark.parametrize(
    ("words", "sent", "code", "out"),
    [
        (("approve", PLAN, REVIEW.upper()), {"review": REVIEW, "source": "192.0.2.7"}, 0, "approved"),
        (("refuse", PLAN), {}, 0, "refused"),
        (("apply", PLAN), {"confirm_within_s": 0, "source": "192.0.2.7"}, 0, "unconfirmed for 60 s more"),
        (("apply", PLAN, "--confirm-within", "2m"), {"confirm_within_s": 120, "source": "192.0.2.7"}, 0, "unconfirmed"),
        (("confirm", PLAN), {}, 0, "applied"),
        (("rollback", PLAN), {}, 0, "rolled_back"),
    ],
)
def test_action_is_sent_to_the_helper(run, helper, words, sent, code, out):
    """As the helper's own protocol has it; the state that it answers is printed."""
    ran = run("plan", *words)
    assert (ran.code, f"3f0c91ab0000 {out}" in ran.out) == (code, True)
    assert helper.asked == [{"verb": words[0], "plan": PLAN, **sent}]
    protocol.decode_request(json.dumps(helper.asked[0]).encode() + b"\n")
    assert run("plan", *words, "--format", "json").json["plan"] == PLAN


@pytest.mark.parametrize(("action", "state"), [("confirm", "applied"), ("rollback", "rolled_back")])
def test_action_that_holds_already_succeeds(run, helper, action, state):
    """And says so; in any other state it is an error, and so is a deadline that has passed."""
    refusal = root_helpers.fault("invalid_transition", "it is not unconfirmed")
    for code, found, ends in (
        ("invalid_transition", state, 0),
        ("invalid_transition", "stale", 1),
        ("expired", state, 1),
        ("expired", "rolled_back", 1),
    ):
        helper.answers[action] = {**refusal, "code": code}
        helper.answers["observe"] = root_helpers.observed(plans=(root_helpers.plan(PLAN, found),))
        ran = run("plan", action, PLAN)
        assert (ran.code, "it was so already" in ran.err) == (ends, not ends)


@pytest.mark.parametrize("review", ["91aa91aa", "", REVIEW[:-1], REVIEW + "0", "g" * 64])
def test_approval_takes_the_whole_review(run, helper, review):
    """The digits that a table shows are no proof that it was read."""
    assert (run("plan", "approve", PLAN, review).code, helper.asked) == (2, [])


@pytest.mark.parametrize("given", ["0", "0s", "61m", "2h", "-1s", "1.5m", "m", "", "99999999", "\u0663s"])
def test_bad_time_to_confirm_is_usage(run, helper, given):
    assert (run("plan", "apply", PLAN, f"--confirm-within={given}").code, helper.asked) == (2, [])


@pytest.mark.parametrize(("code", "ends"), [("stale", 1), ("target_busy", 1), ("denied", 5), ("expired", 1)])
def test_refusal_of_the_helper_is_an_error(run, helper, code, ends):
    helper.answers["apply"] = root_helpers.fault(code, "the reason\x1b", hint="the hint")
    ran = run("plan", "apply", PLAN)
    assert (ran.code, ran.out, ran.err) == (ends, "", "error: the reason\\x1b\nhint: the hint\n")


# Whom it speaks to.


def test_helper_that_does_not_run_is_told_apart(ctl, tmp_path):
    settings = tmp_path / "latticed.toml"
    settings.write_text(f'[apply]\nsocket = "{tmp_path}/nowhere.sock"\n')
    ran = ctl("plan", "confirm", PLAN, "--config", str(settings))
    assert (ran.code, "the root helper is not running" in ran.err, "sudo latticed-apply" in ran.err) == (7, True, True)


def test_nothing_is_sent_to_a_socket_of_another_user(run, helper, monkeypatch):
    """Whoever listens there must be root."""
    real = socket.socket.getsockopt

    def other(self, level, option, *size):
        if option == socket.SO_PEERCRED:
            return root_helper._CREDENTIALS.pack(4711, 12345, 12345)
        return real(self, level, option, *size)

    monkeypatch.setattr(root_helper.BoundedSocket, "getsockopt", other, raising=False)
    ran = run("plan", "approve", PLAN, REVIEW)
    assert (ran.code, helper.asked) == (5, [])
    assert "uid 12345, expected root; nothing was sent" in ran.err


@pytest.mark.parametrize(
    "answer", [b"", b"\n", b"[]\n", b"no JSON\n", b"[" * 100_000 + b"\n", b"x" * (9 << 20), b"{}", b"\xff\n", b"5\n"]
)
def test_broken_answer_is_one_error(run, helper, answer):
    helper.answers["confirm"] = answer
    ran = run("plan", "confirm", PLAN)
    assert ran.code in {1, 7}
    assert ran.err.count("error:") == 1
    assert "Traceback" not in ran.err


def test_helper_has_as_long_for_its_answer_as_it_may_take():
    """Else an apply is given up, and with `apply -f` its configuration taken back, while the helper goes on."""
    assert root_helper.ANSWER_S > protocol.OPERATION_S


def test_answer_that_never_ends_is_cut(run, helper, monkeypatch):
    monkeypatch.setattr(root_helper, "ANSWER_S", 0.1)
    helper.answers["confirm"] = lambda _: select.select([], [], [], 0.5) and None
    ran = run("plan", "confirm", PLAN)
    assert (ran.code, "did not answer within 0.1 s" in ran.err) == (7, True)


# In one sitting.


@pytest.fixture
def sitting(run, api, helper, monkeypatch):
    """`latticectl apply`; `typed` is what a terminal would send, None: there is no terminal."""
    api.override["POST plugins/by-id/acme.guard/invoke"] = 200, {"ok": True, "result": {"sha256": PLAN}}

    def sit(*words, typed=None):
        reading, writing = os.pipe()
        with os.fdopen(reading, "r"):
            os.write(writing, (typed or "").encode())
            os.close(writing)
            stdin_is_terminal = typed is not None

            class Terminal:
                def isatty(self):
                    return stdin_is_terminal

                def readline(self):
                    # One byte at a time: select() sees what a buffer would have taken.
                    line = ""
                    while not line.endswith("\n") and (char := os.read(reading, 1).decode()):
                        line += char
                    return line

                def fileno(self):
                    return reading

            monkeypatch.setattr(sys, "stdin", Terminal())
            return run("apply", "acme.guard", *words)

    return sit


def test_apply_in_one_sitting(sitting, helper):
    """Planned, shown, approved by the first eight digits, applied, confirmed by Enter."""
    ran = sitting(typed="91aa91aa\n\n")
    assert ran.code == 0, ran.err
    assert helper.verbs() == ["observe", "review", "observe", "approve", "apply", "confirm"]
    assert helper.asked[3] == {"verb": "approve", "plan": PLAN, "review": REVIEW, "source": "192.0.2.7"}
    assert "-port 23" in ran.out
    assert ran.out.endswith("3f0c91ab0000 applied\n")


@pytest.mark.parametrize("typed", ["\n", "91aa91a\n", "91aa91ab\n", "y\n", "yes\n", ""])
def test_wrong_digits_change_nothing(sitting, helper, typed):
    ran = sitting(typed=typed)
    assert (ran.code, helper.verbs()) == (1, ["observe", "review", "observe"])
    assert "nothing was changed" in ran.err


@pytest.mark.parametrize("typed", ["91aa91aa\nr\n", "91aa91aa\n", "91aa91aa\nno\n"])
def test_countdown_that_is_not_confirmed_is_undone(sitting, helper, typed):
    """By `r`, by the end of input, by anything but Enter."""
    ran = sitting(typed=typed)
    assert (ran.code, helper.verbs()[-2:]) == (1, ["apply", "rollback"])
    assert ran.out.endswith("3f0c91ab0000 rolled_back\n")


def test_countdown_that_runs_out_says_so(sitting, helper):
    """The helper has undone it by then."""
    helper.answers["apply"] = root_helpers.moved(PLAN, "unconfirmed", deadline_s=0.0)
    helper.answers["observe"] = [
        root_helpers.observed(),
        root_helpers.observed(),
        root_helpers.observed(plans=(root_helpers.plan(PLAN, "rolled_back"),)),
    ]
    script = iter(helper.answers["observe"])
    helper.answers["observe"] = lambda _: next(script)
    ran = sitting(typed="91aa91aa\n")
    assert (ran.code, helper.verbs()[-1]) == (1, "observe")
    assert ran.out.endswith("3f0c91ab0000 rolled_back\n")
    assert "not confirmed in time" in ran.err


def test_interrupted_countdown_is_undone(sitting, helper, monkeypatch):

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(apply_verb, "_counted_down", interrupted)
    ran = sitting(typed="91aa91aa\n")
    assert (ran.code, helper.verbs()[-1]) == (1, "rollback")


def test_apply_without_terminal_shows_the_review_first(sitting, helper):
    """It ends with the command that approves what was shown; with that it is applied, and waits to be confirmed."""
    ran = sitting()
    assert (ran.code, helper.verbs()) == (1, ["observe", "review", "observe"])
    assert f"latticectl apply acme.guard --review {REVIEW}" in ran.err
    ran = sitting("--review", REVIEW)
    assert (ran.code, helper.verbs()[3:]) == (0, ["observe", "review", "observe", "approve", "apply"])
    assert "latticectl plan confirm 3f0c91ab0000" in ran.err
    ran = sitting("--review", REVIEW, "--confirm", "--confirm-within", "5m", "--format", "json")
    assert (ran.code, ran.json["state"], helper.verbs()[-1]) == (0, "applied", "confirm")
    assert helper.asked[-2]["confirm_within_s"] == 300


def test_another_review_than_the_one_given_changes_nothing(sitting, helper):
    ran = sitting("--review", "00" * 32)
    assert (ran.code, "approve" in helper.verbs()) == (1, False)
    assert "nothing was changed" in ran.err
    assert sitting("--review", "91aa91aa").code == 2


def test_what_only_takes_away_needs_no_approval(sitting, helper):
    helper.answers["review"] = {**REVIEWED, "narrows": True}
    helper.answers["apply"] = root_helpers.moved(PLAN, "applied")
    ran = sitting()
    assert (ran.code, helper.verbs()) == (0, ["observe", "review", "observe", "apply"])


def test_plan_that_is_applied_already_succeeds(sitting, helper):
    helper.answers["review"] = {**REVIEWED, "state": "applied", "diff": ""}
    ran = sitting()
    assert (ran.code, helper.verbs()) == (0, ["observe", "review"])
    assert "is applied already" in ran.err


def test_refused_plan_is_not_asked_for_again(sitting, helper):
    helper.answers["review"] = {**REVIEWED, "state": "refused"}
    ran = sitting("--review", REVIEW)
    assert (ran.code, helper.verbs()) == (1, ["observe", "review"])
    assert "was refused for good; nothing was changed" in ran.err


def test_each_step_says_what_failed(sitting, api, helper):
    """Nothing after it is done."""
    target = {"kind": "nft", "unconfirmed": OTHER, "deadline_s": 5.0}
    good = helper.answers.copy()
    for answers, verbs, words in (
        ({"observe": root_helpers.fault("denied", "you are no approver")}, ["observe"], "you are no approver"),
        ({"review": root_helpers.fault("tool_missing", "no nft")}, ["observe", "review"], "review: no nft"),
        (
            {"observe": root_helpers.observed(targets=[target])},
            ["observe", "review", "observe"],
            "unconfirmed change of plan 3f0c91ab1111; nothing was changed",
        ),
        ({"approve": root_helpers.fault("stale", "it moved")}, ["observe", "review", "observe", "approve"], "it moved"),
        (
            {"apply": root_helpers.fault("apply_failed", "self-check: 22 is closed")},
            ["observe", "review", "observe", "approve", "apply"],
            "apply: self-check: 22 is closed",
        ),
    ):
        helper.asked.clear()
        helper.answers = {**good, **answers}
        ran = sitting("--review", REVIEW)
        assert (ran.code, helper.verbs()) == (5 if "denied" in str(answers) else 1, verbs), ran.err
        assert words in ran.err
    helper.asked.clear()
    helper.answers = good
    for reply, words in (
        ({"ok": False, "error": "no zone"}, "planning: acme.guard refused: no zone; nothing was changed"),
        ({"ok": True, "result": {"sha256": "abc"}}, "acme.guard has no plan"),
        ({"ok": True, "result": None}, "acme.guard has no plan"),
    ):
        api.override["POST plugins/by-id/acme.guard/invoke"] = 200, reply
        ran = sitting("--review", REVIEW)
        assert (ran.code, set(helper.verbs())) == (1, {"observe"})
        assert words in ran.err
    api.override["POST plugins/by-id/acme.guard/invoke"] = api_server.problem(409, "not_armed", "it does not run")
    assert sitting("--review", REVIEW).code == 1
    made = {"sha256": PLAN, "code": "helper_unavailable", "reason": "the root helper is not running"}
    api.override["POST plugins/by-id/acme.guard/invoke"] = 200, {"ok": True, "result": made}
    helper.answers["review"] = root_helpers.fault("not_found", "there is no such plan")
    assert "could not offer the plan: helper_unavailable" in sitting().err


# With a configuration.


@pytest.fixture
def configured(api, tmp_path):
    """What is sent to set a configuration, and a file to set."""
    file = tmp_path / "guard.toml"
    file.write_text("open = [22]\n")
    sent = []
    route = "plugins/by-id/acme.guard/config"
    api.override[f"GET {route}"] = 200, {"config": {"open": []}, "is_set": True}
    api.override[f"PUT {route}"] = 200, {"changed": True, "state": "armed", "secrets": []}

    def bodies():
        sent[:] = [json.loads(one) for one in api.bodies if b'"dry_run"' in one]
        return [(one["config"], one["dry_run"]) for one in sent]

    return str(file), bodies


def test_configuration_is_checked_set_and_kept(sitting, helper, configured):
    file, bodies = configured
    ran = sitting("-f", file, "--review", REVIEW)
    assert (ran.code, bodies()) == (0, [({"open": [22]}, True), ({"open": [22]}, False)])
    assert helper.verbs()[-1] == "apply"


@pytest.mark.parametrize("step", ["invoke", "review", "approve", "apply"])
def test_configuration_is_put_back_when_a_step_fails(sitting, api, helper, configured, step):
    file, bodies = configured
    if step == "invoke":
        api.override["POST plugins/by-id/acme.guard/invoke"] = 200, {"ok": False, "error": "no zone"}
    else:
        helper.answers[step] = root_helpers.fault("stale")
    ran = sitting("-f", file, "--review", REVIEW)
    assert (ran.code, bodies()[1:]) == (1, [({"open": [22]}, False), ({"open": []}, False)])
    assert "acme.guard has the configuration of before again" in ran.err


def test_configuration_is_put_back_when_it_is_undone(sitting, configured):
    file, bodies = configured
    ran = sitting("-f", file, typed="91aa91aa\nr\n")
    assert (ran.code, bodies()[-1]) == (1, ({"open": []}, False))


def test_configuration_is_not_touched_without_a_helper(ctl, api, tmp_path, configured):
    file, bodies = configured
    settings = tmp_path / "other.toml"
    settings.write_text(f'[apply]\nsocket = "{tmp_path}/nowhere.sock"\n')
    assert ctl("apply", "acme.guard", "-f", file, "--config", str(settings)).code == 7
    assert bodies() == []


def test_next_command_follows_a_new_configuration(ctl, api, configured):
    """Of a plugin that plans changes of the host; of no other."""
    file, _ = configured
    for capabilities, wanted in ((["kv:read", "network:plan"], True), (["kv:read"], False)):
        record = api_server.plugin("acme.guard", capabilities=capabilities)
        api.override["GET plugins/by-id/acme.guard"] = 200, {"plugin": record}
        ran = ctl("config", "set", "acme.guard", "-f", file)
        assert (ran.code, "hint: latticectl apply acme.guard\n" in ran.err) == (0, wanted), ran.err


# What stands against a plan.

FINDING = {
    "code": "lockout_source",
    "path": "bindings",
    "expected": "a way to sshd from 192.0.2.7\x1b",
    "found": "its new connections are dropped",
    "overridable": True,
}
STANDING = {**REVIEWED, "findings": [FINDING, FINDING], "overridden": []}


def test_plan_show_prints_what_stands_against_a_plan_and_what_was_overridden(run, helper):
    """The command is no whole one to copy: it is to be thought of."""
    helper.answers["review"] = STANDING
    ran = run("plan", "show", PLAN)
    assert "lockout_source: expected a way to sshd from 192.0.2.7\\x1b, found its new connections" in ran.out
    assert "hint: mend the findings, or add --override lockout_source to: latticectl plan approve" in ran.err
    helper.answers["review"] = {**REVIEWED, "state": "approved", "findings": [], "overridden": [FINDING]}
    assert "overridden  lockout_source: expected a way" in run("plan", "show", PLAN).out


def test_override_is_sent_with_the_approval(run, helper):
    assert run("plan", "approve", PLAN, REVIEW, "--override", "lockout_source", "--override=lockout").code == 0
    assert helper.asked[0]["overrides"] == ["lockout_source", "lockout"]
    protocol.decode_request(json.dumps(helper.asked[0]).encode() + b"\n")


def test_approval_without_the_override_prints_the_findings(run, helper):
    helper.answers["approve"] = root_helpers.fault("intent_refused", "1 fault", findings=[FINDING])
    ran = run("plan", "approve", PLAN, REVIEW)
    assert (ran.code, "bindings: expected a way to sshd from" in ran.err) == (1, True)


@pytest.mark.parametrize("word", ["", "A", "a b", "_a", "a" * 33, "lockout\n", "ſ"])
def test_override_of_what_can_be_no_code_is_usage(run, helper, word):
    assert (run("plan", "approve", PLAN, REVIEW, f"--override={word}").code, helper.asked) == (2, [])


def test_apply_asks_nobody_while_something_stands_against_the_plan(sitting, helper):
    helper.answers["review"] = STANDING
    ran = sitting(typed="91aa91aa\n\n")
    assert (ran.code, helper.verbs()) == (1, ["observe", "review", "observe"])
    assert "lockout_source stands against the plan" in ran.err
    ran = sitting("--override", "lockout_source", typed="91aa91aa\n\n")
    assert (ran.code, helper.verbs()[-3:]) == (0, ["approve", "apply", "confirm"])
    assert next(one for one in helper.asked if one["verb"] == "approve")["overrides"] == ["lockout_source"]
