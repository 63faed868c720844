"""Proxies as a plugin of a real daemon, with the real root helper, a real sing-box, and clients with what it serves."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import http.client
import json
import os
import re
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from latticed.plans import proxy_api
from latticed.system.proxy import links, plugin, subscriptions, usage
from tests.house import apply_helpers, cores, faults, hosting, plan_sites, ports, processes, proxies
from tests.house.nft_places import NftPlace

pytestmark = [
    pytest.mark.root,
    pytest.mark.daemon,
    pytest.mark.skipif(cores.sing_box() is None, reason=cores.NO_SING_BOX),
]
ID = "latticed.proxy"
SECRETS = {"PROXY_USERS": "a secret of all users, long enough", "PROXY_API": "secret-of-the-api-of-the-core"}
QUOTA = 2_000_000
CLEO = proxies.user("cleo", expires_at=int(time.time()) - 60)


class Site(plan_sites.PlanSite):
    """With the plugin; the core and its clients are on loopback."""

    plugin_id = ID

    def __init__(self, host: hosting.Host, helper: apply_helpers.Place, listen: int, directory: Path) -> None:
        super().__init__(host, helper, None)
        self.listen, self.directory = listen, directory
        self.port, self.api = ports.free(), ports.free()

    def configure(self, *users: dict[str, Any]) -> None:
        inbound = proxies.trojan(listen="127.0.0.1", port=self.port, tls=cores.certificate(self.directory, "localhost"))
        (self.directory / "key.pem").chmod(0o644)  # the core's user reads it
        made = proxies.document(
            inbound, users=list(users), host="127.0.0.1", api={**proxies.API, "port": self.api}, reach_private=True
        )
        self.put({**made, "public_url": "https://sub.example.org"})

    def secret(self, name: str, value: str) -> None:
        for path, body in ((f"/api/secrets/{name}", value), (f"/api/secrets/{name}/plugins/{ID}", "")):
            answer = self.host.daemon.ask_raw("PUT", path, body.encode())
            assert answer.status in {200, 204}, answer

    def fetch(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.listen, timeout=cores.PATIENCE_S)
        with contextlib.closing(connection):
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    def token(self, user: str) -> str:
        return str(self.do("token", {"id": user})["path"])

    def user(self, name: str) -> dict[str, Any]:
        (found,) = [one for one in self.do("users") if one["id"] == name]
        return dict(found)

    def news(self) -> str:
        return str(self.host.daemon.get("/api/notifications").json())

    def core(self) -> int:
        """Its pid; 0 while it is started anew."""
        with contextlib.suppress(FileNotFoundError):
            return int((self.directory / "proxy/core.pid").read_text() or 0)
        return 0

    def until(self, holds: Any, what: str) -> None:
        processes.until(holds, what=what, deadline_s=60)


@pytest.fixture(scope="module")
def site():
    directory = Path(tempfile.mkdtemp(prefix="proxy-"))
    directory.chmod(0o755)
    listen = ports.free()
    with apply_helpers.place() as made:
        place = NftPlace(home=made.home)
        settings = f'[apply]\nsocket = "{place.settings["socket"]}"\n[http]\nlisten = "127.0.0.1:{listen}"\n'
        with hosting.hosting(settings, builtins="latticed") as host:
            place.settings |= {
                "daemon_user": str(host.daemon.place.uid),
                "kinds": ["proxy"],
                "programs": {"sing-box": cores.sing_box()},
                "proxy": {"directory": str(directory / "proxy"), "user": "daemon", "batch_s": 600},
            }
            host.daemon.activate(ID, accept=["network:apply", "network:plan"])
            found = Site(host, place, listen, directory)
            for name, value in SECRETS.items():
                found.secret(name, value)
            try:
                with place.running():
                    yield found
            finally:
                for pid in place.dead_men():
                    os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(OSError, ValueError):
                    os.kill(found.core(), signal.SIGKILL)
                shutil.rmtree(directory)


@pytest.fixture(scope="module")
def origin():
    with cores.echoing() as port:
        yield port


@pytest.fixture(scope="module")
def served(site):
    """Anna has a quota, Ben has none, Cleo's time is over; applied, each with the path of a subscription."""
    site.configure(proxies.user("anna", quota_bytes=QUOTA), proxies.user("ben"), CLEO)
    assert "nothing is applied yet" in site.refused("links", {"id": "anna"})
    site.applied()
    return {one: site.token(one) for one in ("anna", "ben")}


@contextlib.contextmanager
def stream(site, path, name, origin):
    status, _, document = site.fetch(f"{path}?format=sing-box")
    assert status == 200
    made = json.loads(document)
    # The certificate is of the test's own authority.
    for one in made["outbounds"]:
        if "tls" in one:
            one["tls"]["certificate_path"] = str(site.directory / "ca.pem")
    with cores.stream(json.dumps(made).encode(), name, site.directory, origin) as sock:
        yield sock


def test_a_subscription_is_what_its_user_needs_in_each_form(site, served):
    link = site.do("links", {"id": "anna"})["conf"]
    assert links.read(link).name == "tr"
    status, headers, body = site.fetch(served["anna"])
    assert (status, subscriptions.lines(body)) == (200, (link,))
    assert re.fullmatch(rf"upload=\d+; download=\d+; total={QUOTA}", headers["subscription-userinfo"])
    assert headers["x-content-type-options"] == "nosniff"
    for agent, kind in (("clash-verge/2", "text/yaml; charset=utf-8"), ("sing-box 1.14", "application/json")):
        _, headers, _ = site.fetch(served["anna"], **{"User-Agent": agent})
        assert headers["content-type"] == kind
    assert links.read(link).credential.encode() in site.fetch(f"{served['anna']}?format=clash")[2]
    assert links.read(link).credential != links.read(site.do("links", {"id": "ben"})["conf"]).credential


def test_who_has_no_token_and_who_is_not_let_in_are_answered_alike(site, served):
    assert "not let in" in site.refused("token", {"id": "cleo"})
    assert "has no user" in site.refused("token", {"id": "nobody"})
    unknown = answered(site, f"{served['ben'][:-43]}{'A' * 43}")
    assert unknown[0] == 404
    site.do("disable", {"id": "ben"})
    disabled = answered(site, served["ben"])
    site.do("enable", {"id": "ben"})
    site.until(lambda: site.fetch(served["ben"])[0] == 200, "Ben's subscription again")
    before = site.token("ben")
    assert site.do("revoke", {"id": "ben"})["revoked"] is True
    revoked = answered(site, before)
    served["ben"] = site.token("ben")
    assert unknown == disabled == revoked == answered(site, before)
    assert site.fetch(served["ben"])[0] == 200


def test_an_unbound_secret_is_said_by_its_name(site, served):
    answer = site.host.daemon.ask("DELETE", f"/api/secrets/PROXY_USERS/plugins/{ID}")
    assert answer.status in {200, 204}, answer
    for said in (site.refused("plan"), site.refused("links", {"id": "anna"})):
        assert ("PROXY_USERS" in said, SECRETS["PROXY_USERS"] in said) == (True, False)
    # A visitor learns nothing of it.
    assert "PROXY" not in str(site.fetch(served["anna"]))
    site.secret("PROXY_USERS", SECRETS["PROXY_USERS"])
    assert site.fetch(served["anna"])[0] == 200


def answered(site, path):
    status, headers, body = site.fetch(path)
    return status, {name: value for name, value in headers.items() if name != "date"}, body


def test_the_longest_wait_for_a_cut_is_within_five_seconds():
    """Until the core is told, or found not to answer and killed; besides what the programs of an apply take."""
    assert plugin.POLL_S + proxy_api.CLOSE_S <= 5
    # Of a core that hangs: a look, the offer, the apply and its commit ask it, one after the other.
    assert proxy_api.ANSWER_S + 3 * proxy_api.SILENT_S <= 3
    # An end is looked for when it comes.
    assert [usage.wait_s(one, 10.5, plugin.POLL_S) for one in ([5, 20, 11], [10], [])] == [0.5, 2.0, 2.0]


def test_a_quota_cuts_its_user_within_seconds_and_nobody_else(site, served, origin):
    core = site.core()
    with (
        stream(site, served["anna"], "client-anna", origin) as anna,
        stream(site, served["ben"], "client-ben", origin) as ben,
    ):
        cores.echoed(ben)
        cores.echoed(anna, QUOTA // 2 + 1_000)
        assert cores.is_cut(anna)
        cores.echoed(ben)
        site.until(lambda: site.user("anna")["state"] == "disabled", "the end of Anna")
        assert answered(site, served["anna"])[0] == 404
        cores.echoed(ben)
        used = site.user("anna")
        assert QUOTA <= used["up_bytes"] + used["down_bytes"] < 2 * QUOTA
        assert site.user("ben")["devices"] == 1
        site.until(lambda: "its quota is used up" in site.news(), "the news of it")
        # Counted anew she is let in again, within what was approved.
        site.do("reset", {"id": "anna"})
        site.until(lambda: site.fetch(served["anna"])[0] == 200, "Anna's subscription again")
        cores.echoed(ben)
    assert site.core() == core
    metrics = site.host.daemon.get("/metrics").body.decode()
    assert re.search(r'latticed_proxy_user_up_bytes_total\{user="ben"\} [1-9]', metrics)


def test_who_was_cut_and_connects_anew_is_closed_again_and_is_no_drift(site, served, origin):
    with stream(site, served["ben"], "client-ben", origin) as ben:
        cores.echoed(ben)
        # The client keeps its credential.
        client = json.loads((site.directory / "client-ben.json").read_bytes())
        site.do("disable", {"id": "ben"})
        assert cores.is_cut(ben)
    with cores.stream(json.dumps(client).encode(), "client-again", site.directory, origin) as again:
        assert cores.is_cut(again)
    assert site.host.daemon.events(action="plan.drift") == []
    site.do("enable", {"id": "ben"})
    site.until(lambda: site.fetch(served["ben"])[0] == 200, "Ben's subscription again")


def test_who_has_to_go_is_cut_of_a_core_that_hangs_and_the_others_are_served_again(site, served, origin):
    """It closes nothing any more: it is killed, and started for the rest."""
    core = site.core()
    with stream(site, served["anna"], "client-anna", origin) as anna:
        cores.echoed(anna)
        os.kill(core, signal.SIGSTOP)
        site.do("disable", {"id": "anna"})
        assert cores.is_cut(anna)
    site.until(lambda: site.core() not in {core, 0} and cores.listens(site.port), "another core")
    with stream(site, served["ben"], "client-ben", origin) as ben:
        cores.echoed(ben)
    site.do("enable", {"id": "anna"})
    site.until(lambda: site.fetch(served["anna"])[0] == 200, "Anna's subscription again")


def test_an_end_is_reached_without_an_approval_and_costs_nobody_else(site, served, origin):
    users = [proxies.user("anna", quota_bytes=QUOTA), proxies.user("ben")]
    site.configure(*users, CLEO, proxies.user("dora", expires_at=int(time.time()) + 30))
    site.applied()
    core = site.core()
    with (
        stream(site, site.token("dora"), "client-dora", origin) as dora,
        stream(site, served["ben"], "client-ben", origin) as ben,
    ):
        dora.settimeout(90)
        cores.echoed(dora)
        assert cores.is_cut(dora)
        cores.echoed(ben)
        assert site.core() == core
        site.until(lambda: site.user("dora")["state"] == "disabled", "the end of Dora")
        site.until(lambda: "dora: its time is over" in site.news(), "the news of it")


def test_who_goes_and_who_comes_back_reach_the_file_in_batches(site, served):
    """One start of the core each, when its time has come, and none before."""

    def batch_is_due():
        site.until((site.directory / "proxy/waiting").exists, "the change that waits")
        os.utime(site.directory / "proxy/waiting", (0, 0))

    before = site.core()
    site.do("disable", {"id": "ben"})
    site.until((site.directory / "proxy/waiting").exists, "the change that waits")
    assert site.core() == before
    batch_is_due()
    site.until(lambda: site.core() not in {before, 0}, "the file without Ben")
    before = site.core()
    site.do("enable", {"id": "ben"})
    site.until(lambda: site.user("ben")["state"] == "waiting", "Ben, who waits")
    assert site.core() == before
    batch_is_due()
    site.until(lambda: site.user("ben")["state"] == "active", "the file with Ben")
    assert site.core() != before


def test_killed_daemon_and_core_keep_what_was_counted(site, served, origin, tmp_path):
    """With a clock that was set back meanwhile, before the end of somebody whose time was over: it stays over."""
    with (
        faults.attached(site.host.daemon.place, faults.compiled(tmp_path)) as sick,
        stream(site, served["ben"], "client-ben", origin) as ben,
    ):
        cores.echoed(ben, 300_000)
        site.until(lambda: site.user("ben")["up_bytes"] >= 300_000, "Ben's bytes")
        before, core = site.user("ben"), site.core()
        site.host.daemon.kill()
        sick.shift_clock(-3_600)
        with site.host.daemon.place.running() as fresh:
            old, site.host.daemon = site.host.daemon, fresh
            try:
                fresh.until_state("armed", ID)
                started_at = fresh.get("/api/status").json()["started_at"]
                assert dt.datetime.fromisoformat(started_at).timestamp() < CLEO["expires_at"]
                cores.echoed(ben, 100_000)
                site.until(lambda: site.user("ben")["up_bytes"] >= before["up_bytes"] + 100_000, "what came since")
                assert site.user("ben")["up_bytes"] < before["up_bytes"] + 150_000
                assert (site.user("cleo")["state"], site.core()) == ("disabled", core)
                assert "not let in" in site.refused("token", {"id": "cleo"})
                counted = site.user("ben")
                os.kill(site.core(), signal.SIGKILL)
                assert cores.is_cut(ben)
                site.until(lambda: "drift" in str(fresh.plugin(ID)), "the core's end in the health")
                assert site.user("ben")["up_bytes"] == counted["up_bytes"]
                secrets_are_nowhere(site, served)
                assert fresh.stop() == 0
            finally:
                site.host.daemon = old


def secrets_are_nowhere(site, served):
    """Seeded and derived values, tokens, and the private key of the certificate."""
    values = [*SECRETS.values(), *(path.rpartition("/")[2] for path in served.values())]
    derived = {links.read(site.do("links", {"id": one})["conf"]).credential for one in served}
    assert len(derived) == 2
    values += derived
    values += [base64.b64encode(one.encode()).decode()[:-3] for one in values]
    values += (site.directory / "key.pem").read_text().splitlines()[1:-1]
    found = site.holding("ben", *values)
    assert found.keys() >= {"plans", "backup", "state"}, "the search finds what is there"
    assert all(some == ["ben"] for some in found.values()), found
    seen = f"{site.do('status')}{site.do('users')}"
    for plan in site.do("status")["plans"]:
        seen += str(site.helper.review(plan["sha256"]))
    assert not any(one in seen for one in values)
