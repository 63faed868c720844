"""nft guard's plans at the real root helper, in a network namespace: approval, deadline, kills, bans, drift, boot."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from latticed.plans import protocol
from latticed.plans.nft import NftKind
from latticed.system.nft_guard import parse
from tests.house import apply_helpers, firewalled, processes, ssh_logins, traces
from tests.house.nft_places import BASE, SSH, WIDE, NftPlace

pytestmark = pytest.mark.root

STRANGER = "198.51.100.7"
TABLE = " ".join(firewalled.TABLE)
FOREIGN = b"""
    table ip nat {
        chain prerouting {
            type nat hook prerouting priority dstnat
            tcp dport 8080 dnat to 10.9.2.2:80
        }
    }
"""
OF_PROGRAMS = (
    "/lib",
    "/usr/lib",
    "/etc/ld.so.cache",
    "/etc/iproute2",
    "/usr/share/iproute2",
    "/etc/ssh",
    "/etc/ssl",
    "/usr/share/zoneinfo",
    "/etc/localtime",
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/host.conf",
    "/etc/resolv.conf",
    "/etc/protocols",
    "/etc/services",
    "/proc",
    "/dev/null",
    "/dev/urandom",
    "/run/sshd",
)
"""What nft, ss, ip and sshd may read."""


@dataclass
class Site:
    net: firewalled.Net
    helper: apply_helpers.Place

    def table(self) -> bytes:
        """The owned table without its elements; empty for none."""
        if b"inet latticed_guard" not in self.net.run("r", "nft", "list", "tables"):
            return b""
        return "\n".join(parse.without_elements(self.net.stateless())).encode()

    def banned(self) -> dict[str, int]:
        return {str(one.network): one.remaining_s for one in parse.bans(self.net.listing())}

    def foreign(self) -> bytes:
        return self.net.run("r", "nft", "-s", "-a", "list", "table", "ip", "nat")


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
        place = NftPlace(home=made.home, settings={"kinds": ["nft"]}, before=before)
        try:
            yield Site(net, place)
        finally:
            for pid in place.dead_men():
                os.kill(pid, signal.SIGKILL)


def banned(address, seconds):
    return {"address": address, "expires_at": int(time.time()) + seconds}


def until(holds, what, deadline_s=processes.PATIENCE_S):
    processes.until(holds, what=what, deadline_s=deadline_s)


def test_approved_plan_is_applied_kept_and_shown_without_a_difference(site):
    with site.helper.running():
        foreign = site.foreign()
        plan = site.helper.applied(BASE, kind="nft")
        assert site.helper.state_of(plan) == "applied"
        assert b"dport 22 " in site.table()
        assert site.helper.review(plan).diff.strip() == ""
        assert site.foreign() == foreign


def test_unconfirmed_plan_is_undone_byte_for_byte_at_its_deadline(site):
    with site.helper.running():
        site.helper.applied({**BASE, "bans": [banned(STRANGER, 3_600)]}, kind="nft")
        before, foreign = site.table(), site.foreign()
        plan = site.helper.approved(WIDE, kind="nft")
        moved = site.helper.ask(protocol.Apply(plan=plan, confirm_within_s=10))
        assert moved.state == "unconfirmed", moved
        assert (site.table() != before, site.banned()) == (True, {})
        site.helper.until_back(lambda: site.table() == before, "nft")
        until(lambda: site.helper.state_of(plan) == "rolled_back", "the record")
        assert 3_500 < site.banned()[f"{STRANGER}/32"] <= 3_600
        assert site.foreign() == foreign


def test_edit_after_the_approval_makes_it_stale_and_nothing_is_touched(site):
    with site.helper.running():
        site.helper.applied(BASE, kind="nft")
        plan = site.helper.approved(WIDE, kind="nft")
        site.net.run("r", "nft", "insert", "rule", *firewalled.TABLE, "input", "tcp", "dport", "23", "accept")
        before = site.table()
        answer = site.helper.ask(protocol.Apply(plan=plan))
        assert (answer.code, site.table() == before) == ("stale", True)


def test_ban_needs_no_approval_and_going_back_neither_but_a_new_port_does(site):
    with site.helper.running():
        site.helper.applied(BASE, kind="nft")
        plan = site.helper.offer({**BASE, "bans": [banned(STRANGER, 3_600)]}, kind="nft")
        moved = site.helper.ask(protocol.Apply(plan=plan), user=apply_helpers.DAEMON)
        assert moved.state == "applied", moved
        assert list(site.banned()) == [f"{STRANGER}/32"]
        back = site.helper.offer(BASE, kind="nft")
        assert site.helper.ask(protocol.Apply(plan=back), user=apply_helpers.DAEMON).state == "applied"
        assert site.banned() == {}
        wide = site.helper.offer(WIDE, kind="nft")
        assert site.helper.ask(protocol.Apply(plan=wide), user=apply_helpers.DAEMON).code == "not_approved"


OPEN = {
    "groups": [SSH, {"name": "web", "rules": [{"proto": "tcp", "ports": ["8000-8010"]}]}],
    "bindings": {"groups": ["ssh", "web"]},
}


def test_way_to_sshd_is_not_taken_away_by_a_process_that_calls_itself_sshd_at_another_port(site):
    with site.helper.running(), ssh_logins.sshd(site.net):
        site.helper.applied(OPEN, kind="nft")
        before = site.table()
        with ssh_logins.named(site.net, "sshd", 8_001, apply_helpers.DAEMON):
            plan = site.helper.offer({**OPEN, "bindings": {"groups": ["web"]}}, kind="nft")
            answer = site.helper.ask(protocol.Apply(plan=plan), user=apply_helpers.DAEMON)
            assert (answer.code, [one.code for one in answer.findings]) == ("intent_refused", ["lockout"])
        assert site.table() == before


def test_approved_ban_may_be_left_out_only_once_it_is_over(site):
    with site.helper.running():
        ban, kept = banned(STRANGER, 6), banned("198.51.100.8", 3_600)
        site.helper.applied({**BASE, "bans": [ban, kept]}, kind="nft")
        plan = site.helper.offer({**BASE, "bans": [ban]}, kind="nft")
        assert site.helper.ask(protocol.Apply(plan=plan), user=apply_helpers.DAEMON).code == "not_approved"
        # The helper goes by the clock in whole seconds, the kernel by the time that it was told remains.
        until(lambda: len(site.banned()) == 1 and time.time() > ban["expires_at"] + 1, "the end of the ban")
        plan = site.helper.offer({**BASE, "bans": [kept]}, kind="nft")
        moved = site.helper.ask(protocol.Apply(plan=plan), user=apply_helpers.DAEMON)
        assert moved.state == "applied", moved


def test_ban_that_came_in_while_the_clock_was_behind_ends_in_time_once_its_plan_is_applied_again(site):
    """As a boot before the clock is set leaves it: years remain to an hour."""
    with site.helper.running():
        ban = banned(STRANGER, 3_600)
        plan = site.helper.applied({**BASE, "bans": [ban]}, kind="nft")
        late = f'{{ {STRANGER} timeout 63075600s comment "until {ban["expires_at"]}" }}'
        for line in (f"delete element {TABLE} bans4 {{ {STRANGER} }}", f"add element {TABLE} bans4 {late}"):
            site.net.run("r", "nft", "-f", "-", stdin=f"{line}\n".encode())
        assert site.banned()[f"{STRANGER}/32"] > 63_000_000
        assert site.helper.ask(protocol.Observe(kind="nft")).live["unfinished"] is True
        assert site.helper.ask(protocol.Apply(plan=plan), user=apply_helpers.DAEMON).state == "applied"
        assert 3_000 < site.banned()[f"{STRANGER}/32"] <= 3_600
        assert site.helper.ask(protocol.Observe(kind="nft")).live["unfinished"] is False
        before = len(site.helper.steps())
        assert site.helper.ask(protocol.Apply(plan=plan), user=apply_helpers.DAEMON).state == "applied"
        assert len(site.helper.steps()) == before


def test_flush_by_another_is_seen_within_a_poll_and_restored_where_root_says_so(site):
    with site.helper.running():
        ban = banned(STRANGER, 3_600)
        site.helper.applied({**BASE, "bans": [ban]}, kind="nft")
        before = site.table()
        site.net.run("r", "nft", "flush", "ruleset")
        until(lambda: site.helper.observed().targets[0].drifted is True, "drift to be seen")
        assert site.table() == b""
    site.helper.settings["restore"] = ["nft"]
    with site.helper.running():
        until(lambda: site.table() == before, "the table")
        assert 3_500 < site.banned()[f"{STRANGER}/32"] <= 3_600
        assert "plan.drift_restored" in apply_helpers.words(site.helper.steps())


def test_boot_loads_the_confirmed_table(site):
    with site.helper.running():
        site.helper.applied(BASE, kind="nft")
        before = site.table()
    site.net.run("r", "nft", "flush", "ruleset")
    with site.helper.running():
        (one,) = [one for one in site.helper.ask(protocol.Boot()).targets if one.kind == "nft"]
        assert (one.outcome, site.table() == before) == ("restored", True)


def test_ban_of_an_established_session_is_refused_when_it_is_offered(site):
    with site.helper.running():
        site.helper.applied(BASE, kind="nft")
        with ssh_logins.session(site.net):
            answer = site.helper.ask(protocol.Offer(kind="nft", intent={**BASE, "bans": [banned("10.9.0.2", 60)]}))
            assert (answer.code, answer.findings[0].code) == ("intent_refused", "ban_hits_session")


def test_whoever_guesses_passwords_is_banned_without_an_approval(site):
    with site.helper.running(), ssh_logins.sshd(site.net) as server:
        site.helper.applied(BASE, kind="nft")
        with server.connected("10.9.0.3"), server.guessing("10.9.0.4", "root"):
            bans = [banned("10.9.0.3", 600), banned("10.9.0.4", 600)]
            plan = site.helper.offer({**BASE, "bans": bans}, kind="nft")
            assert site.helper.ask(protocol.Apply(plan=plan), user=apply_helpers.DAEMON).state == "applied"
        assert sorted(site.banned()) == ["10.9.0.3/32", "10.9.0.4/32"]


ELSEWHERE = {
    "groups": [{"name": "ssh", "rules": [{**SSH["rules"][0], "remote": ["192.0.2.0/24"]}]}],
    "bindings": BASE["bindings"],
}


def test_plan_without_a_way_for_an_established_session_is_applied_only_when_that_is_overridden(site):
    with site.helper.running(), ssh_logins.session(site.net):
        plan = site.helper.offer(ELSEWHERE, kind="nft")
        reviewed = site.helper.review(plan)
        assert [(one.code, "10.9.0.2" in one.expected) for one in reviewed.findings] == [("lockout_source", True)]
        approve = protocol.Approve(plan=plan, review=reviewed.review)
        assert site.helper.ask(approve).code == "intent_refused"
        assert site.helper.ask(protocol.Apply(plan=plan)).code == "not_approved"
        assert site.table() == b""
        approve = protocol.Approve(plan=plan, review=reviewed.review, overrides=("lockout_source",))
        assert site.helper.ask(approve).state == "approved"
        assert site.helper.ask(protocol.Apply(plan=plan)).state == "unconfirmed"
        assert b"192.0.2.0/24" in site.table()
        (step,) = [one for one in site.helper.steps() if one.action == "plan.approve"]
        assert (step.detail["overrides"], "10.9.0.2" in step.reason) == ("lockout_source", True)


def test_operator_who_is_connected_by_a_link_local_address_shows_approves_and_applies(site):
    with site.helper.running(), ssh_logins.sshd(site.net) as server:
        plan = site.helper.offer(BASE, kind="nft")
        ctl = f"{sys.executable} -P -m latticed.ctl.main --config {site.helper.config} plan"
        assert site.helper.review(plan).review.encode() in server.run(f"{ctl} show {plan} 2>&1")
        for words in (f"approve {plan} {site.helper.review(plan).review}", f"apply {plan}", f"confirm {plan}"):
            server.run(f"{ctl} {words}")
        assert site.helper.state_of(plan) == "applied"


def test_approver_is_never_banned_without_an_approval_whatever_source_the_daemon_names(site):
    with site.helper.running():
        plan = site.helper.offer(BASE, kind="nft")
        approve = protocol.Approve(plan=plan, review=site.helper.review(plan).review, source=STRANGER)
        for request in (approve, protocol.Apply(plan=plan), protocol.Confirm(plan=plan)):
            assert isinstance(site.helper.ask(request), protocol.Moved)
        ban = site.helper.offer({**BASE, "bans": [banned(STRANGER, 600)]}, kind="nft")
        for source in ("", "192.0.2.1"):
            answer = site.helper.ask(protocol.Apply(plan=ban, source=source), user=apply_helpers.DAEMON)
            assert (answer.code, answer.findings[0].code) == ("intent_refused", "ban_hits_approver")
        assert site.banned() == {}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_helper_runs_no_program_and_touches_no_file_outside_its_list(site):
    """Watched by strace from its start through hostile offers, apply, undoing and drift, with its dead-men."""
    trace = site.helper.home / "trace"
    site.helper.before = (*site.helper.before, *traces.watching(trace))
    # strace makes each of the programs that a look takes some ten times as slow.
    site.helper.settings["poll_s"] = 3.0
    with site.helper.running() as helper:
        for hostile in ('"; flush ruleset; #', "a\nb", "$(reboot)", "x" * 129, "\x00", "é"):
            rules = [{"comment": hostile}, {"remote": [hostile]}, {"proto": "tcp", "ports": [hostile]}]
            intent = {**BASE, "groups": [SSH, {"name": "web", "rules": rules}]}
            answer = site.helper.ask(protocol.Offer(kind="nft", intent=intent), user=apply_helpers.DAEMON)
            assert (answer.code, len(answer.findings)) == ("intent_refused", 3), answer
        # strace slows the dead-man's start down.
        plan = site.helper.approved(BASE, kind="nft")
        site.helper.ask(protocol.Apply(plan=plan, confirm_within_s=15))
        assert site.helper.ask(protocol.Rollback(plan=plan)).state == "rolled_back"
        site.helper.applied({**WIDE, "bans": [banned(STRANGER, 600)]}, kind="nft")
        site.net.run("r", "nft", "flush", "ruleset")
        until(lambda: site.helper.observed().targets[0].drifted is True, "drift to be seen")
        until(lambda: not site.helper.dead_men(), "the dead-men to end")
        helper.send_signal(signal.SIGTERM)
        helper.wait(20)
    found, programs = traces.touched(trace), NftKind().programs
    assert {sys.executable, programs["nft"], programs["ss"], programs["ip"]} <= found.keys()
    assert found.keys() <= {sys.executable, *programs.values()}
    assert traces.strays(site.helper, found[sys.executable], found) == set()
    # Of the programs none but sshd reads a file that any user wrote, and none writes one.
    for program, files in traces.of_others(found).items():
        strays = {one for one in files if not one.startswith(OF_PROGRAMS)}
        assert strays == set(), program
    # No text of an intent is in an argument.
    arguments = {line.split("[", 1)[1] for line in trace.read_text().splitlines() if 'nft"' in line and "[" in line}
    assert arguments
    assert not any("flush" in one or "reboot" in one or STRANGER in one for one in arguments)


SYNTAX = [
    *(
        '"',
        "'",
        "`",
        "\\\\",
        ";",
        "#",
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        "<",
        ">",
        "|",
        "&",
        "$",
        "!",
        "?",
        "*",
        "%",
        "^",
        "~",
    ),
    *(
        "+",
        "=",
        ",",
        *map(chr, range(32)),
        "\x7f",
        "\x85",
        "\xa0",
        "\u2028",
        "\u202e",
        "\ufeff",
        "é",
        "ä",
        "\u0131",
        "\uff41",
    ),
    *(
        '"; flush ruleset; #',
        "} }; flush ruleset",
        "$(reboot)",
        "`reboot`",
        "\nflush ruleset\n",
        "%s",
    ),
]
"""Characters that nft, a shell, a terminal or a reader takes for something, and words made of them."""
HOSTILE = {
    "bad_name": [f"a{one}b" for one in SYNTAX]
    + ["", "@banned4", "../..", "A", "0a", "-a", "a b", "a/b", "a.b", "a:b", "a" * 33],
    "bad_interface": [f"e{one}0" for one in SYNTAX]
    + ["", "@e0", "../..", "-e0", ".", "..", "e 0", "e/0", "e:0", "e" * 16],
    "bad_comment": [f"x{one}y" for one in SYNTAX] + ["x" * 129],
}
"""By the code of the finding: names of zones and groups, interfaces, comments."""


def of_hostile(code, value):
    """An intent in which that one value is wrong."""
    zone = {"name": "lan", "interfaces": ["r0"]}
    group = {"name": "web", "rules": [{"proto": "tcp", "ports": [80]}]}
    if code == "bad_name":
        return {**BASE, "groups": [SSH, {**group, "name": value}]}
    if code == "bad_interface":
        return {**BASE, "zones": [{**zone, "interfaces": [value]}]}
    return {**BASE, "groups": [SSH, {**group, "rules": [{**group["rules"][0], "comment": value}]}]}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_hundred_hostile_names_comments_and_interfaces_are_refused_before_any_program_runs(site):
    """The helper runs nothing but itself for them, which strace saw; then nft runs for an intent that is sound."""
    trace = site.helper.home / "trace"
    site.helper.before = (*site.helper.before, *traces.watching(trace))
    ran = lambda: {line.split('"')[1] for line in trace.read_text().splitlines() if " execve(" in line}  # noqa: E731
    values = {(code, value) for code, found in HOSTILE.items() for value in found}
    assert len({value for _, value in values}) >= 200
    with site.helper.running():
        for code, value in sorted(values):
            answer = site.helper.ask(protocol.Offer(kind="nft", intent=of_hostile(code, value)))
            assert isinstance(answer, protocol.ErrorAnswer), value
            assert (answer.code, [one.code for one in answer.findings]) == ("intent_refused", [code]), value
        assert ran() == {sys.executable}
        assert site.helper.observed().plans == ()
        site.helper.offer(BASE, kind="nft")
        assert NftKind().programs["nft"] in ran()


@pytest.mark.parametrize("verb", ["approve", "confirm", "rollback", "refuse", "review"])
def test_user_of_the_daemon_can_neither_approve_nor_confirm_nor_undo(site, verb):
    with site.helper.running():
        plan = site.helper.offer(BASE, kind="nft")
        review = site.helper.review(plan).review
        forged = {
            "approve": protocol.Approve(plan=plan, review=review),
            "confirm": protocol.Confirm(plan=plan),
            "rollback": protocol.Rollback(plan=plan),
            "refuse": protocol.Refuse(plan=plan),
            "review": protocol.Review(plan=plan),
        }
        assert site.helper.ask(forged[verb], user=apply_helpers.DAEMON).code == "denied"
        assert site.helper.ask(protocol.Apply(plan=plan), user=apply_helpers.DAEMON).code == "not_approved"
        assert site.table() == b""


def test_real_traffic_finds_ssh_open_and_telnet_dropped_and_an_open_stream_goes_on(site):
    with site.helper.running():
        site.helper.applied(WIDE, kind="nft")
        with site.net.inside("r"):
            listener = firewalled.listening("10.9.0.1", 80)
        with site.net.inside("a"):
            client = socket.create_connection(("10.9.0.1", 80), timeout=10)
        listener.setblocking(True)
        stream, _ = listener.accept()
        with client, stream:
            listener.close()
            # The port is closed for what is new.
            site.helper.applied(BASE, kind="nft")
            client.sendall(b"still here")
            assert stream.recv(10) == b"still here"
            with firewalled.servers(site.net, "r"):
                for own in ("10.9.0.1", "fd09:0:0:a::1"):
                    assert firewalled.reaches(site.net, "a", own, 22, expected=True)
                    assert not firewalled.reaches(site.net, "a", own, 23, expected=False)
                    assert not firewalled.reaches(site.net, "a", own, 80, expected=False)
