"""kill -9 of whoever takes part in an apply of nft guard, at many points between its request and the confirmation."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from latticed.plans import protocol
from latticed.system.nft_guard import parse
from tests.house import apply_helpers, daemons, firewalled, long, raw_http
from tests.house.nft_places import BASE, WIDE, NftPlace

pytestmark = [pytest.mark.root, pytest.mark.daemon]

ID = "latticed.nft-guard"
STRANGER, BRIEFLY = "198.51.100.7", "198.51.100.8"
POINTS = long.times(2, 50)
CONFIRM_S = 4
BAN_S = 86_400
FOREIGN = b"""
    table ip nat {
        chain prerouting {
            type nat hook prerouting priority dstnat
            tcp dport 8080 dnat to 10.9.2.2:80
        }
    }
"""


class Site:
    """One helper in the namespace, a daemon with nft guard that is started when it is needed, and an applied plan."""

    def __init__(self, net: firewalled.Net, helper: NftPlace, place: daemons.Place) -> None:
        self.net, self.helper, self.place = net, helper, place
        self.late_s = 0.0
        self.ends_s, self.restored = int(time.time()) + BAN_S, 0

    def table(self) -> bytes:
        """The owned table without its elements."""
        return "\n".join(parse.without_elements(self.net.stateless())).encode()

    def foreign(self) -> bytes:
        """With the handles of its rules: what was made anew has others."""
        return self.net.run("r", "nft", "-s", "-a", "list", "table", "ip", "nat")

    def banned(self) -> dict[str, int]:
        return {str(one.network): one.remaining_s for one in parse.bans(self.net.listing())}

    def until_banned(self, daemon: daemons.Daemon, address: str, *, wanted: bool) -> None:
        daemon.until(lambda: (f"{address}/32" in self.banned()) is wanted, f"the ban of {address}: {wanted}")

    def until_back(self, before: bytes) -> None:
        """Wait until nothing is armed any more: the table is as it was, at no moment later than promised."""
        self.late_s = max(self.late_s, self.helper.until_back(lambda: self.table() == before, "nft"))


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        net = stack.enter_context(firewalled.network())
        net.run("r", "nft", "-f", "-", stdin=FOREIGN)
        made = stack.enter_context(apply_helpers.place())
        helper = NftPlace(home=made.home, before=("ip", "netns", "exec", net.name("r")))
        settings = f'[apply]\nsocket = "{helper.settings["socket"]}"\n'
        place = stack.enter_context(daemons.placed("stranger", settings=settings))
        place.builtins = ("latticed", "")
        helper.settings |= {"daemon_user": str(place.uid), "kinds": ["nft"], "confirm_within_s": CONFIRM_S}
        with helper.running(), place.running() as daemon:
            daemon.activate(ID, accept=["network:apply", "network:plan"])
            found = Site(net, helper, place)
            bans = [
                {"address": STRANGER, "expires_at": found.ends_s},
                {"address": BRIEFLY, "expires_at": found.ends_s - BAN_S + 60},
            ]
            intent = {**BASE, "bans": bans}
            answer = daemon.ask("PUT", f"/api/plugins/by-id/{ID}/config", {"config": intent})
            assert answer.status == 200, answer
            plan = helper.approved(intent, kind="nft", user=None)
            helper.ask(protocol.Apply(plan=plan, confirm_within_s=60))
            assert helper.ask(protocol.Confirm(plan=plan)).state == "applied"
        yield found


def kill(*pids: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def apply_takes(site):
    """Seconds that an apply takes here, until it is unconfirmed."""
    plan = site.helper.approved(WIDE, kind="nft", user=None)
    began = time.monotonic()
    assert site.helper.ask(protocol.Apply(plan=plan)).state == "unconfirmed"
    took_s = time.monotonic() - began
    site.helper.ask(protocol.Rollback(plan=plan))
    return took_s


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("victim", ["both", "dead-man", *long.only("daemon", "helper")])
def test_change_that_is_killed_anywhere_is_back_two_seconds_after_its_deadline(site, victim):
    """Byte for byte, with the bans that are not over, and no table of somebody else's was touched.

    Half of the points lie within the apply, half in the second behind it. The helper is the dead-man's parent; without
    it the dead-man undoes, without a dead-man the helper.
    """
    before, foreign = site.table(), site.foreign()
    with site.helper.running():
        takes_s = apply_takes(site)
    for point in range(POINTS):
        at_s = takes_s * (point + 0.5) * 2 / POINTS if point < POINTS // 2 else takes_s + (point + 0.5) / POINTS
        with contextlib.ExitStack() as stack:
            helper = stack.enter_context(site.helper.running())
            daemon = stack.enter_context(site.place.running()) if victim in {"daemon", "both"} else None
            plan = site.helper.approved(WIDE, kind="nft", user=None)
            latest = time.monotonic() + at_s
            caller = stack.enter_context(socket.socket(socket.AF_UNIX))
            caller.connect(site.helper.settings["socket"])
            caller.sendall(protocol.encode(protocol.Apply(plan=plan)))
            while time.monotonic() < latest:
                time.sleep(0.002)
            if daemon is not None:
                caller.close()
                kill(daemon.process.pid)
            if victim in {"helper", "both"}:
                kill(helper.pid)
                helper.wait()
            if victim == "dead-man":
                kill(*site.helper.dead_men())
            if helper.poll() is None:
                assert site.helper.observed().kinds, "asked after the apply, so answered after it"
            site.until_back(before)
            assert site.foreign() == foreign
            site.restored += 1
            # The kernel says what remains in whole seconds, so each time some of one is lost.
            short_s = site.ends_s - time.time() - site.banned()[f"{STRANGER}/32"]
            assert -5 < short_s < 5 + site.restored
        with site.helper.running():
            assert site.table() == before
            assert site.helper.state_of(plan) in {"approved", "rolled_back", "failed"}
            assert site.helper.observed().targets[0].unconfirmed == ""
    print(f"{victim}: {POINTS} points, back {site.late_s:.2f} s after the deadline at the latest")


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_ban_during_which_the_daemon_is_killed_is_none_or_is_in_the_table_after_the_next_start(site):
    """What was kept is applied then, and nothing is unconfirmed."""
    points, found = long.times(4, 50), []
    with site.helper.running():
        with site.place.running() as daemon:
            daemon.until_state("armed", ID)
            takes_s = ban_takes(site)
        for point in range(points):
            address = f"203.0.113.{point + 1}"
            with site.place.running() as daemon:
                daemon.until_state("armed", ID)
                caller = ban(site.place, address)
                # Some before it is kept, some after it was answered, however slow the machine is.
                time.sleep(takes_s * 1.5 * (point + 0.5) / points)
                kill(daemon.process.pid)
                caller.close()
            with site.place.running() as daemon:
                daemon.until_state("armed", ID)
                found.append(address in kept(daemon))
                site.until_banned(daemon, address, wanted=found[-1])
                assert site.helper.observed().targets[0].unconfirmed == ""
    assert len(site.banned()) >= sum(found) + 1
    print(f"{points} points, {sum(found)} bans kept")


def ban_takes(site):
    """Seconds that a ban takes here, until it is answered."""
    began = time.monotonic()
    with ban(site.place, "203.0.113.200") as caller:
        assert caller.recv(1)
    return time.monotonic() - began


def ban(place, address):
    """A connection that has asked for a ban and waits."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(place.socket))
    body = {"action": "ban", "payload": {"address": address, "seconds": 3_600}}
    sock.sendall(raw_http.request("POST", f"/api/plugins/by-id/{ID}/invoke", json.dumps(body).encode()))
    return sock


def kept(daemon):
    answer = daemon.post(f"/api/plugins/by-id/{ID}/invoke", {"action": "status"})
    assert answer.status == 200, answer
    return [one["address"] for one in answer.json()["result"]["bans"]]
