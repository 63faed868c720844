"""WireGuard as a plugin of a real daemon, with the real root helper and devices in network namespaces."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from latticed.system.wireguard import dump
from tests.house import apply_helpers, firewalled, hosting, plan_sites, processes, tunnels, wireguards
from tests.house.nft_places import NftPlace

pytestmark = [pytest.mark.root, pytest.mark.daemon]

ID = "latticed.wireguard"
PSK = "a secret of all devices, long enough"


class Site(plan_sites.PlanSite):
    """With WireGuard; the server is in `r`."""

    plugin_id = ID

    def __init__(self, host: hosting.Host, helper: apply_helpers.Place, net: firewalled.Net) -> None:
        super().__init__(host, helper, net)
        self.name = wireguards.unique()
        self.private, self.public = wireguards.genkey()

    def secret(self, name: str, value: str) -> None:
        for path, body in ((f"/api/secrets/{name}", value), (f"/api/secrets/{name}/plugins/{ID}", "")):
            answer = self.host.daemon.ask_raw("PUT", path, body.encode())
            assert answer.status in {200, 204}, answer

    def configure(self, **changes: Any) -> None:
        (network,) = tunnels.document(name=self.name, members=[], endpoint="10.9.0.1:51820", **changes)["networks"]
        self.put({"networks": [network], "device_secret": "WG_PSK"})

    def peers(self) -> list[str]:
        device = dump.read(self.net.run("r", "wg", "show", self.name, "dump"))
        return [one.public_key for one in device.peers]

    def until(self, holds: Any, what: str, deadline_s: float = processes.PATIENCE_S) -> None:
        processes.until(holds, what=what, deadline_s=deadline_s)

    def events(self, action: str) -> str:
        return str(self.host.daemon.events(action=action))


@pytest.fixture(scope="module")
def net() -> Iterator[firewalled.Net]:
    with firewalled.network() as made:
        yield made


@pytest.fixture
def site(net) -> Iterator[Site]:
    net.run("r", "nft", "flush", "ruleset")
    with apply_helpers.place() as made:
        place = NftPlace(home=made.home, before=("ip", "netns", "exec", net.name("r")))
        settings = f'[apply]\nsocket = "{place.settings["socket"]}"\n'
        with hosting.hosting(settings, builtins="latticed") as host:
            place.settings |= {"daemon_user": str(host.daemon.place.uid), "kinds": ["wireguard"]}
            host.daemon.activate(ID, accept=["network:apply", "network:plan"])
            found = Site(host, place, net)
            found.secret("WG_HOME", found.private)
            found.secret("WG_PSK", PSK)
            try:
                with place.running():
                    yield found
            finally:
                for pid in place.dead_men():
                    os.kill(pid, signal.SIGKILL)
                subprocess.run(
                    ["ip", "-n", net.name("r"), "link", "delete", found.name], check=False, capture_output=True
                )


@contextlib.contextmanager
def using(site: Site, letter: str, conf: str) -> Iterator[str]:
    """A device that runs the file it was given, as wg-quick would."""
    address = re.search(r"Address = (\S+?)(,|\n)", conf)
    assert address
    stripped = "".join(f"{line}\n" for line in conf.splitlines() if not line.startswith(("Address", "DNS", "MTU")))
    with wireguards.interface(site.net, letter, wireguards.unique()) as name:
        wireguards.setconf(site.net, letter, name, stripped.encode())
        lines = f"address add {address[1]} dev {name}\nlink set {name} up\nroute add 10.80.0.0/24 dev {name}\n"
        site.net.run(letter, "ip", "-batch", "-", stdin=lines.encode())
        yield name


def pings(site, letter, address) -> bool:
    command = ["ip", "netns", "exec", site.net.name(letter), "ping", "-c", "1", "-W", "1", "-n", address]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_a_device_is_issued_once_approved_used_disabled_and_issued_again(site):
    site.configure()
    assert "not known before it is applied" in site.refused("issue", {"id": "anna"})
    site.applied()
    first = site.do("issue", {"id": "anna", "name": "Anna"})
    assert (first["addresses"], first["state"]) == (["10.80.0.2"], "planned")
    assert f"PublicKey = {site.public}\n" in first["conf"]
    assert "${secret" not in first["conf"]
    assert site.peers() == []
    site.applied()
    assert site.peers() == [first["public_key"]]
    with using(site, "a", first["conf"]):
        site.until(lambda: pings(site, "a", "10.80.0.1"), "a ping of the device")
        assert site.do("devices")[0]["state"] == "active"
        site.until(lambda: "anna: first handshake, from 10.9.0.2" in notified(site), "the news")
        counted = f'latticed_wireguard_device_rx_bytes_total{{network="{site.name}",device="anna"}} '
        site.until(lambda: counted in site.host.daemon.get("/metrics").body.decode(), "the device's bytes")
        made = site.do("disable", {"id": "anna"})
        assert made["state"] == "applying"
        site.until(lambda: site.peers() == [], "the end of the peer")
        assert not pings(site, "a", "10.80.0.1")
        site.do("enable", {"id": "anna"})
        site.until(lambda: site.peers() == [first["public_key"]], "the peer again, within what was approved")
        site.do("rename", {"id": "anna", "name": "Annas sister"})
        site.until(lambda: site.do("devices")[0]["name"] == "Annas sister", "the name")
        assert site.peers() == [first["public_key"]]
        # Lost: the old key ends at once, the new one waits for an approval.
        second = site.do("issue", {"id": "anna"})
        assert (second["addresses"], second["public_key"] != first["public_key"]) == (["10.80.0.2"], True)
        site.until(lambda: site.peers() == [], "the end of the lost key")
    site.applied()
    assert site.peers() == [second["public_key"]]
    psk = [re.search(r"PresharedKey = (\S+)", one["conf"])[1] for one in (first, second)]
    assert psk[0] != psk[1]
    private = [re.search(r"PrivateKey = (\S+)", one["conf"])[1] for one in (first, second)]
    assert site.holding(second["public_key"]).keys() >= {"plans", "backup", "state"}, "the search finds what is there"
    assert site.holding(*psk, *private, site.private, PSK) == {}
    assert not any(one in f"{site.do('status')}{site.do('devices')}" for one in (*psk, *private, site.private, PSK))


def notified(site) -> str:
    return str(site.host.daemon.get("/api/notifications").json())


def test_addresses_of_removed_devices_are_given_to_nobody_before_they_are_released(site):
    site.configure(public_key=site.public)
    theirs = [site.do("issue", {"id": one})["addresses"] for one in ("anna", "ben")]
    assert theirs == [["10.80.0.2"], ["10.80.0.3"]]
    site.applied()
    site.do("remove", {"id": "anna"})
    site.until(lambda: len(site.peers()) == 1, "the end of the peer")
    assert site.do("issue", {"id": "cleo"})["addresses"] == ["10.80.0.4"]
    assert site.do("status")["held"][site.name] == [{"id": "anna", "addresses": ["10.80.0.2"]}]
    assert "no addresses are held" in site.refused("release", {"id": "ben"})
    site.do("release", {"id": "anna"})
    assert site.do("issue", {"id": "dora"})["addresses"] == ["10.80.0.2"]


def test_a_device_ends_within_a_minute_without_an_approval_and_stays_ended(site):
    site.configure(public_key=site.public)
    until = int(time.time()) + 25
    site.do("issue", {"id": "anna", "expires_at": until})
    made = site.do("issue", {"id": "ben", "public_key": tunnels.key("ben")})
    assert "# PrivateKey = (of the public key" in made["conf"]
    site.applied()
    assert len(site.peers()) == 2
    site.until(lambda: site.peers() == [tunnels.key("ben")], "the end", 25 + 60)
    assert [one["state"] for one in site.do("devices")] == ["disabled", "active"]


def test_payloads_that_make_no_sense_are_refused(site):
    site.configure(public_key=site.public)
    for payload in (None, [], {}, {"id": 1}, {"id": "Anna"}, {"id": "a\nb"}):
        site.refused("issue", payload)
    refused = [{"days": 0}, {"more": 1}, {"public_key": "x"}, {"may_reach": ["x"]}, {"network": "other"}, {"mtu": 1}]
    for more in (*refused, {"routes": ["0.0.0.0/33"]}, {"name": "a;b"}, {"expires_at": -1}):
        site.refused("issue", {"id": "a", **more})
    for action in ("remove", "release", "disable", "enable"):
        site.refused(action, {"id": "nobody"})
    assert site.do("devices") == []
    adopted = {"conf": f"[Interface]\nPrivateKey = {site.private}\nPostUp = true\n", "name": "wg0", "secret": "WG"}
    assert site.private not in site.refused("adopt", adopted)
    text = f"[Interface]\nPrivateKey = {site.private}\nAddress = 10.1.0.1/24\n[Peer]\nPublicKey = {tunnels.key('a')}\n"
    found = site.do("adopt", {**adopted, "conf": f"{text}AllowedIPs = 10.1.0.2/32\n"})
    assert found["secrets"] == {"WG": "PrivateKey"}
    assert site.private not in str(found)


def test_an_unbound_secret_and_an_end_that_has_passed_are_said(site):
    site.configure(public_key=site.public)
    assert "has passed" in site.refused("issue", {"id": "anna", "expires_at": 5})
    site.do("issue", {"id": "anna", "days": 1})
    assert "expected days" in site.refused("prolong", {"id": "anna"})
    before = site.do("devices")[0]["expires_at"]
    site.do("prolong", {"id": "anna", "days": 9})
    assert site.do("devices")[0]["expires_at"] > before
    answer = site.host.daemon.ask("DELETE", f"/api/secrets/WG_HOME/plugins/{ID}")
    assert answer.status in {200, 204}, answer
    said = site.refused("plan")
    assert ("WG_HOME" in said, site.private in said) == (True, False)
