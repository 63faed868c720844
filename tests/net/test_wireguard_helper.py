"""WireGuard's plans at the real root helper, in network namespaces: approval, deadline, kills, secrets, traffic."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from msgspec import structs

from latticed.plans import protocol
from latticed.plans.wireguard import WireguardKind
from latticed.system.wireguard import dump, reach
from latticed.system.wireguard import intent as model
from tests.house import apply_helpers, faults, firewalled, long, processes, ssh_logins, tunnels, wireguards
from tests.house.nft_places import NftPlace

pytestmark = pytest.mark.root

FOREIGN = b"table ip nat {\n chain prerouting {\n type nat hook prerouting priority dstnat\n }\n}\n"
PORT = 51_820


@dataclass
class Site:
    """A server in `r` with a helper, and devices in other namespaces. `keys`: private keys by secret's name."""

    net: firewalled.Net
    helper: apply_helpers.Place
    name: str
    keys: dict[str, str] = field(default_factory=lambda: {"WG_HOME": wireguards.genkey()[0]})

    def secrets(self, intent) -> list[protocol.SecretValue]:
        return [
            protocol.SecretValue(reference=one, form="key", value=self.keys.setdefault(one, tunnels.key(one)))
            for one in WireguardKind().secrets(intent)
        ]

    def intent(self, *members, **changes):
        return tunnels.document(name=self.name, members=list(members), **changes)

    def applied(self, intent) -> str:
        return self.helper.applied(intent, kind="wireguard", secrets=self.secrets(intent))

    def approved(self, intent) -> str:
        return self.helper.approved(intent, kind="wireguard", secrets=self.secrets(intent))

    def narrowed(self, intent) -> protocol.Answer:
        """What the daemon's user is answered that has it applied, without an approval."""
        plan = self.helper.offer(intent, kind="wireguard", secrets=self.secrets(intent))
        return self.helper.ask(protocol.Apply(plan=plan), user=apply_helpers.DAEMON)

    def state(self) -> tuple[str, ...]:
        """Interface, peers (without counters and endpoints) and table; empty texts for what is not there."""
        with contextlib.suppress(AssertionError):
            device = dump.read(self.net.run("r", "wg", "show", self.name, "dump"))
            peers = [(one.public_key, one.preshared_key, one.allowed, one.keepalive_s) for one in device.peers]
            # Not link-local ones: the kernel gives an interface that is made again another one.
            addresses = self.net.run("r", "ip", "-br", "address", "show", self.name, "scope", "global").decode()
            table = self.net.run("r", "nft", "-s", "list", "table", reach.FAMILY, reach.NAME).decode()
            return repr((device.private_key, device.listen_port, peers)), addresses, table
        return ("", "", "")

    def peers(self) -> dict[str, dump.LivePeer]:
        device = dump.read(self.net.run("r", "wg", "show", self.name, "dump"))
        return {one.public_key: one for one in device.peers}

    def foreign(self) -> bytes:
        return self.net.run("r", "nft", "-s", "-a", "list", "table", "ip", "nat")


@dataclass
class Peer:
    """A device in another namespace: its interface and keys."""

    name: str
    private_key: str
    public_key: str
    address: str


@pytest.fixture(scope="module")
def net() -> Iterator[firewalled.Net]:
    with firewalled.network() as made:
        yield made


@pytest.fixture
def site(net) -> Iterator[Site]:
    """With a table of somebody else, and a helper that is not started yet."""
    net.run("r", "nft", "flush", "ruleset")
    net.run("r", "nft", "-f", "-", stdin=FOREIGN)
    with apply_helpers.place() as made:
        before = ("ip", "netns", "exec", net.name("r"))
        place = NftPlace(home=made.home, settings={"kinds": ["wireguard"]}, before=before)
        found = Site(net, place, wireguards.unique())
        try:
            yield found
        finally:
            for pid in place.dead_men():
                os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "-n", net.name("r"), "link", "delete", found.name], check=False, capture_output=True)


@contextlib.contextmanager
def device(site, letter, address, *, allowed="0.0.0.0/0", psk="") -> Iterator[Peer]:
    """A device whose own file says that all of the world is behind the tunnel."""
    private, public = wireguards.genkey()
    server = subprocess.run(["wg", "pubkey"], check=True, capture_output=True, input=site.keys["WG_HOME"].encode())
    endpoint = firewalled.ROUTER[letter][0]
    with wireguards.interface(site.net, letter, wireguards.unique()) as name:
        conf = f"[Interface]\nPrivateKey = {private}\n[Peer]\nPublicKey = {server.stdout.decode().strip()}\n"
        conf += f"AllowedIPs = {allowed}\nEndpoint = {endpoint}:{PORT}\nPersistentKeepalive = 1\n"
        conf += f"PresharedKey = {psk}\n" if psk else ""
        wireguards.setconf(site.net, letter, name, conf.encode())
        lines = f"address add {address}/24 dev {name}\nlink set {name} up mtu 1400\nroute add 10.9.2.0/24 dev {name}\n"
        site.net.run(letter, "ip", "-batch", "-", stdin=lines.encode())
        yield Peer(name, private, public, address)


def until(holds, what, deadline_s=processes.PATIENCE_S):
    processes.until(holds, what=what, deadline_s=deadline_s)


def pings(site, letter, address, *, count=1) -> bool:
    done = subprocess.run(
        ["ip", "netns", "exec", site.net.name(letter), "ping", "-c", str(count), "-W", "1", "-n", address],
        check=False,
        capture_output=True,
    )
    return done.returncode == 0


@contextlib.contextmanager
def pinging(site, letter, address) -> Iterator[list[str]]:
    """A ping every 10 ms meanwhile; what it said stands in the list afterwards."""
    ping = ("ping", "-w", str(long.times(50, 500)), "-i", "0.01", "-n", address)
    command = ["ip", "netns", "exec", site.net.name(letter), *ping]
    told: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as ping:
        try:
            yield told
        finally:
            ping.send_signal(signal.SIGINT)
            told.append(ping.communicate()[0].decode())


def connects(site, letter, source, address, port) -> bool:
    """Whether a connection from the device's address is accepted."""
    with site.net.inside(letter), socket.socket(socket.AF_INET) as client:
        client.settimeout(2)
        client.bind((source, 0))
        return client.connect_ex((address, port)) == 0


@contextlib.contextmanager
def listening(site, letter, address, *ports):
    with contextlib.ExitStack() as stack, site.net.inside(letter):
        yield [stack.enter_context(firewalled.listening(address, port)) for port in ports]


def test_approved_network_carries_a_ping_and_shows_no_difference(site):
    with site.helper.running(), device(site, "a", "10.80.0.2", psk=tunnels.key("PSK#anna")) as anna:
        member = {**tunnels.member("anna", 2, preshared_key="${secret:PSK#anna}"), "public_key": anna.public_key}
        plan = site.applied(site.intent(member))
        assert site.helper.state_of(plan) == "applied"
        until(lambda: pings(site, "a", "10.80.0.1"), "a ping through the tunnel")
        reviewed = site.helper.review(plan)
        changed = [one[1:].split(" = ")[0] for one in reviewed.diff.splitlines() if re.match(r"[+-](?![+-])", one)]
        assert changed == ["PrivateKey", "PrivateKey", "PresharedKey", "PresharedKey"]


def test_a_ping_every_10_ms_loses_nothing_while_peers_come_and_go(site):
    """As many as an intent may have, in the long run: 2,000."""

    def network(*members, **changes):
        return site.intent(*members, addresses=["10.80.0.1/16"], **changes)

    with site.helper.running(), device(site, "a", "10.80.0.2") as anna:
        first = {**tunnels.member("anna", 2), "public_key": anna.public_key}
        site.applied(network(first))
        until(lambda: pings(site, "a", "10.80.0.1"), "a ping through the tunnel")
        received = site.peers()[anna.public_key].rx_bytes
        others = [tunnels.member(f"m{n}", n) for n in range(3, 9)]
        most = long.times(120, model.MAX_MEMBERS) - 1
        others += [
            {**tunnels.member(f"n{n}", 0), "addresses": [f"10.80.{n // 250 + 1}.{n % 250 + 1}"]}
            for n in range(len(others), most)
        ]
        with pinging(site, "a", "10.80.0.1") as told:
            for count in (1, 4, 6, most, 2):
                site.applied(network(first, *others[:count], may_reach=["server", f"192.168.{count % 200}.0/24"]))
                assert len(site.peers()) == count + 1
            renamed = {**first, "name": "Anna renamed"}
            assert site.narrowed(network(renamed, *others[:1], may_reach=["server"])).state == "applied"
        answered = {int(one) for one in re.findall(r"icmp_seq=(\d+) ttl=", told[0])}
        assert len(answered) > 50
        # What comes after the last answer was under way when it was stopped.
        assert set(range(1, max(answered) + 1)) - answered == set()
        assert site.peers()[anna.public_key].rx_bytes > received


def test_a_member_reaches_what_it_may_though_its_own_file_says_all_of_the_world(site):
    with site.helper.running(), device(site, "a", "10.80.0.2") as anna, device(site, "b", "10.80.0.3") as ben:
        a = {**tunnels.member("anna", 2), "public_key": anna.public_key}
        b = {**tunnels.member("ben", 3), "public_key": ben.public_key}
        site.net.run("c", "ip", "route", "replace", "10.80.0.0/24", "via", "10.9.2.1")
        with listening(site, "c", "10.9.2.2", 80, 443), listening(site, "r", "0.0.0.0", 8_080):
            to_web = {"to": "10.9.2.2", "proto": "tcp", "ports": [443]}
            site.applied(site.intent({**a, "may_reach": ["members", to_web]}, {**b, "may_reach": ["server"]}))
            until(lambda: connects(site, "a", "10.80.0.2", "10.9.2.2", 443), "the server that it may reach")
            until(lambda: connects(site, "b", "10.80.0.3", "10.80.0.1", 8_080), "the hub")
            assert pings(site, "a", "10.80.0.3")
            assert not connects(site, "a", "10.80.0.2", "10.9.2.2", 80)
            assert not connects(site, "a", "10.80.0.2", "10.80.0.1", 8_080)
            assert not connects(site, "a", "10.80.0.2", "10.9.2.1", 8_080)
            assert not connects(site, "b", "10.80.0.3", "10.9.2.2", 443)
            assert not pings(site, "b", "10.80.0.2")
            # An address of another member is not taken from it: the server goes by keys.
            site.net.run("b", "ip", "address", "add", "10.80.0.2/32", "dev", ben.name)
            assert not connects(site, "b", "10.80.0.2", "10.9.2.2", 443)
            # What is taken away ends at once, also for a connection that stands.
            with site.net.inside("a"), socket.create_connection(("10.9.2.2", 443), 5, ("10.80.0.2", 0)) as standing:
                less = site.intent({**a, "may_reach": []}, {**b, "may_reach": ["server"]})
                assert site.narrowed(less).state == "applied"
                standing.sendall(b"x")
                # Nothing that the kernel sends again is answered.
                assert unacknowledged(standing) > 0
            assert not connects(site, "a", "10.80.0.2", "10.9.2.2", 443)


def unacknowledged(sock) -> int:
    """Segments that the peer has not acknowledged after a while (tcp_info, tcpi_unacked)."""
    apply_helpers.pause(0.5)
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int.from_bytes(info[24:28], sys.byteorder)


def test_a_disabled_or_ended_member_is_gone_without_an_approval_and_comes_back_only_within_it(site):
    with site.helper.running(), device(site, "a", "10.80.0.2") as anna:
        member = {**tunnels.member("anna", 2, expires_at=int(time.time()) + 3_600), "public_key": anna.public_key}
        site.applied(site.intent(member, tunnels.member("ben", 3)))
        until(lambda: pings(site, "a", "10.80.0.1"), "a ping through the tunnel")
        assert site.narrowed(site.intent({**member, "enabled": False}, tunnels.member("ben", 3))).state == "applied"
        assert anna.public_key not in site.peers()
        assert not pings(site, "a", "10.80.0.1")
        later = site.narrowed(site.intent({**member, "expires_at": member["expires_at"] + 1}, tunnels.member("ben", 3)))
        assert later.code == "not_approved"
        assert site.narrowed(site.intent(member, tunnels.member("ben", 3))).state == "applied"
        until(lambda: pings(site, "a", "10.80.0.1"), "a ping again")
        assert site.narrowed(site.intent({**member, "expires_at": 5}, tunnels.member("ben", 3))).state == "applied"
        assert anna.public_key not in site.peers()


def test_operator_who_is_logged_in_through_the_tunnel_is_cut_off_by_nothing_but_an_approval_that_says_so(site):
    behind = firewalled.ROUTER["c"][0]
    with site.helper.running(), ssh_logins.sshd(site.net) as server, device(site, "a", "10.80.0.2") as anna:
        member, ben = {**tunnels.member("anna", 2), "public_key": anna.public_key}, tunnels.member("ben", 3)
        site.applied(site.intent(member, ben))
        disabled = site.intent({**member, "enabled": False}, ben)
        with server.login("10.80.0.2", behind):
            before = site.state()
            soon = {**member, "expires_at": int(time.time()) + 2}
            for less in ({"networks": []}, disabled, site.intent(soon, ben), site.intent(member, ben, may_reach=[])):
                answer = site.narrowed(less)
                told = [(one.code, "10.80.0.2" in one.expected) for one in answer.findings]
                assert (answer.code, told) == ("intent_refused", [("lockout_source", True)])
                assert "--override lockout_source" in answer.hint
                assert site.state() == before
            assert site.narrowed(site.intent(member)).state == "applied"
            plan = site.helper.offer(disabled, kind="wireguard", secrets=site.secrets(disabled))
            approve = protocol.Approve(plan=plan, review=site.helper.review(plan).review)
            assert site.helper.ask(approve).code == "intent_refused"
            approve = structs.replace(approve, overrides=("lockout_source",))
            assert site.helper.ask(approve).state == "approved"
            assert site.helper.ask(protocol.Apply(plan=plan)).state == "unconfirmed"
            assert site.helper.ask(protocol.Confirm(plan=plan)).state == "applied"
            assert anna.public_key not in site.peers()
            # Who is out already keeps nothing else from being taken away.
            assert site.narrowed({"networks": []}).state == "applied"


def test_who_approved_through_the_tunnel_is_not_cut_off_without_an_approval(site):
    with site.helper.running():
        intent = site.intent(tunnels.member("anna", 2), tunnels.member("ben", 3))
        plan = site.helper.offer(intent, kind="wireguard", secrets=site.secrets(intent))
        approve = protocol.Approve(plan=plan, review=site.helper.review(plan).review, source="10.80.0.2")
        for request in (approve, protocol.Apply(plan=plan), protocol.Confirm(plan=plan)):
            moved = site.helper.ask(request)
        assert moved.state == "applied"
        assert site.narrowed(site.intent(tunnels.member("ben", 3))).findings[0].code == "lockout_source"
        assert site.narrowed(site.intent(tunnels.member("anna", 2))).state == "applied"


def test_boot_brings_back_what_was_confirmed_but_nobody_whose_time_is_over(site):
    soon = int(time.time()) + 20
    with site.helper.running():
        site.applied(site.intent(tunnels.member("anna", 2, expires_at=soon), tunnels.member("ben", 3)))
        assert len(site.peers()) == 2
    site.net.run("r", "ip", "link", "delete", site.name)
    site.net.run("r", "nft", "delete", "table", reach.FAMILY, reach.NAME)
    until(lambda: time.time() > soon + 1, "the end of a member", 40)
    with site.helper.running():
        (one,) = [one for one in site.helper.ask(protocol.Boot()).targets if one.kind == "wireguard"]
        assert one.outcome == "restored"
        assert list(site.peers()) == [tunnels.key("ben")]


def test_unconfirmed_change_is_undone_at_its_deadline_and_the_tunnel_carries_again(site):
    with site.helper.running(), device(site, "a", "10.80.0.2") as anna:
        member = {**tunnels.member("anna", 2), "public_key": anna.public_key}
        site.applied(site.intent(member))
        until(lambda: pings(site, "a", "10.80.0.1"), "a ping through the tunnel")
        before, foreign = site.state(), site.foreign()
        bad = site.approved(site.intent({**tunnels.member("anna", 2)}, listen_port=51_999, mtu=1_300))
        moved = site.helper.ask(protocol.Apply(plan=bad, confirm_within_s=10))
        assert moved.state == "unconfirmed", moved
        assert (site.state() != before, pings(site, "a", "10.80.0.1")) == (True, False)
        site.helper.until_back(lambda: site.state() == before, "wireguard")
        until(lambda: site.helper.state_of(bad) == "rolled_back", "the record")
        until(lambda: pings(site, "a", "10.80.0.1"), "a ping again")
        assert site.foreign() == foreign


def test_kill_at_any_moment_between_snapshot_and_confirmation_ends_in_the_old_state(site):
    """Of the helper, its dead-man, or both; where both are gone, the next start puts it back."""
    rng = random.Random(14)
    other = wireguards.unique()
    private, _ = wireguards.genkey()
    with wireguards.interface(site.net, "r", other):
        wireguards.setconf(site.net, "r", other, f"[Interface]\nPrivateKey = {private}\nListenPort = 51998\n".encode())
        with site.helper.running():
            site.applied(site.intent(tunnels.member("anna", 2)))
        before, foreign = site.state(), (site.foreign(), site.net.run("r", "wg", "show", other, "dump"))
        assert before[0]
        for turn in range(long.times(3, 50)):
            victims = ("helper", "dead-man", "both")[turn % 3]
            with site.helper.running() as helper:
                wide = site.intent(tunnels.member("anna", 2), tunnels.member("ben", 3 + turn), mtu=1_300 + turn)
                plan = site.approved({"networks": []} if turn % 2 else wide)
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(site.helper.settings["socket"])
                    sock.sendall(protocol.encode(protocol.Apply(plan=plan, confirm_within_s=10)))
                    apply_helpers.pause(rng.uniform(0, 2))
                    if victims in {"dead-man", "both"}:
                        for pid in site.helper.dead_men():
                            os.kill(pid, signal.SIGKILL)
                    if victims in {"helper", "both"}:
                        helper.kill()
                        helper.wait()
                    # Before an answer nothing may be armed yet, and later it would be.
                    is_up = victims == "dead-man" and apply_helpers.is_answered(sock, helper)
                    if is_up:
                        site.helper.until_back(lambda: site.state() == before, "wireguard")
            if not is_up:
                with site.helper.running():
                    site.helper.until_back(lambda: site.state() == before, "wireguard")
            assert (site.foreign(), site.net.run("r", "wg", "show", other, "dump")) == foreign


def test_a_full_disk_at_each_step_changes_nothing_or_is_undone(site):
    """Offer, approval and apply are refused; what cannot be confirmed any more comes back."""
    site.helper.state.mkdir()
    filler = site.helper.state / "filler"
    with faults.small_disk(site.helper.state, kib=3_072, uid=0), site.helper.running():
        first = site.intent(tunnels.member("anna", 2))
        site.applied(first)
        before, wide = site.state(), site.intent(tunnels.member("anna", 2), tunnels.member("ben", 3), mtu=1_300)
        offer = protocol.Offer(kind="wireguard", intent=wide, secrets=tuple(site.secrets(wide)))
        steps = [lambda: offer, lambda: protocol.Approve(plan=plan, review=site.helper.review(plan).review)]
        steps.append(lambda: protocol.Apply(plan=plan, confirm_within_s=8))
        plan = ""
        for step in steps:
            request = step()
            faults.fill(filler)
            assert site.helper.ask(request).code == "state_unusable", request
            assert site.state() == before
            filler.unlink()
            answer = site.helper.ask(request)
            plan = plan or answer.plan
        assert (answer.state, site.state() == before) == ("unconfirmed", False)
        faults.fill(filler)
        assert site.helper.ask(protocol.Confirm(plan=plan)).code == "state_unusable"
        site.helper.until_back(lambda: site.state() == before, "wireguard")
        filler.unlink()
        until(lambda: site.helper.state_of(plan) == "rolled_back", "the record")
        site.applied(site.intent(tunnels.member("anna", 2), tunnels.member("cleo", 4)))


def test_what_runs_on_keeps_no_lock_and_survives_the_helper(site):
    with site.helper.running():
        site.applied(site.intent(tunnels.member("anna", 2)))
        before = site.state()
    assert site.state() == before
    with site.helper.running():
        site.applied(site.intent(tunnels.member("anna", 2), tunnels.member("ben", 3)))


def test_a_secret_that_changed_since_the_review_or_has_another_form_is_refused(site):
    with site.helper.running():
        intent = site.intent(tunnels.member("anna", 2))
        plan = site.approved(intent)
        site.keys["WG_HOME"] = wireguards.genkey()[0]
        site.helper.offer(intent, kind="wireguard", secrets=site.secrets(intent))
        assert site.helper.ask(protocol.Apply(plan=plan)).code == "not_approved"
        bad = [protocol.SecretValue(reference="WG_HOME", form="password", value="hunter2-hunter2")]
        for secrets in (bad, []):
            answer = site.helper.ask(protocol.Offer(kind="wireguard", intent=intent, secrets=tuple(secrets)))
            assert answer.code == "bad_request"
            assert "hunter2" not in answer.message
        assert site.state() == ("", "", "")


def test_secrets_are_in_nothing_but_roots_own_files_and_in_no_command_line(site):
    trace = site.helper.home / "trace"
    watching = ("strace", "-D", "-f", "-q", "-s", "65536", "-v", "-o", str(trace), "-e", "trace=execve,execveat")
    site.helper.before = (*site.helper.before, *watching)
    with site.helper.running():
        member = tunnels.member("anna", 2, preshared_key="${secret:PSK#anna}")
        plan = site.applied(site.intent(member))
        seen = [site.helper.review(plan), site.helper.observed(kind="wireguard", steps_after=0)]
        bad = site.intent({**member, "public_key": "x"})
        seen.append(site.helper.ask(protocol.Offer(kind="wireguard", intent=bad, secrets=())))
        shown = "".join(map(repr, seen)) + site.helper.log() + trace.read_text()
        assert "execve(" in trace.read_text()
        for value in site.keys.values():
            assert value not in shown
            files = [one for one in site.helper.home.rglob("*") if one.is_file()]
            holding = [one for one in files if value.encode() in one.read_bytes()]
            assert holding
            for one in holding:
                found = one.stat()
                assert (found.st_uid, found.st_mode & 0o077) == (0, 0), one
                assert site.helper.state in one.parents
