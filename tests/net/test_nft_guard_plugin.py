"""nft guard as a plugin of a real daemon, with the real root helper in a network namespace."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from latticed.plans import protocol
from latticed.system.nft_guard import parse
from tests.house import apply_helpers, firewalled, hosting, plan_sites, ssh_logins
from tests.house.nft_places import BASE, WIDE, NftPlace

pytestmark = [pytest.mark.root, pytest.mark.daemon, pytest.mark.timeout(180)]

ID = "latticed.nft-guard"
STRANGER = "198.51.100.7"


class Site(plan_sites.PlanSite):
    """With nft guard."""

    plugin_id = ID

    def banned(self) -> list[str]:
        return [str(one.network) for one in parse.bans(self.net.listing())]

    def health(self) -> str:
        found = self.host.runtime(ID)
        return f"{found['health']}: {found['message']}"

    def until(self, holds: Any, what: str) -> None:
        self.host.daemon.until(holds, what)


@contextlib.contextmanager
def set_up(net: firewalled.Net, *, probed: bool = False, **settings: Any) -> Iterator[Site]:
    with apply_helpers.place() as made:
        place = NftPlace(home=made.home, before=("ip", "netns", "exec", net.name("r")))
        with hosting.hosting(
            f'[apply]\nsocket = "{place.settings["socket"]}"\n', builtins="latticed", probed=probed
        ) as host:
            place.settings |= {"daemon_user": str(host.daemon.place.uid), "kinds": ["nft"], **settings}
            host.daemon.activate(ID, accept=["network:apply", "network:plan"])
            try:
                yield Site(host, place, net)
            finally:
                for pid in place.dead_men():
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def net() -> Iterator[firewalled.Net]:
    with firewalled.network() as made:
        yield made


@pytest.fixture
def site(net) -> Iterator[Site]:
    net.run("r", "nft", "flush", "ruleset")
    with set_up(net) as found, found.helper.running():
        yield found


def test_plan_of_the_configuration_is_applied_and_bans_come_and_go_without_approval(site):
    site.put(BASE)
    plan = site.applied()
    site.until(lambda: site.health() == f"healthy: plan {plan[:12]}, 0 bans", "a healthy nft guard")
    made = site.do("ban", {"address": STRANGER, "seconds": 600, "comment": "ssh"})
    assert (made["network"], made["state"]) == (f"{STRANGER}/32", "applying")
    site.until(lambda: site.banned() == [f"{STRANGER}/32"], "the ban")
    again = site.do("ban", {"address": STRANGER, "seconds": 5})
    assert again["expires_at"] == made["expires_at"]
    site.do("ban", {"address": "2001:db8:7::9", "seconds": 600})
    site.until(lambda: len(site.banned()) == 2, "the ban of a /64")
    assert [one["address"] for one in site.do("status")["bans"]] == [STRANGER, "2001:db8:7::9"]
    site.do("unban", {"address": STRANGER})
    site.until(lambda: site.banned() == ["2001:db8:7::/64"], "one ban less")
    assert "was not banned" in site.refused("unban", {"address": STRANGER})


def test_ban_that_is_over_is_forgotten(site):
    site.put(BASE)
    site.applied()
    site.do("ban", {"address": STRANGER, "seconds": 2})
    site.until(lambda: site.do("status")["bans"] == [], "the ban to be forgotten")
    assert site.banned() == []


def test_ban_before_anything_is_approved_is_refused_and_not_kept(site):
    site.put(BASE)
    assert "not_approved" in site.refused("ban", {"address": STRANGER, "seconds": 60})
    assert site.do("status")["bans"] == []


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (None, "expected an object"),
        ({"address": STRANGER}, "expected an object"),
        ({"address": STRANGER, "seconds": 60, "x": 1}, "expected an object"),
        ({"address": STRANGER, "seconds": 0}, "seconds"),
        ({"address": STRANGER, "seconds": True}, "seconds"),
        ({"address": "127.0.0.1", "seconds": 60}, "another host"),
        ({"address": "10.0.0.0/8", "seconds": 60}, "IPv4 address"),
        ({"address": "$(x)", "seconds": 60}, "address or network"),
        ({"address": STRANGER, "seconds": 60, "comment": '"; flush ruleset'}, "comment"),
    ],
)
def test_bad_bans_say_what_was_expected(module_site, payload, why):
    assert why in module_site.refused("ban", payload)


@pytest.fixture(scope="module")
def module_site(net) -> Iterator[Site]:
    with set_up(net) as found, found.helper.running():
        yield found


def test_question_which_rule_decides_is_answered_from_the_configuration(module_site):
    module_site.put(WIDE)
    found = module_site.do("test", {"from": "10.9.0.2", "to": "10.9.0.1", "port": 80, "iface": "r0"})
    (answer,) = found["answers"]
    assert (answer["verdict"], answer["rule"]) == ("accept", "groups[1].rules[0]")
    found = module_site.do("test", {"from": "10.9.0.2", "to": "10.9.0.1", "port": 23, "iface": "r0"})
    assert found["answers"][0]["verdict"] == "drop"
    assert "port" in module_site.refused("test", {"from": "10.9.0.2", "to": "10.9.0.1", "port": 0})


def test_configuration_that_locks_out_can_be_read_and_is_approved_by_nobody_unknowingly(module_site):
    """The plan says what stands against it, in the list too; an approval has to name that."""
    module_site.put({})
    made = module_site.do("plan")
    assert (made["state"], "a port of sshd (22)" in made["reason"]) == ("planned", True)
    reviewed = module_site.helper.review(made["sha256"])
    assert [one.code for one in reviewed.findings] == ["lockout"]
    approve = protocol.Approve(plan=made["sha256"], review=reviewed.review)
    answer = module_site.helper.ask(approve)
    assert (answer.code, "--override lockout" in answer.hint) == ("intent_refused", True)


def test_unknown_zone_and_wrong_keys_of_a_configuration_are_refused(module_site):
    path = f"/api/plugins/by-id/{ID}/config"
    assert module_site.host.daemon.ask("PUT", path, {"config": {"zone": []}}).status == 422
    module_site.put({**BASE, "bindings": {"groups": ["ssh"], "trusted_zones": ["nowhere"]}})
    assert "bindings.trusted_zones[0]" in module_site.refused("plan")


def test_drift_is_in_the_health_within_a_poll(site):
    site.put(BASE)
    site.applied()
    site.net.run("r", "nft", "flush", "ruleset")
    site.until(lambda: "degraded: drift: the table is gone" in site.health(), "drift in the health")


def test_missing_nft_is_degraded_with_its_package_and_planning_works(net):
    with set_up(net) as site:
        site.helper.settings["programs.nft"] = str(site.helper.home / "nowhere/nft")
        with site.helper.running():
            site.put(BASE)
            site.until(lambda: "nftables" in site.health(), "the package's name")
            plan = site.do("plan")["sha256"]
            answer = site.helper.ask(protocol.Review(plan=plan))
            assert answer.code == "tool_missing"


GUARD = """
[[groups]]
name = "ssh"
[[groups.rules]]
proto = "tcp"
ports = [22]

[bindings]
groups = ["ssh"]
"""


@pytest.fixture
def ctl(site, tmp_path):
    """latticectl as root, without a terminal."""
    operator, owner = tmp_path / "latticed.toml", site.host.daemon.place.uid
    operator.write_text(f'[apply]\nsocket = "{site.helper.settings["socket"]}"\n[access]\nsocket_owner = "{owner}"\n')
    options = ("--config", str(operator), "--socket", str(site.host.daemon.place.socket))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "latticed.ctl.main", *words, *options]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL
        )

    return run


def test_operator_has_a_file_applied_with_latticectl_alone(site, ctl, tmp_path):
    """Without a terminal: the first call prints the review, the second one approves it and applies."""
    guard = tmp_path / "guard.toml"
    guard.write_text(GUARD)
    first = ctl("apply", ID, "-f", str(guard))
    assert (first.returncode, "+        tcp dport 22 accept" in first.stdout) == (1, True)
    (plan,) = [one.plan for one in site.helper.observed().plans]
    review = site.helper.review(plan).review
    assert f"--review {review}" in first.stderr
    second = ctl("apply", ID, "-f", str(guard), "--review", review, "--confirm")
    assert second.returncode == 0, second
    assert site.helper.state_of(plan) == "applied"
    assert b"tcp dport 22 accept" in site.net.stateless()


def test_operator_overrides_the_lockout_of_a_session_and_that_is_in_the_audit_record(site, ctl, tmp_path):
    guard = tmp_path / "guard.toml"
    guard.write_text(GUARD.replace("ports = [22]", 'ports = [22]\nremote = ["192.0.2.0/24"]'))
    with ssh_logins.session(site.net):
        first = ctl("apply", ID, "-f", str(guard))
        assert (first.returncode, "lockout_source: expected a way to sshd from 10.9.0.2" in first.stdout) == (1, True)
        assert "lockout_source stands against the plan" in first.stderr
        (plan,) = [one.plan for one in site.helper.observed().plans]
        review = site.helper.review(plan).review
        words = ("apply", ID, "-f", str(guard), "--review", review, "--confirm")
        assert ctl(*words).returncode == 1
        done = ctl(*words, "--override", "lockout_source")
        assert done.returncode == 0, done
    assert b"ip saddr 192.0.2.0/24 tcp dport 22 accept" in site.net.stateless()

    def recorded() -> Any:
        found = site.host.daemon.events(action="plan.approve", target=plan)
        return found and (
            found[0]["actor"].split()[0],
            found[0]["detail"]["overrides"],
            "10.9.0.2" in found[0]["reason"],
        )

    site.until(recorded, "the copy of the step")
    assert recorded() == ("uid:0", "lockout_source", True)


def test_kept_ban_that_is_not_in_the_table_is_applied_at_a_poll(site):
    """As after a kill between keeping and applying it."""
    site.put(BASE)
    site.applied()
    ban = {"address": STRANGER, "expires_at": int(time.time()) + 600, "comment": ""}
    path = f"/api/kv/plugin:{ID}/bans"
    answer = site.host.daemon.ask("PUT", path, json.dumps({f"{STRANGER}/32": ban}).encode())
    assert answer.status in {200, 204}, answer
    site.until(lambda: site.banned() == [f"{STRANGER}/32"], "the ban")


def test_kept_ban_that_cannot_be_applied_is_in_the_health(site):
    """Here one that would hit this host; the others' plans are refused with it."""
    site.put(BASE)
    site.applied()
    ban = {"address": "10.9.0.1", "expires_at": int(time.time()) + 600, "comment": ""}
    path = f"/api/kv/plugin:{ID}/bans"
    assert site.host.daemon.ask("PUT", path, json.dumps({"10.9.0.1/32": ban}).encode()).status in {200, 204}
    site.until(lambda: "1 bans are not in the table" in site.health(), "the reason")
    assert site.banned() == []


def test_ban_applies_nothing_that_was_configured_since(site):
    """Here fewer ports, which would need no approval."""
    site.put(WIDE)
    site.applied()
    before = site.net.stateless()
    site.put(BASE)
    site.do("ban", {"address": STRANGER, "seconds": 600})
    site.until(lambda: site.banned() == [f"{STRANGER}/32"], "the ban")
    assert parse.drift_hash(site.net.stateless()) == parse.drift_hash(before)
