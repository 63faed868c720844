"""latticectl fleet, as an operator of many hosts uses it, with a simulated controller on a real socket."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from latticed.fleet import controller_view as view
from latticed.fleet import documents, enrolment, nkeys
from latticed.trust import key_files
from tests.house import answering_controllers, api_server, bundles, filled_answers, long, processes, terminals
from tests.house.answering_controllers import INTENT, NOW, SimulatedController, event, node, rollout, wave

ENVELOPE = {"payload": "eyJ9", "signature": "c2ln", "key": "a2V5"}
COMMAND = (sys.executable, "-m", "latticed.ctl.main", "fleet")
INSTALL = view.PlannedChange(
    plugin="acme.demo",
    change="install",
    to_version="1.1.0",
    to_status="active",
    accept=("kv:read", "http:egress"),
    added=("http:egress",),
    secrets=("token",),
)


@pytest.fixture
def controller(ctl, monkeypatch, tmp_path_factory) -> Iterator[SimulatedController]:
    """One that LATTICED_CONTROLLER leads to; nothing is at the daemon's socket."""
    socket = tmp_path_factory.mktemp("s") / "f.sock"
    monkeypatch.setenv("LATTICED_CONTROLLER", str(socket))
    monkeypatch.setenv("LATTICED_SOCKET", str(socket.with_name("none")))
    with api_server.serving(socket, SimulatedController) as served:
        yield served


@pytest.fixture
def intent(tmp_path):
    path = tmp_path / "web.intent"
    path.write_text(json.dumps(ENVELOPE))
    return path


def test_status_says_who_acts_and_how_the_nodes_are(ctl, controller):
    controller.nodes.append(node("web-3", "away"))
    ran = ctl("fleet", "status")
    assert ran.code == 0
    for said in ("shop", "control-1 9.8.7, acts", "connected", "valid", "4: 3 settled, 1 away"):
        assert said in ran.out
    assert ctl("fleet", "status", "--format", "json").json["nodes"]["settled"] == 3
    controller.leader = False
    assert "waits: control-2" in ctl("fleet", "status").out


def test_status_check_fails_when_somebody_has_to_look(ctl, controller):
    assert ctl("fleet", "status", "--check").code == 0
    alarm = view.AlarmView(
        code="operator_unknown", reason="a stranger signs", hint="revoke it", node="web-1", since=NOW
    )
    controller.alarms = (alarm,)
    ran = ctl("fleet", "status", "--check")
    assert (ran.code, "operator_unknown" in ran.out, "hint: revoke it" in ran.err) == (3, True, True)
    controller.alarms, controller.engine = (), view.EngineView(connected=False, reason="no route to it")
    assert ctl("fleet", "status", "--check").code == 3
    assert "away: no route to it" in ctl("fleet", "status").out


def test_nodes_are_listed_over_all_pages_and_filtered(ctl, controller):
    controller.page = 2
    controller.nodes = [node(f"web-{number}", "unwell" if number == 3 else "settled") for number in range(1, 6)]
    assert [one["name"] for one in ctl("fleet", "nodes", "--format", "json").json] == [f"web-{n}" for n in range(1, 6)]
    assert [one["name"] for one in ctl("fleet", "nodes", "--state", "unwell", "--format", "json").json] == ["web-3"]
    assert ctl("fleet", "nodes", "--label", "role=db", "--format", "json").json == []
    table = ctl("fleet", "nodes").out
    assert "role=web zone=eu" in table
    assert INTENT[:12] in table
    assert ctl("fleet", "nodes", "--label", "role").code == 2


def test_a_list_of_nodes_that_leads_nowhere_ends(ctl, controller):
    """A controller that says `next` for ever does not hold the operator."""
    page = view.NodesPage(nodes=(node("web-1"),), next="web-1")
    controller.override["GET fleet/nodes"] = (200, msgspec.to_builtins(page))
    assert len(ctl("fleet", "nodes", "--format", "json").json) == 2


def test_a_node_is_shown_with_its_plugins_and_what_waits_on_it(ctl, controller):
    plugin = view.PluginView(
        id="acme.demo",
        version="1.0.0",
        identity="7f" * 32,
        status="active",
        state="armed",
        health="unhealthy",
        restarts=4,
        denied=2,
        code="changed_here",
        reason="altered\x1b[2J on the host",
    )
    controller.details["web-1"] = {"plugins": (plugin,), "plans": ("ab" * 32,), "missed": 3, "reported": 6}
    ran = ctl("fleet", "node", "web-1")
    assert ran.code == 0
    assert "changed_here: altered\\x1b[2J on the host" in ran.out
    assert "3 never came" in ran.out
    assert "latticectl plan show abababababab" in ran.err
    assert ctl("fleet", "node", "web-1", "--format", "json").json["missed"] == 3
    missing = ctl("fleet", "node", "web-9")
    assert (missing.code, "found web-9" in missing.err) == (4, True)


def test_events_are_the_newest_those_of_a_node_or_those_after_one(ctl, controller):
    controller.fleet_events = [event(number, "web-1" if number % 2 else "web-2") for number in range(1, 41)]
    assert [json.loads(one)["id"] for one in ctl("fleet", "events", "--format", "json").out.splitlines()] == list(
        range(21, 41)
    )
    of_one = ctl("fleet", "events", "--node", "web-2", "--last", "2", "--format", "json").out.splitlines()
    assert [json.loads(one)["id"] for one in of_one] == [38, 40]
    after = ctl("fleet", "events", "--after", "38", "--format", "json").out.splitlines()
    assert [json.loads(one)["id"] for one in after] == [39, 40]
    assert "fleet.taken_up" in ctl("fleet", "events", "--last", "1").out
    assert ctl("fleet", "events", "--last", "1", "--after", "2").code == 2
    assert ctl("fleet", "events", "--last", "1001").code == 2


def test_followed_events_come_once_each_across_a_controller_that_goes_and_comes(controller):
    controller.fleet_events = [event(1), event(2)]
    out = controller.socket.with_name("out")
    with (
        out.open("wb") as file,
        running(controller, "events", "-f", "--after", "1", "--format", "json", out=file) as one,
    ):
        processes.until(lambda: len(out.read_bytes().splitlines()) == 1, what="the event")
        controller.drop = 2
        controller.fleet_events += [event(3), event(4)]
        processes.until(lambda: len(out.read_bytes().splitlines()) == 3, what="the events that came meanwhile")
        one.send_signal(signal.SIGINT)
        assert one.wait(processes.PATIENCE_S) == 130
    assert [json.loads(line)["id"] for line in out.read_bytes().splitlines()] == [2, 3, 4]
    # A page of those that there are, asked for first, would be a moment in which a controller that goes is an error.
    assert {one.partition("?")[2].partition("&")[2] for one in controller.asked} == {"follow=1"}


def test_following_a_controller_that_was_never_reached_is_an_error(ctl, controller):
    controller.drop = 4
    for words in (("-f",), ("-f", "--after", "1")):
        ran = ctl("fleet", "events", *words)
        assert (ran.code, "closed the connection" in ran.err) == (7, True), ran.err


def test_a_dry_run_shows_per_node_what_would_change_and_what_it_is_asked_to_consent_to(ctl, controller, intent):
    controller.changes = {"web-1": (INSTALL,), "web-2": (msgspec.structs.replace(INSTALL, change="none"),)}
    ran = ctl("fleet", "plan", str(intent))
    assert ran.code == 0
    assert controller.sent[0] == ("documents", ENVELOPE)
    rows = {line.split()[0]: line for line in ran.out.splitlines()[1:]}
    assert "install" in rows["web-1"]
    assert "1.1.0 active" in rows["web-1"]
    # What the present intent does not name has a plus, and host risk is said.
    assert "+http:egress (host), kv:read, secret token" in rows["web-1"]
    assert "none" in rows["web-2"]
    assert "3 nodes: 1 would change, 0 cannot, 0 are away; waves of 1, 1, 1" in ran.err
    assert "db-1 could not go back by itself" in ran.err
    only = ctl("fleet", "plan", str(intent), "--node", "web-1", "--format", "json").json
    assert [one["node"] for one in only["nodes"]] == ["web-1"]


def test_a_dry_run_fails_where_a_node_would_not_take_it_up(ctl, controller, intent):
    controller.refusing = {"web-2": "not_selected"}
    ran = ctl("fleet", "plan", str(intent))
    assert (ran.code, "not_selected: simulated" in ran.out) == (1, True)
    controller.refusing = {}
    controller.changes = {"web-1": (msgspec.structs.replace(INSTALL, change="blocked", reason="no bundle"),)}
    assert ctl("fleet", "plan", str(intent)).code == 1


def test_an_intent_is_named_by_its_file_or_the_beginning_of_its_digest(ctl, controller, intent, tmp_path):
    assert ctl("fleet", "plan", INTENT[:8]).code == 0
    assert controller.sent == [("plan", view.PlanWanted(intent=INTENT))]
    unknown = ctl("fleet", "plan", "abcdefab")
    assert (unknown.code, "found 0" in unknown.err) == (4, True)
    assert ctl("fleet", "plan", str(tmp_path / "none")).code == 4
    for data in (b"{}", b"[", b"x" * 300_000, json.dumps({**ENVELOPE, "more": 1}).encode()):
        intent.write_bytes(data)
        assert ctl("fleet", "plan", str(intent)).code == 2


def test_a_bundle_is_handed_over_once_and_is_the_same_file_each_time(ctl, controller, intent, tmp_path):
    made = bundles.drop(tmp_path, "demo", author=bundles.author("acme"), id="acme.demo")
    assert ctl("fleet", "plan", str(intent), "--bundle", str(made.path)).code == 0
    assert "here already" in ctl("fleet", "plan", str(intent), "--bundle", str(made.path)).err
    assert len(controller.held) == 1
    assert len([one for one in controller.asked if one.startswith("PUT")]) == 1
    (data,) = controller.held.values()
    copy = tmp_path / "demo.tar"
    copy.write_bytes(data)
    assert "here already" in ctl("fleet", "plan", str(intent), "--bundle", str(copy)).err
    missing = ctl("fleet", "plan", str(intent), "--bundle", str(tmp_path / "nothing"))
    assert (missing.code, "cannot read" in missing.err) == (1, True)


def test_what_was_signed_is_handed_over_file_by_file(ctl, controller, intent, tmp_path):
    ran = ctl("fleet", "send", str(intent), str(intent))
    assert (ran.code, ran.out.count(f"intent, taken, SHA-256 {INTENT}")) == (0, 2)
    assert controller.sent == [("documents", ENVELOPE)] * 2
    assert [one["new"] for one in ctl("fleet", "send", str(intent), "--format", "json").json] == [True]
    controller.sent.clear()
    # Nothing of it where one of them is none.
    assert ctl("fleet", "send", str(intent), str(tmp_path / "none")).code == 4
    assert controller.sent == []
    controller.override["POST fleet/documents"] = api_server.problem(422, "operator_unknown", "a stranger signed it")
    assert ctl("fleet", "send", str(intent)).code == 1


def test_a_rollout_is_followed_to_its_end(ctl, controller, intent):
    done = rollout("done", wave(1, well=1), wave(2, well=2))
    controller.course = [rollout(), rollout("running", wave(1, well=1), wave(2, pending=2)), done]
    ran = ctl(
        *("fleet", "roll", str(intent), "--name", "r1", "--wave", "1", "--wave", "2"),
        *("--gate", "settle_s=5", "--gate", "restarts=0"),
    )
    assert ran.code == 0
    wanted = next(what for kind, what in controller.sent if kind == "rollouts")
    assert (wanted.sizes, wanted.policy.settle_s, wanted.policy.restarts) == ((1, 2), 5.0, 0)
    # On what is no terminal a line for each change.
    said = [line for line in ran.err.splitlines() if line.startswith("r1: ")]
    assert said[0] == "r1: running, wave 1 of 2, 1 of 1 well, given to 1 of 3 nodes"
    assert said[-1] == "r1: done, wave 2 of 2, 2 of 2 well, given to 3 of 3 nodes"
    assert "2 had 77aa00bb" in ran.out
    assert "1 can go back to nothing" in ran.out
    assert "1 of 3 nodes have no way back: where it is bad they keep it" in ran.err


@pytest.mark.parametrize(("state", "hint"), [("halted", "fleet resume r1"), ("returned", "--state unwell")])
def test_a_rollout_that_does_not_end_well_fails(ctl, controller, intent, state: str, hint: str):
    controller.course = [rollout(state, reason="1 of 1 nodes are not well, such as web-1", unwell=("web-1",))]
    ran = ctl("fleet", "roll", str(intent))
    assert (ran.code, hint in ran.err, "such as web-1" in ran.err) == (1, True, True)


def test_one_that_goes_on_is_followed_by_name_through_a_controller_that_is_away(ctl, controller):
    controller.course = [rollout(), rollout("done", wave(3, well=3))]
    controller.rollouts = [rollout()]
    controller.drop = 4
    ran = ctl("fleet", "roll", "--follow", "r1", "--format", "json")
    assert (ran.code, ran.json["state"]) == (0, "done")
    assert "not seen now" in ran.err


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("x", "--follow", "r1"),
        (INTENT, "--gate", "settle_s"),
        (INTENT, "--gate", "settle_s=-1"),
        (INTENT, "--gate", "restarts=1.5"),
        (INTENT, "--gate", "speed=1"),
        (INTENT, "--wave", "x"),
    ],
)
def test_a_rollout_that_is_asked_for_wrongly_is_not_begun(ctl, controller, words: tuple[str, ...]):
    assert ctl("fleet", "roll", *words).code == 2
    assert controller.sent == []


def test_ctrl_c_leaves_a_rollout_going_on_and_says_so(controller):
    controller.rollouts = [rollout()]
    err = controller.socket.with_name("err")
    with err.open("wb") as file, running(controller, "roll", "--follow", "r1", err=file) as one:
        controller.until_asked(2)
        one.send_signal(signal.SIGINT)
        assert one.wait(processes.PATIENCE_S) == 130
    assert "it goes on: latticectl fleet roll --follow r1, or latticectl fleet halt r1" in err.read_text()
    assert [one for one in controller.asked if not one.startswith("GET")] == []


def test_on_a_terminal_the_progress_is_one_line(controller):
    controller.rollouts = [rollout()]
    controller.course = [rollout(), rollout("done", wave(3, well=3))]
    ours, theirs = pty.openpty()
    try:
        with running(controller, "roll", "--follow", "r1", err=theirs) as one:
            assert one.wait(processes.PATIENCE_S) == 0
    finally:
        said = terminals.shown(ours, theirs).decode()
    assert said.count("\n") == 0
    assert said.startswith("\r\x1b[Kr1: running, wave 1 of 2")
    assert said.endswith("\r\x1b[K")


@pytest.mark.parametrize("verb", ["halt", "resume", "back"])
def test_the_one_rollout_that_is_under_way_need_not_be_named(ctl, controller, verb: str):
    controller.rollouts = [rollout("returned", name="r0"), rollout()]
    controller.course = [rollout("halted"), rollout("returned")]
    assert ctl("fleet", verb, "--reason", "the shop is slow").code == 0
    assert controller.sent == [(f"{verb} r1", view.WithReason(reason="the shop is slow"))]


def test_which_rollout_is_meant_is_said_where_there_is_none_or_several(ctl, controller):
    controller.rollouts = [rollout("done")]
    none = ctl("fleet", "halt")
    assert (none.code, "the last one was r1" in none.err) == (4, True)
    controller.rollouts = [rollout(name="r1"), rollout(name="r2")]
    several = ctl("fleet", "halt")
    assert (several.code, "r1, r2 are under way" in several.err) == (2, True)
    assert controller.sent == []


def test_going_back_fails_where_nodes_have_no_way_back(ctl, controller):
    controller.rollouts = [rollout()]
    controller.course = [rollout("returning"), rollout("returned", stuck=("web-2",))]
    ran = ctl("fleet", "back")
    assert (ran.code, "such as web-2" in ran.err) == (1, True)


def test_no_controller_and_no_permission_are_told_apart(ctl, controller, tmp_path):
    away = ctl("fleet", "nodes", "--controller", str(tmp_path / "none"))
    assert (away.code, "the controller is not running" in away.err, "latticed-controller" in away.err) == (
        7,
        True,
        True,
    )
    controller.override["GET fleet"] = api_server.problem(403, "forbidden", "expected uid 0", "ask root")
    assert ctl("fleet", "status").code == 5
    controller.override["GET fleet"] = (200, b"[1]")
    assert "no proper fleet" in ctl("fleet", "status").err


# invoke


class Invited:
    """A node that joined by an operator's invitation, and answers what is asked of it under its own key."""

    def __init__(self, controller: SimulatedController, directory) -> None:
        self.operator = Ed25519PrivateKey.generate()
        self.node = Ed25519PrivateKey.generate()
        self.key_file, self.home = directory / "operator.key", directory / "home"
        key_files.create(self.key_file, self.operator, b"")
        self.home.mkdir()
        facts = {"fleet": "shop", "addresses": ["tls://fleet.example.org:4222"]}
        operators = [key_files.public_text(self.operator)]
        (self.home / "fleet.json").write_text(json.dumps({**facts, "operators": operators}))
        self.asked: list[documents.Invocation] = []
        self.forging: dict[str, object] = {}
        controller.invoked = self.answer
        controller.override["GET fleet/nodes/web-1"] = (200, self.view())

    def view(self, **fields: object) -> dict[str, object]:
        row = answering_controllers._plain(view.NodeView(node=node("web-1"), key="bm9k" * 11, serial=1))[1]
        return {**row, "enrolment": self.joined().decode(), **fields}

    def joined(self, **fields: object) -> bytes:
        invitation = Ed25519PrivateKey.generate()
        operator = key_files.public_text(self.operator)
        token = documents.EnrolmentToken(
            fleet=str(fields.get("fleet", "shop")),
            token=enrolment.nonce_of(key_files.public_text(invitation)),
            addresses=("tls://fleet.example.org:4222",),
            certificates="",
            operators=(operator,),
            node=str(fields.get("node", "web-1")),
            labels={},
            expires=NOW,
        )
        wanted = documents.EnrolmentRequest(
            fleet=str(fields.get("fleet", "shop")),
            token=token.token,
            node=token.node,
            node_key=key_files.public_text(self.node),
            user=nkeys.Key.generate(nkeys.KeyKind.USER).public,
        )
        envelopes = {
            "token": documents.sign(token, fields.get("signer", self.operator)),  # type: ignore[arg-type]
            "request": documents.sign(wanted, invitation),
        }
        return msgspec.json.encode({name: msgspec.Raw(one) for name, one in envelopes.items()})

    def answer(self, body: bytes) -> view.InvocationAnswer:
        wanted = documents.read(body, documents.Invocation)
        assert wanted.key == key_files.public_text(self.operator)
        self.asked.append(wanted.document)
        said = {"fleet": "shop", "node": "web-1", "nonce": wanted.document.nonce, "code": "", "reason": ""}
        answer = {"ok": True, "result": "hello"}
        made = documents.InvocationResult(**{**said, "answer": answer, **self.forging.get("fields", {})})  # type: ignore[dict-item]
        envelope = documents.sign(made, self.forging.get("key", self.node))  # type: ignore[arg-type]
        return view.InvocationAnswer(
            node=made.node,
            nonce=made.nonce,
            code=made.code,
            reason=made.reason,
            # By the controller's word alone.
            answer={"ok": True, "result": "forged"},
            envelope=str(self.forging.get("envelope", envelope.decode())),
        )


@pytest.fixture
def invited(controller, tmp_path) -> Invited:
    return Invited(controller, tmp_path)


def invoke(ctl, invited: Invited, *words: str):
    signing = ("--key", str(invited.key_file), "--fleet", str(invited.home))
    return ctl("fleet", "invoke", "web-1", "acme.demo", "greet", *words, *signing)


def test_an_invocation_is_signed_for_the_key_that_the_operator_invited(ctl, invited):
    before = int(time.time())
    ran = invoke(ctl, invited, '{"name": "Ada"}', "--valid", "60")
    assert (ran.code, ran.out) == (0, "hello\n")
    (wanted,) = invited.asked
    assert (wanted.fleet, wanted.node, wanted.node_key) == ("shop", "web-1", key_files.public_text(invited.node))
    assert (wanted.plugin, wanted.action, wanted.payload) == ("acme.demo", "greet", {"name": "Ada"})
    assert before + 60 <= wanted.expires <= time.time() + 60
    assert invoke(ctl, invited, "--format", "json").json == {"ok": True, "result": "hello"}
    assert len({one.nonce for one in invited.asked}) == 2


@pytest.mark.parametrize(
    "forging",
    [
        {"key": Ed25519PrivateKey.generate()},
        {"fields": {"node": "web-2"}},
        {"fields": {"fleet": "other"}},
        {"fields": {"nonce": "ab" * 16}},
        {"envelope": ""},
        {"envelope": "{}"},
    ],
    ids=["another key", "another node", "another fleet", "another question", "none", "empty"],
)
def test_an_answer_that_is_not_the_nodes_is_not_shown(ctl, invited, forging: dict[str, object]):
    invited.forging = forging
    ran = invoke(ctl, invited)
    assert (ran.code, ran.data) == (1, b"")
    assert "expected an answer signed by web-1" in ran.err


def test_what_kept_the_node_from_it_is_said(ctl, invited):
    invited.forging = {"fields": {"code": "invocation_expired", "reason": "valid until yesterday", "answer": {}}}
    ran = invoke(ctl, invited)
    assert (ran.code, "web-1: valid until yesterday" in ran.err) == (1, True)
    invited.forging = {"fields": {"answer": {"ok": False, "error": "no such action"}}}
    ran = invoke(ctl, invited)
    assert (ran.code, "no such action" in ran.err) == (1, True)


def test_nothing_is_signed_for_a_key_that_no_operator_invited(ctl, controller, invited):
    """By the controller's word alone, by a stranger's, for another node, for a node of another fleet of his."""
    stranger = Ed25519PrivateKey.generate()
    wrong = [b"", invited.joined(node="web-2"), invited.joined(signer=stranger), invited.joined(fleet="other")]
    for enrolled in wrong:
        controller.override["GET fleet/nodes/web-1"] = (200, invited.view(enrolment=enrolled.decode()))
        ran = invoke(ctl, invited)
        assert (ran.code, "--node-key KEY" in ran.err) == (1, True), ran.err
    assert invited.asked == []
    assert invoke(ctl, invited, "--node-key", key_files.public_text(invited.node)).code == 0


@pytest.mark.parametrize(
    "words",
    [("[1]",), ("{",), ("--valid", "0"), ("--valid", "3601"), ("--node-key", "x")],
)
def test_an_invocation_that_is_asked_for_wrongly_is_not_signed(ctl, invited, words: tuple[str, ...]):
    assert invoke(ctl, invited, *words).code == 2
    assert invited.asked == []


@contextlib.contextmanager
def running(controller: SimulatedController, *words: str, out=subprocess.DEVNULL, err=subprocess.DEVNULL):
    """A latticectl process of its own, killed at the end where it still runs."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "LATTICED_CONTROLLER": str(controller.socket)}
    with subprocess.Popen([*COMMAND, *words], stdout=out, stderr=err, env={**environ, "TERM": "xterm"}) as process:
        try:
            yield process
        finally:
            process.kill()


# Answers of a controller that is another's, or of another version.

ODD = ([[]], *long.only(None, 2**70, "x\x1b[2J", {"a": {"b": []}}))
LOOKING = {
    ("status",): ("GET fleet", view.FleetView),
    ("status", "--check"): ("GET fleet", view.FleetView),
    ("nodes",): ("GET fleet/nodes", view.NodesPage),
    ("node", "web-1"): ("GET fleet/nodes/web-1", view.NodeView),
    ("events",): ("GET fleet/events", view.EventsPage),
    ("plan", INTENT): ("POST fleet/plan", view.PlanView),
    ("plan", "3f9c2a1b"): ("GET fleet/intents", view.IntentsPage),
    ("roll", INTENT, "--no-wait"): ("POST fleet/rollouts", view.RolloutView),
    ("halt", "r1"): ("POST fleet/rollouts/r1/halt", view.RolloutView),
    ("halt",): ("GET fleet/rollouts", view.RolloutsPage),
    ("back", "r1", "--no-wait"): ("POST fleet/rollouts/r1/back", view.RolloutView),
    ("backup",): ("POST fleet/backup", view.BackupDone),
}


def mutants(plain: Any, *, odd: tuple[Any, ...] = ODD) -> Iterator[Any]:
    """`plain` with one value after the other replaced by each odd one, and one left out."""
    yield from odd
    if isinstance(plain, dict):
        for name, value in plain.items():
            yield {other: one for other, one in plain.items() if other != name}
            for changed in mutants(value, odd=odd):
                yield {**plain, name: changed}
    if isinstance(plain, list) and plain:
        for changed in mutants(plain[0], odd=odd):
            yield [changed, *plain[1:]]


@pytest.mark.parametrize("words", LOOKING, ids=" ".join)
def test_no_answer_ends_latticectl_otherwise_than_by_an_exit_code(ctl, controller, words: tuple[str, ...]):
    """No traceback, no endless list, and no control character on the terminal."""
    route, kind = LOOKING[words]
    controller.nodes, controller.rollouts = [node("web-1")], [rollout()]
    for answer in mutants(filled_answers.of_shape(kind, "word")):
        controller.override[route] = (200, json.dumps(answer).encode())
        ran = ctl("fleet", *words)
        assert ran.code in {0, 1, 2, 3, 4, 7}, answer
        assert "\x1b" not in ran.out + ran.err, answer
