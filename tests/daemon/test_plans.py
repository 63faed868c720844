"""Plans end to end: a confined plugin, the daemon under a user of its own, the real root helper, latticectl as root."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from latticed.ledger import state
from latticed.model import plan as plans
from latticed.plans import protocol
from tests.house import apply_helpers, consoles, hosting, processes
from tests.house.daemons import START_S

pytestmark = [pytest.mark.daemon, pytest.mark.root]

ID = "acme.guard"
CAPABILITIES = ["kv:read", "kv:write", "network:apply", "network:plan"]
SCHEMA = {"type": "object", "properties": {"allow": {"type": "array"}}, "additionalProperties": False}
PLUGIN = b"""#!/usr/bin/env python3
import signal
from latticed.sdk import HostError, Plugin

class Guard(Plugin):
    def started(self):
        if self.config.get("allow") == ["never"]:
            signal.pause()

    def do_plan(self, payload):
        allow = payload.get("allow") or self.config.get("allow") or ["admin", "ada"]
        return self.network.plan("file", {"allow": allow, **payload.get("more", {})})

    def do_plans(self, payload):
        return {one["sha256"]: one["state"] for one in self.network.plans()["plans"]}

    def do_apply(self, payload):
        try:
            return self.network.apply(payload)
        except HostError as error:
            return str(error)

    def do_state(self, payload):
        return self.network.state("file")

Guard().run()
"""


class Setting:
    """One daemon, one helper, and an operator who is root."""

    def __init__(self, host, place, operator):
        self.host, self.helper, self.operator = host, place, operator
        self.daemon = host.daemon

    def command(self, *words):
        options = ("--config", str(self.operator), "--socket", str(self.daemon.place.socket))
        return [sys.executable, "-P", "-m", "latticed.ctl.main", *words, *options]

    def ctl(self, *words, ends=0):
        """latticectl as root, without a terminal."""
        done = subprocess.run(
            self.command(*words), capture_output=True, text=True, check=False, timeout=START_S, stdin=subprocess.DEVNULL
        )
        assert done.returncode == ends, done
        return done.stdout

    def plan(self, allow=(), **more):
        """The name of a plan that the plugin makes."""
        made = self.host.result(ID, "plan", {"allow": list(allow), "more": more})
        assert made["ok"], made
        return made["sha256"]

    def approved(self, allow, **more):
        """The same, approved by root."""
        plan = self.plan(allow, **more)
        self.ctl("plan", "approve", plan, self.review(plan))
        return plan

    def review(self, plan):
        return json.loads(self.ctl("plan", "show", plan, "--format", "json"))["review"]

    def state(self, plan):
        return self.daemon.get(f"/api/plans/{plan}").json()["state"]

    def until_state(self, plan, wanted):
        self.daemon.until(lambda: self.state(plan) == wanted, f"{plan[:8]} to be {wanted}, now {self.state(plan)}")

    def content(self):
        # It may be removed at any moment: by the dead-man, for example.
        try:
            return (self.helper.home / "live/file.target").read_text()
        except FileNotFoundError:
            return None


@contextlib.contextmanager
def set_up(**settings):
    """`settings`: of the helper."""
    with tempfile.TemporaryDirectory(prefix="operator-") as home, apply_helpers.place() as place:
        text = f'[apply]\nsocket = "{place.settings["socket"]}"\n'
        with hosting.hosting(text) as host:
            place.settings |= {"daemon_user": str(host.daemon.place.uid), "kinds": ["file", "other"], **settings}
            operator = Path(home) / "latticed.toml"
            operator.write_text(f'{text}[access]\nsocket_owner = "{host.daemon.place.uid}"\n')
            host.drop(ID, PLUGIN, capabilities=CAPABILITIES, config=SCHEMA)
            host.daemon.activate(ID, accept=["network:apply", "network:plan"])
            yield Setting(host, place, operator)


@pytest.fixture(scope="module")
def shared():
    """One daemon for tests that do not stop it."""
    with set_up() as found:
        yield found


@pytest.fixture
def setting(shared):
    """With a helper that knows nothing yet."""
    for name in ("state", "live"):
        shutil.rmtree(shared.helper.home / name, ignore_errors=True)
    (shared.helper.home / "live").mkdir()
    with shared.helper.running():
        yield shared
    for pid in shared.helper.dead_men():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def own():
    """A daemon and a helper of the test's own."""
    with set_up() as found, found.helper.running():
        yield found


def test_the_console_shows_a_plan_to_who_may_approve_it_and_how_long_is_left(setting):
    """What would change, and the command that approves just that; then the time in which it has to be confirmed."""
    with consoles.running(setting.daemon, operator=setting.operator) as console:
        console.enter()
        plan = setting.plan(["admin", "bob"])
        page = console.get(f"/plans/{plan}").text
        assert f"latticectl plan approve {plan[:12]} {setting.review(plan)}" in page
        assert re.search(r'<div class="added">\+.*bob', page), page
        assert "bob" not in (setting.content() or "")
        setting.ctl("plan", "approve", plan, setting.review(plan))
        setting.ctl("plan", "apply", plan)
        setting.until_state(plan, "unconfirmed")
        left = re.search(r'data-left="(\d+)"', console.get(f"/plans/{plan}").text)
        assert left
        assert 0 < int(left[1]) <= 30
        assert f"Plan {plan[:12]}" in console.get("/").text
        setting.ctl("plan", "confirm", plan)


def test_plan_is_shown_approved_applied_and_confirmed(setting):
    """By operator and plugin together; each state is the helper's word, each step is in the audit record."""
    plan = setting.plan(["admin", "zoe"])
    assert setting.state(plan) == "planned"
    shown = setting.ctl("plan", "show", plan[:8])
    assert "+allow zoe" in shown
    refusal = setting.host.result(ID, "apply", plan)
    assert "nothing was applied: not_approved" in refusal
    assert setting.content() is None
    setting.ctl("plan", "approve", plan[:8], setting.review(plan))
    setting.until_state(plan, "approved")
    assert setting.host.result(ID, "apply", plan) == {"ok": True, "sha256": plan, "state": "applying"}
    setting.until_state(plan, "unconfirmed")
    assert 'latticed_plans{state="unconfirmed"} 1\n' in setting.daemon.get("/metrics").body.decode()
    assert setting.content() == "allow admin\nallow zoe\n"
    setting.ctl("plan", "confirm", plan[:8])
    setting.until_state(plan, "applied")
    assert setting.host.result(ID, "plans")[plan] == "applied"
    assert setting.host.result(ID, "state")["target"]["confirmed"] == plan
    steps = setting.helper.steps()

    def copied():
        found = [one for one in setting.daemon.events(target=plan) if one["action"].startswith("plan.")]
        return found if len(found) == len(steps) else None

    events = setting.daemon.until(copied, "the steps to be copied")
    assert [(one["action"], one["actor"]) for one in events] == [(step.action, step.actor) for step in steps]
    assert [one["detail"]["step_hash"] for one in events] == [step.hash for step in steps]
    assert {"plan.approve", "plan.apply", "plan.confirm"} <= {step.action for step in steps}
    assert setting.daemon.get("/api/audit/verify").json()["ok"] is True


def test_change_that_nobody_confirms_is_undone_and_shown(setting):
    """The plugin sees it, and so does the list."""
    plan = setting.approved(["admin", "bob"])
    setting.ctl("plan", "apply", plan, "--confirm-within", "1s")
    setting.until_state(plan, "rolled_back")
    assert setting.content() is None
    setting.ctl("plan", "confirm", plan, ends=1)
    listed = json.loads(setting.ctl("plan", "list", "--state", "rolled_back", "--format", "json"))["plans"]
    row = next(one for one in listed if one["sha256"] == plan)
    assert row["plugin"] == ID
    assert row["reason"]
    other = setting.approved(["admin", "eve"])
    setting.ctl("plan", "apply", other)
    setting.ctl("plan", "rollback", other)
    setting.until_state(other, "rolled_back")


def test_what_only_takes_away_is_applied_by_the_plugin_alone(setting):
    """Within what was approved; what adds is not."""
    wide = setting.approved(["admin", "ada", "bob"])
    setting.ctl("plan", "apply", wide)
    setting.ctl("plan", "confirm", wide)
    less, more = setting.plan(["admin", "ada"]), setting.plan(["admin", "ada", "bob", "eve"])
    assert "not_approved" in setting.host.result(ID, "apply", more)
    assert setting.host.result(ID, "apply", less)["state"] == "applying"
    setting.until_state(less, "applied")
    assert setting.content() == "allow ada\nallow admin\n"
    # Going back within what was approved needs no approval either.
    assert setting.host.result(ID, "apply", wide)["state"] == "applying"
    setting.until_state(wide, "applied")


def test_moved_live_state_is_stale_and_touches_nothing(setting):
    plan = setting.approved(["admin", "ada"])
    (setting.helper.home / "live/file.target").write_text("allow mallory\n")
    assert "nothing was applied: stale" in setting.host.result(ID, "apply", plan)
    assert setting.content() == "allow mallory\n"
    setting.until_state(plan, "stale")
    assert "-allow mallory" in setting.ctl("plan", "show", plan)


def test_second_change_of_a_target_waits_for_the_first(setting):
    first = setting.approved(["admin", "ada"])
    second = setting.approved(["admin", "bob"])
    setting.ctl("plan", "apply", first)
    assert "target_busy" in setting.host.result(ID, "apply", second)
    setting.ctl("plan", "apply", second, ends=1)
    assert setting.content() == "allow ada\nallow admin\n"


def test_intent_that_helper_refuses_is_the_plugins_error(setting):
    answer = setting.host.invoke(ID, "plan", {"allow": ["ada"]}).json()
    assert not answer["ok"]
    assert "allow: expected admin in it" in json.dumps(answer)
    newest = setting.daemon.get("/api/plans?limit=1").json()["plans"]
    assert [one["state"] for one in newest] == ["failed"]


def test_secret_gets_to_the_helper_and_nowhere_else(setting):
    """Its value is in the file that was asked for; not in state, ledger, log, audit or answers."""
    value = "Zq8-xT.hunter2-secret"
    daemon = setting.daemon
    assert daemon.ask("PUT", "/api/secrets/GUARD", value.encode()).status == 200
    assert daemon.ask("PUT", f"/api/secrets/GUARD/plugins/{ID}", {}).status == 200
    plan = setting.approved(["admin"], key="${secret:GUARD}")
    shown = setting.ctl("plan", "show", plan)
    setting.ctl("plan", "apply", plan)
    assert setting.content() == f"allow admin\nkey {value}\n"
    listed = [daemon.get(path).json() for path in (f"/api/plans/{plan}", "/api/audit?limit=1000")]
    assert value not in f"{shown}{listed}{daemon.complaints()}"
    for path in daemon.place.home.rglob("*"):
        if path.is_file():
            assert value.encode() not in path.read_bytes(), path
    # Another value is another review: what was approved before counts no more.
    setting.ctl("plan", "rollback", plan)
    old = setting.review(plan)
    assert daemon.ask("PUT", "/api/secrets/GUARD", b"another-value-1").status == 200
    assert setting.plan(["admin"], key="${secret:GUARD}") == plan
    assert setting.review(plan) != old
    setting.ctl("plan", "approve", plan, old, ends=1)


def test_forged_rows_of_the_ledger_change_nothing_at_root(own):
    """The daemon's own user writes what it likes; the helper's next report puts it right."""
    plan = own.plan(["admin", "ada"])
    before = {path: path.read_bytes() for path in sorted(own.helper.state.rglob("*")) if path.is_file()}
    place = own.daemon.place
    own.daemon.process.send_signal(signal.SIGTERM)
    own.daemon.process.wait(START_S)
    database = place.state / state.DATABASE
    forged = "UPDATE plans SET state = 'approved', review = sha256"
    done = place.ran([*place.python(), "-c", f"import apsw; apsw.Connection({str(database)!r}).execute({forged!r})"])
    assert done.returncode == 0, done.stderr
    with place.running() as daemon:
        host = hosting.Host(daemon=daemon, author=own.host.author)
        daemon.until_state("armed", ID)
        assert "not_approved" in host.result(ID, "apply", plan)
        daemon.until(lambda: daemon.get(f"/api/plans/{plan}").json()["state"] == "planned", "the row to be put right")
    assert own.content() is None
    after = {path: path.read_bytes() for path in sorted(own.helper.state.rglob("*")) if path.is_file()}
    assert after == before


def test_daemons_user_can_neither_review_nor_approve(setting):
    """By whatever tool: latticectl as that user is denied, and shows the intent alone."""
    plan = setting.plan(["admin", "ada"])
    place = setting.daemon.place
    base = [*place.python(), "-m", "latticed.ctl.main", "--config", str(place.config), "plan"]
    shown = place.ran([*base, "show", plan])
    assert (shown.returncode, '"ada"' in shown.stdout, "diff" in shown.stdout) == (5, True, False)
    for words in (("approve", plan, setting.review(plan)), ("refuse", plan), ("confirm", plan), ("rollback", plan)):
        assert place.ran([*base, *words]).returncode == 5, words
    assert setting.state(plan) == "planned"


def test_plan_waits_for_a_helper_that_does_not_run():
    """Planning works; it is offered once the helper runs; without one nothing is applied."""
    with set_up() as setting:
        plan = setting.plan(["admin", "ada"])
        shown = setting.daemon.get(f"/api/plans/{plan}").json()
        assert (shown["state"], shown["code"]) == ("planned", "helper_unavailable")
        assert shown["helper"] == "the root helper is not running"
        assert "helper_unavailable" in setting.host.result(ID, "apply", plan)
        assert '"ada"' in setting.ctl("plan", "show", plan, ends=7)
        setting.ctl("apply", ID, ends=7)
        with setting.helper.running():
            # Not only after a minute: it is planned again.
            assert setting.plan(["admin", "ada"]) == plan
            assert "+allow ada" in setting.ctl("plan", "show", plan[:8])
        assert setting.daemon.get("/api/plans").json()["plans"][0]["state"] == "planned"


def test_killed_helper_and_daemon_leave_the_mirror_right(own):
    """The dead-man undoes the change alone; both learn of it when they run again."""
    plan = own.approved(["admin", "ada"])
    own.ctl("plan", "apply", plan, "--confirm-within", "8s")
    assert own.content() == "allow ada\nallow admin\n"
    place = own.daemon.place
    for pid in [own.daemon.process.pid, *_helpers(own.helper)]:
        os.kill(pid, signal.SIGKILL)
    processes.until(lambda: own.content() is None, what="the dead-man")
    with own.helper.running(), place.running() as daemon:
        daemon.until(lambda: daemon.get(f"/api/plans/{plan}").json()["state"] == "rolled_back", "the mirror")
        actions = [one["action"] for one in daemon.events(target=plan)]
        assert actions.count("plan.apply") == 1


def _helpers(place):
    """The helper's processes, without its dead-men."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            if str(place.config).encode() in words and b"--dead-man" not in words:
                found.append(int(name))
    return found


# In one sitting.


def test_apply_in_one_sitting_on_a_terminal(setting):
    """The review's first digits are typed, Enter keeps it."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        setting.command("apply", ID), stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    ) as sitting:
        os.close(slave)
        seen = _read_until(master, "digits of the review: ")
        assert "\x1b[32m+allow ada\x1b[0m" in seen
        review = seen.partition("review")[2].split()[1].removesuffix("\x1b[0m")
        assert len(review) == 64, seen
        os.write(master, f"{review[:8]}\n".encode())
        _read_until(master, "it is undone in")
        os.write(master, b"\n")
        rest = _read_until(master, "applied\r\n", already=True)
        assert sitting.wait(START_S) == 0, rest
    os.close(master)
    assert setting.content() == "allow ada\nallow admin\n"


def test_hung_up_terminal_undoes_the_change(setting):
    """Closed during the countdown: the helper's dead-man does it."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        setting.command("apply", ID, "--confirm-within", "6s"),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    ) as sitting:
        os.close(slave)
        review = _read_until(master, "digits of the review: ").partition("review")[2].split()[1]
        os.write(master, f"{review.removesuffix(chr(27) + '[0m')[:8]}\n".encode())
        _read_until(master, "it is undone in")
        assert setting.content() == "allow ada\nallow admin\n"
        sitting.kill()
    os.close(master)
    processes.until(lambda: setting.content() is None, what="the dead-man")


def test_apply_in_a_script(setting):
    """First shown, then approved by its review, then confirmed; done again it says that it is done."""
    shown = setting.ctl("apply", ID, ends=1)
    assert "+allow ada" in shown
    plan = setting.host.result(ID, "plan", {})["sha256"]
    setting.ctl("apply", ID, "--review", "00" * 32, ends=1)
    assert setting.content() is None
    setting.ctl("apply", ID, "--review", setting.review(plan))
    setting.ctl("apply", ID, ends=1)
    setting.ctl("plan", "confirm", plan)
    setting.ctl("apply", ID)
    setting.until_state(plan, "applied")


def test_apply_with_a_configuration_keeps_it_only_if_it_is_applied(own, tmp_path):
    """Refused by the schema, not approved, refused by the helper: the configuration of before is back each time."""
    file = tmp_path / "guard.toml"

    def configured():
        return own.daemon.get(f"/api/plugins/by-id/{ID}/config").json()["config"]

    def apply(text, *words, ends):
        file.write_text(text)
        own.ctl("apply", ID, "-f", str(file), *words, ends=ends)

    apply('allow = ["admin", "kim"]', ends=1)
    assert (configured(), own.content()) == ({}, None)
    (plan,) = own.helper.observed().plans
    apply('allow = ["admin", "kim"]', "--review", own.review(plan.plan), "--confirm", ends=0)
    kept = {"allow": ["admin", "kim"]}
    assert (configured(), own.content()) == (kept, "allow admin\nallow kim\n")
    for bad in ('allow = "kim"', "deny = []", 'allow = ["eve"]', "allow = ["):
        apply(bad, "--review", "00" * 32, ends=2 if bad.endswith("[") else 1)
        assert (configured(), own.content()) == (kept, "allow admin\nallow kim\n")
    apply('allow = ["admin"]', "--confirm", ends=0)  # it only takes away
    assert own.content() == "allow admin\n"
    own.helper.order(self_check="fail")
    apply('allow = ["admin", "zoe"]', ends=1)
    (plan,) = [one for one in own.helper.observed().plans if one.state == "planned"]
    apply('allow = ["admin", "zoe"]', "--review", own.review(plan.plan), ends=1)
    assert (configured(), own.content()) == ({"allow": ["admin"]}, "allow admin\n")


def test_configuration_is_put_back_when_apply_is_interrupted_while_it_is_set(setting, tmp_path):
    """The plugin does not come up with it, so that the daemon's answer is yet to come."""
    file = tmp_path / "guard.toml"
    file.write_text('allow = ["never"]')
    route = f"/api/plugins/by-id/{ID}/config"
    before = {"allow": ["admin"]}
    assert setting.daemon.ask("PUT", route, {"config": before}).status == 200
    with subprocess.Popen(
        setting.command("apply", ID, "-f", str(file)), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as sitting:
        setting.daemon.until(
            lambda: setting.daemon.get(route).json()["config"] == {"allow": ["never"]}, "the configuration to be set"
        )
        sitting.send_signal(signal.SIGINT)
        _, said = sitting.communicate(timeout=START_S)
    assert setting.daemon.get(route).json()["config"] == before
    assert f"{ID} has the configuration of before again\n" in said
    assert sitting.returncode == 130
    setting.daemon.until_state("armed", ID)


def test_first_configuration_stays_where_the_schema_takes_no_empty_one(setting, tmp_path):
    """It is said, and applying fails all the same."""
    plugin_id, file = "acme.needy", tmp_path / "needy.toml"
    file.write_text('allow = ["kim"]')
    setting.host.drop(plugin_id, PLUGIN, capabilities=CAPABILITIES, config={**SCHEMA, "required": ["allow"]})
    setting.daemon.until(lambda: setting.daemon.plugin(plugin_id), "it to be seen")
    accepted = setting.daemon.set_status("installed", plugin_id, accept=["network:apply", "network:plan"])
    assert accepted.status == 200, accepted
    done = subprocess.run(
        setting.command("apply", plugin_id, "-f", str(file)), capture_output=True, text=True, check=False
    )
    assert f"{plugin_id} had no configuration, and the schema takes no empty one: this one stays set\n" in done.stderr
    assert f"error: {plugin_id} is not armed" in done.stderr
    assert done.returncode == 1
    assert setting.daemon.get(f"/api/plugins/by-id/{plugin_id}/config").json()["config"] == {"allow": ["kim"]}


def test_nothing_is_configured_in_place_of_none_where_setting_it_failed(tmp_path):
    """Not even an empty one; a configuration that somebody else has set meanwhile stays."""
    file = tmp_path / "guard.toml"
    file.write_text('allow = ["admin", "kim"]')
    with set_up() as setting, setting.helper.running():
        route = f"/api/plugins/by-id/{ID}/config"

        def apply():
            command = [*setting.command("apply", ID, "-f", str(file)), "--socket", str(tmp_path / "relay")]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=START_S)
            assert done.returncode == 7, done
            return done.stderr, setting.daemon.get(route).json()

        def nothing():
            pass

        def by_another():
            assert setting.daemon.ask("PUT", route, {"config": {"allow": ["bob"]}}).status == 200

        with _losing_changes(tmp_path / "relay", setting.daemon.place.socket, nothing):
            said, found = apply()
        assert f"{ID} has no configuration, as before\n" in said
        assert (found["is_set"], found["config"]) == (False, {})
        with _losing_changes(tmp_path / "relay", setting.daemon.place.socket, by_another):
            said, found = apply()
        assert f"{ID} was configured by somebody else meanwhile, and stays so\n" in said
        assert found["config"] == {"allow": ["bob"]}


@contextlib.contextmanager
def _losing_changes(path, control, lost):
    """A socket at `path` that passes requests on to `control`, but for those that set a configuration: it closes those
    connections after a call of `lost`.
    """

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            request = b""
            while b"\r\n\r\n" not in request or len(request.partition(b"\r\n\r\n")[2]) < length(request):
                request += self.request.recv(1 << 16)
            if request.startswith(b"PUT ") and not json.loads(request.partition(b"\r\n\r\n")[2])["dry_run"]:
                lost()
                return
            with socket.socket(socket.AF_UNIX) as other:
                other.connect(str(control))
                other.sendall(request)
                while data := other.recv(1 << 16):
                    self.request.sendall(data)

    def length(request):
        found = re.search(rb"(?i)content-length: *(\d+)", request)
        return int(found[1]) if found else 0

    path.unlink(missing_ok=True)
    with socketserver.UnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def _read_until(master, wanted, *, already=False):
    """What the terminal shows until `wanted` is in it, or with `already` until it is closed."""
    seen, deadline_s = "", time.monotonic() + START_S
    while wanted not in seen or already:
        assert time.monotonic() < deadline_s, seen
        try:
            data = os.read(master, 65_536)
        except OSError:  # EIO: the other end is closed
            break
        seen += data.decode()
    assert wanted in seen, seen
    return seen


def test_offer_of_the_daemon_is_what_the_protocol_has(setting):
    """The name that the helper gives is the plan's."""
    plan = setting.plan(["admin", "ada"])
    (found,) = setting.helper.observed().plans
    assert found.plan == plan == plans.sha256(plans.canonical("file", {"allow": ["admin", "ada"]}))
    assert isinstance(setting.helper.ask(protocol.Review(plan=plan)), protocol.Reviewed)
