"""latticectl events, explain, top, --dry-run and trust lift against the real daemon."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.house import bundles, daemons, processes

pytestmark = pytest.mark.daemon


@dataclass
class Follower:
    """latticectl events -f as a process of its own, and what it has printed."""

    process: subprocess.Popen[bytes]
    read: bytes = b""
    fd: int = field(default=-1)

    def events(self) -> list[dict[str, Any]]:
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.fd, 65536):
                self.read += chunk
        return [json.loads(line) for line in self.read.splitlines(keepends=True) if line.endswith(b"\n")]

    def until(self, condition: Any, what: str) -> list[dict[str, Any]]:
        processes.until(lambda: any(condition(event) for event in self.events()), what=what)
        return self.events()


@contextlib.contextmanager
def following(place: daemons.Place, *words: str) -> Iterator[Follower]:
    command = [sys.executable, "-P", "-m", "latticed.ctl.main", "--socket", str(place.socket), "events", "-f"]
    process = subprocess.Popen(
        [*command, "--format", "json", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=place.environment(),
    )
    try:
        os.set_blocking(process.stdout.fileno(), False)
        yield Follower(process=process, fd=process.stdout.fileno())
    finally:
        process.send_signal(signal.SIGINT)
        with process:
            process.communicate(timeout=processes.PATIENCE_S)
    assert process.returncode == 130


def test_followed_events_continue_across_a_restart(place, acme):
    """No event is missed or printed twice, though the daemon is killed in between."""
    place.drop(author=acme)
    with contextlib.ExitStack() as stack:
        with place.running() as daemon:
            follower = stack.enter_context(following(place, "--since", "0"))
            daemon.activate()
            follower.until(lambda event: event["detail"].get("to") == "active", "activation")
            daemon.kill()
        with place.running() as daemon:
            daemon.set_status("disabled")
            follower.until(lambda event: event["detail"].get("to") == "disabled", "disabling after the restart")
            seqs = [event["seq"] for event in follower.events()]
            known = [event["seq"] for event in daemon.events()]
    assert seqs == [seq for seq in known if seq <= seqs[-1]]


def test_events_without_follow_prints_the_newest_and_exits(place, acme):
    """If a plugin is named, only its events are printed."""
    place.drop(author=acme)
    with place.running() as daemon:
        daemon.activate()
        rows = [json.loads(line) for line in daemon.ctl("events", "--format", "json").stdout.splitlines()]
        assert [row["seq"] for row in rows] == [event["seq"] for event in daemon.events()]
        after = daemon.ctl("events", "--after", str(rows[-1]["seq"]))
        assert (after.returncode, after.stdout) == (0, "")
        assert daemon.ctl("events", "--plugin", "acme.none").stdout == ""
        text = daemon.ctl("events", "--plugin", "acme.demo").stdout.splitlines()
        assert [line.split()[2] for line in text] == [row["action"] for row in rows if row["target"] == "acme.demo"]


def said(daemon: daemons.Daemon, word: str = "acme.demo") -> str:
    """The commands that explain advises."""
    ran = daemon.ctl("explain", word, "--config", str(daemon.place.config))
    assert ran.returncode == 0, ran
    return ran.stdout.splitlines()[-1].removeprefix("what to do: ")


def test_explain_leads_from_a_dropped_bundle_to_a_running_plugin(place, acme):
    """Each step is the command that explain names; the last names none. Tampering and an open breaker follow."""
    bundle = place.drop(author=acme)
    with place.running() as daemon:
        daemon.until(daemon.plugin, "the bundle")
        for wanted in ("install", "activate"):
            command = said(daemon)
            assert command == f"latticectl {wanted} acme.demo"
            assert daemon.ctl(*command.split()[1:]).returncode == 0
        assert said(daemon) == "nothing"
        before = bundles.tamper(bundle.artifact_path)
        daemon.until_state("failed", code="digest_mismatch")
        assert said(daemon) == f"latticectl verify {place.plugins}/demo"
        bundle.artifact_path.write_bytes(before)
        daemon.until_state("armed")
        assert said(daemon) == "nothing"
        bundle.path.rename(place.home / "aside")
        daemon.until_state("failed", code="manifest_missing")
        for wanted in ("disable", "forget"):
            command = said(daemon)
            assert command == f"latticectl {wanted} acme.demo"
            assert daemon.ctl(*command.split()[1:]).returncode == 0
        assert daemon.ctl("explain", "acme.demo").returncode == 4


def test_explain_leads_to_accepting_another_publisher(place, acme):
    """Its bundle is refused beside the running plugin; once that is removed, it is accepted by the command that explain
    names.
    """
    other = bundles.author("other")
    place.trust_us(acme, other)
    first = place.drop("first", author=acme)
    with place.running() as daemon:
        daemon.activate()
        place.drop("second", author=other)
        daemon.until_rejected("second", "publisher_changed")
        command = said(daemon)
        assert command == "latticectl upgrade acme.demo --accept-publisher other"
        first.path.rename(place.home / "aside")
        daemon.until_state("failed")
        assert daemon.ctl(*command.split()[1:]).returncode == 0
        assert daemon.plugin()["publisher"] == "other"


def test_explain_names_untrusted_publishers_and_bad_policies(place, acme):
    """The test has an untrusted publisher, then an invalid policy."""
    place.drop("stranger", author=bundles.author("stranger"), id="some.one")
    with place.running() as daemon:
        daemon.until_rejected("stranger", "publisher_untrusted")
        assert said(daemon, "some.one") == "latticectl trust add stranger KEY"
        place.write(place.trust, b"{")
        daemon.until(lambda: daemon.get("/api/health").status == 503, "the bad policy to be seen")
        assert said(daemon, "some.one") == "latticectl trust show"
        assert daemon.ctl("explain", "no.one").returncode == 4


@pytest.mark.parametrize("verb", ["install", "activate", "upgrade"])
def test_dry_run_shows_the_record_and_changes_nothing(place, acme, verb):
    """It is the record that the real command gives, but for times and outcome; nothing is stored, audited or run."""
    place.drop(author=acme, capabilities=["kv:read", "http:egress"])
    with place.running() as daemon:
        daemon.until(daemon.plugin, "the bundle")
        if verb != "install":
            assert daemon.ctl("install", "acme.demo").returncode == 0
        if verb == "upgrade":
            place.drop("demo", author=acme, version="2.0.0", capabilities=["kv:read", "http:egress", "kv:write"])
            daemon.until(lambda: "candidate" in daemon.plugin(), "the candidate")
        before, told = daemon.plugin(), len(daemon.events())
        ran = daemon.ctl(verb, "acme.demo", "--dry-run", "--accept", "http:egress", "--format", "json")
        assert ran.returncode == 0, ran
        foreseen = json.loads(ran.stdout)
        assert (daemon.plugin(), len(daemon.events())) == (before, told)
        made = json.loads(daemon.ctl(verb, "acme.demo", "--accept", "http:egress", "--format", "json").stdout)
        apart = {"runtime", "updated_at", "verified_at", "installed_at", "activated_at", "adds", "drops", "upgrade"}
        assert len(foreseen.pop("identity")) == 64  # of what it would take, for --identity
        assert {k: v for k, v in foreseen.items() if k not in apart} == {
            k: v for k, v in made.items() if k not in apart
        }
        assert foreseen["runtime"] == before["runtime"]
        assert "http:egress" in foreseen["granted"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"id": "acme.none", "status": "installed"}, 404, "not_found"),
        ({"id": "acme.demo", "status": "active"}, 409, "invalid_transition"),
        ({"id": "acme.demo", "status": "installed", "accept": ["http:egress"]}, 400, "bad_request"),
        ({"id": "acme.demo", "status": "installed", "dry_run": "yes"}, 400, "bad_request"),
    ],
)
def test_dry_run_is_refused_like_the_real_command_and_not_audited(place, acme, body, status, code):
    place.drop(author=acme)
    with place.running() as daemon:
        daemon.until(daemon.plugin, "the bundle")
        told = len(daemon.events())
        answer = daemon.post("/api/plugins/lifecycle", {"dry_run": True, **body})
        assert (answer.status, answer.code) == (status, code)
        assert len(daemon.events()) == told


def test_revocation_is_lifted_once_it_is_removed_from_the_policy(place, acme):
    """Lifting exits with 1 while the policy has it; once it is removed there, the plugin stays refused until it is
    lifted.
    """
    place.drop(author=acme)
    words = ("trust", "lift", "--plugin", "acme.demo@1.0.0")
    with place.running() as daemon:
        daemon.until(daemon.plugin, "the bundle")
        assert daemon.ctl(*words).returncode == 4
        place.trust_us(acme, revoked={"plugins": ["acme.demo@1.0.0"]})
        daemon.until_rejected("demo", "plugin_revoked")
        assert said(daemon) == "latticectl trust lift --plugin acme.demo@1.0.0"
        assert daemon.ctl(*words).returncode == 1
        place.trust_us(acme)
        daemon.until(lambda: daemon.ctl(*words).returncode == 0, "the file to be read again")
        daemon.until(lambda: daemon.plugin()["available"], "the bundle to verify again")


def test_top_shows_the_running_plugins(place, acme):
    place.drop(author=acme)
    with place.running() as daemon:
        daemon.activate()
        ran = daemon.ctl("top")
        # Its health is known once it was asked; top looks twice.
        row = ran.stdout.splitlines()[1]
        assert re.match(r"acme\.demo +active +armed +(healthy|unknown) +[0-9.]+ ", row), ran.stdout
        (row,) = json.loads(daemon.ctl("top", "--format", "json").stdout)
        assert (row["calls"], row["denied"], row["uptime_s"] >= 0) == (0, 0, True)
