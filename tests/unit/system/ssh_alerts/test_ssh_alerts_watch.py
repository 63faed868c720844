"""What is told of sshd's entries, and what is remembered: pages, crashes, storms, clocks."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latticed.host.notify.calls import NotifySend, checked
from latticed.system.ssh_alerts import check, render, watch
from latticed.system.ssh_alerts.events import FailuresTold, Gap, LoginTold, MoreLogins
from latticed.system.ssh_alerts.intent import Allow, Entry, Rules, State

RULES = Rules(zone=UTC)
BEGIN = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)  # a Monday
PRINT = "SHA256:J2fJ3nIYpZ0yRbOTnWVc6F4n9N1oVRjVUgQ1Zr3cVxk"
_numbers = itertools.count()


def entry(message: str, after_s: float = 0, **fields) -> Entry:
    at = (BEGIN + timedelta(seconds=after_s)).isoformat()
    given = {"id": f"{next(_numbers):032x}", "at": at, "message": message, "trusted": True, "dropped": 0}
    return Entry(**{**given, **fields})


def login(user="alice", address="203.0.113.7", after_s=0, method="publickey", **fields) -> Entry:
    end = f": ED25519 {PRINT}" if method == "publickey" else ""
    return entry(f"Accepted {method} for {user} from {address} port 4242 ssh2{end}", after_s, **fields)


def failed(user="root", address="198.51.100.1", after_s=0, port=None, **fields) -> Entry:
    number = next(_numbers) % 60_000 + 1 if port is None else port
    return entry(f"Failed password for {user} from {address} port {number} ssh2", after_s, **fields)


def told(*entries: Entry, rules: Rules = RULES, state: State | None = None):
    return watch.advance(state or State(), rules, entries)[1]


def test_login_is_told_with_all_that_sshd_says():
    (event,) = told(login())
    assert isinstance(event, LoginTold)
    assert (event.login.user, event.login.address, event.login.fingerprint) == ("alice", "203.0.113.7", PRINT)
    assert (event.flags, event.network, event.since_s) == (("new",), "203.0.113.0/24", 0)
    message = render.render(event, UTC)
    assert (message.title, message.severity, message.event) == (
        "SSH login from a new network: alice from 203.0.113.7",
        "warning",
        "ssh.login.new",
    )
    assert message.body.splitlines() == [
        "user: alice",
        "address: 203.0.113.7",
        "method: publickey",
        f"key: ED25519 {PRINT}",
        "time: 2026-03-02 09:00:00 UTC",
        "network: 203.0.113.0/24, new",
        "note: the first login of this user from this network",
    ]


def test_network_is_new_once_for_each_user():
    events = told(
        login(),
        login(address="203.0.113.99", after_s=1),
        login(user="bob", after_s=2),
        login(address="2001:db8::1", after_s=3),
        login(address="2001:db8::ffff", after_s=4),
        login(address="2001:db8:0:1::1", after_s=5),
    )
    assert [event.flags for event in events] == [("new",), (), ("new",), ("new",), (), ("new",)]
    assert render.render(events[1], UTC).event == "ssh.login"
    assert "known since 2026-03-02 09:00:00 UTC" in render.render(events[1], UTC).body


def test_root_is_named():
    first, second = told(login(user="root"), login(user="root", after_s=9))
    assert (first.flags, second.flags) == (("root", "new"), ("root",))
    assert render.render(second, UTC).event == "ssh.login.root"


def test_login_of_unclear_address_is_told_each_time():
    events = told(login(address="UNKNOWN"), login(address="UNKNOWN", after_s=1))
    assert [event.flags for event in events] == [("new", "unclear")] * 2
    assert render.render(events[0], UTC).title == "SSH login from an unclear address: alice from an unclear address"


def allowing(*rules: Allow, zone=UTC, **more) -> Rules:
    return Rules(allow=rules, zone=zone, **more)


def allow(users=(), networks=(), hours=(), days=()) -> Allow:
    return Allow(users=users, networks=tuple(map(ip_network, networks)), hours=hours, days=days)


@pytest.mark.parametrize(
    ("rule", "inside"),
    [
        (allow(), True),
        (allow(users=("alice",)), True),
        (allow(users=("bob", "Alice")), False),
        (allow(networks=("203.0.113.0/24",)), True),
        (allow(networks=("203.0.114.0/24", "2001:db8::/32")), False),
        (allow(hours=((9 * 60, 17 * 60),)), True),
        (allow(hours=((8 * 60, 9 * 60),)), False),
        (allow(hours=((22 * 60, 9 * 60 + 1),)), True),
        (allow(hours=((22 * 60, 6 * 60),)), False),
        (allow(days=(0,)), True),
        (allow(days=(5, 6)), False),
        (allow(users=("alice",), networks=("203.0.113.7/32",), hours=((0, 1_440),), days=(0,)), True),
        (allow(users=("alice",), networks=("203.0.113.8/32",)), False),
    ],
)
def test_login_that_no_rule_allows_is_critical(rule, inside):
    (event,) = told(login(), rules=allowing(rule))
    assert ("outside" in event.flags) is not inside
    assert (render.render(event, UTC).severity == "critical") is not inside


def test_any_rule_suffices_and_hours_are_those_of_the_time_zone():
    tokyo = ZoneInfo("Asia/Tokyo")  # 18:00 there
    rules = allowing(allow(users=("bob",)), allow(hours=((18 * 60, 19 * 60),)), zone=tokyo)
    assert told(login(), rules=rules)[0].flags == ("new",)
    assert "outside" in told(login(after_s=3_600), rules=rules)[0].flags
    assert "outside" in told(login(address="UNKNOWN"), rules=allowing(allow(networks=("0.0.0.0/0",))))[0].flags


def test_login_after_failures_from_its_network_is_an_error():
    tries = [failed(address="203.0.113.200", after_s=number) for number in range(5)]
    before = [failed(address="203.0.113.200", after_s=number) for number in range(3)]
    *_, event = told(*tries, login(after_s=9))
    assert (event.flags, event.failures) == (("guessed", "new"), 5)
    assert render.render(event, UTC).severity == "error"
    (event,) = told(*before, login(after_s=9))
    assert (event.flags, event.failures) == (("new",), 3)
    assert "failed before: at least 3" in render.render(event, UTC).body
    *_, event = told(*tries, login(after_s=9_000))
    assert event.failures == 0


def test_equal_logins_are_told_five_times_and_then_counted():
    events = told(*(login(after_s=number) for number in range(100)), login(user="bob", after_s=700))
    assert [type(event) for event in events] == [LoginTold] * 5 + [MoreLogins, LoginTold]
    assert events[5].more == 95
    message = render.render(events[5], UTC)
    assert message.title == "SSH: 95 more logins of alice from 203.0.113.0/24"


def test_login_after_failures_is_told_also_where_equal_ones_without_were_told_five_times():
    usual = [login(after_s=number) for number in range(8)]
    guesses = [failed(user="alice", address="203.0.113.200", after_s=60 + number) for number in range(5)]
    events = told(*usual, *guesses, login(address="203.0.113.200", after_s=120), login(user="bob", after_s=900))
    last = [event for event in events if isinstance(event, LoginTold)][5]
    assert (last.flags, last.at_s) == (("guessed",), int(BEGIN.timestamp()) + 120)
    assert render.render(last, UTC).event == "ssh.login.guessed"
    assert [event.more for event in events if isinstance(event, MoreLogins)] == [3]


def test_logins_of_many_users_are_bounded_and_those_against_the_rules_are_not():
    many = [login(user=f"user{number}", after_s=number / 10) for number in range(500)]
    state, events = watch.advance(State(), RULES, many)
    assert len([event for event in events if isinstance(event, LoginTold)]) == watch.TOLD_ALL
    _, late = watch.tick(state, RULES, int(BEGIN.timestamp()) + 700)
    assert sum(event.more for event in late) == 500 - watch.TOLD_ALL
    events = told(*many, rules=allowing(allow(users=("nobody",))))
    assert len([event for event in events if isinstance(event, LoginTold)]) == 500


def test_only_unusual_logins_are_told_when_asked_for():
    rules = Rules(zone=UTC, tell="unusual")
    assert [event.flags for event in told(login(), login(after_s=1), login(user="root", after_s=2), rules=rules)] == [
        ("new",),
        ("root", "new"),
    ]


# Failures


def test_failures_are_told_from_the_fifth_in_ten_minutes_on():
    few = [failed(after_s=number * 151) for number in range(40)]
    assert told(*few) == []
    (event,) = told(*(failed(after_s=number * 149) for number in range(5)))
    assert (event.phase, event.more, event.attack.total) == ("begun", 5, 5)
    assert render.render(event, UTC).title == "5 failed SSH logins"


def test_ten_thousand_failures_in_a_minute_are_two_messages_and_the_login_among_them_is_told():
    storm = [failed(user=f"u{n}", address=f"198.51.{n % 250}.{n // 250}", after_s=n / 170) for n in range(10_000)]
    storm.insert(6_000, login(after_s=35))
    state, events = watch.advance(State(), RULES, storm)
    _, late = watch.tick(state, RULES, int(BEGIN.timestamp()) + 700)
    assert [type(event) for event in (*events, *late)] == [FailuresTold, LoginTold, FailuresTold]
    assert (late[0].phase, late[0].more, late[0].attack.total) == ("over", 9_995, 10_000)
    assert len(check.encoded(state)) < 20_000


def test_failures_that_go_on_for_days_are_told_at_growing_intervals():
    week = [failed(after_s=number * 60) for number in range(7 * 1_440)]
    events = told(*week)
    hours = [round((event.at_s - BEGIN.timestamp()) / 3_600) for event in events]
    assert hours == [0, 1, 3, 7, 15, 31, 55, 79, 103, 127, 151]
    assert sum(event.more for event in events) > 6.2 * 1_440
    assert len({event.word for event in events}) == len(events)


def test_most_frequent_sources_are_named():
    storm = [failed(address="198.51.100.9", user="root", after_s=n / 10) for n in range(100)]
    storm += [failed(address=f"192.0.{n}.1", user=f"u{n}", after_s=20 + n / 10) for n in range(50)]
    state, _ = watch.advance(State(), RULES, storm)
    (event,) = watch.tick(state, RULES, int(BEGIN.timestamp()) + 900)[1]
    body = render.render(event, UTC).body
    assert "from: 198.51.100.0/24 (at least " in body
    assert 80 <= event.attack.networks["198.51.100.0/24"] <= 100


def test_messages_of_one_connection_count_once_where_sshd_writes_two():
    one = [
        entry("Invalid user admin from 198.51.100.1 port 7"),
        entry("Failed none for invalid user admin from 198.51.100.1 port 7 ssh2"),
        failed(user="invalid user admin", port=7),
        failed(user="invalid user admin", port=7),
        entry("Connection closed by invalid user admin 198.51.100.1 port 7 [preauth]"),
    ]
    state, _ = watch.advance(State(), RULES, one)
    assert state.counts.failures == 2
    key_only = [
        entry(f"Connection closed by authenticating user root 198.51.100.1 port {n} [preauth]") for n in range(5)
    ]
    assert [event.phase for event in told(*key_only)] == ["begun"]


def test_keys_that_are_tried_before_the_right_one_are_no_failures():
    """With LogLevel VERBOSE each is a message, and a client tries all that it has."""
    tries = []
    for port in range(20):
        wrong = f"Failed publickey for alice from 203.0.113.7 port {port} ssh2: RSA {PRINT}"
        right = f"Accepted publickey for alice from 203.0.113.7 port {port} ssh2: ED25519 {PRINT}"
        tries += [entry(wrong, port), entry(wrong, port), entry(right, port)]
    state, events = watch.advance(State(), RULES, tries)
    assert [event.flags for event in events] == [("new",), (), (), (), ()]
    assert (state.counts.failures, state.few) == (0, ())
    attacked, _ = watch.advance(State(), RULES, [failed(after_s=n) for n in range(9)])
    state, (event,) = watch.advance(attacked, RULES, tries[:3])
    assert state.attack.networks == attacked.attack.networks
    assert (state.counts.failures, event.failures) == (9, 0)
    guesses = [failed(user="alice", address="203.0.113.7", after_s=n, port=7) for n in range(5)]
    assert told(*guesses, login(after_s=9))[-1].failures == 5


def test_line_that_stands_for_equal_failures_counts_as_often():
    (event,) = told(
        failed(port=7),
        entry("message repeated 4 times: [ Failed password for root from 198.51.100.1 port 7 ssh2]", 1),
    )
    assert (event.phase, event.more) == ("begun", 5)


# Gaps


def test_what_journald_dropped_is_told_once_an_hour():
    drops = [entry("Suppressed 7 messages from ssh.service", n * 30, dropped=7) for n in range(100)]
    state, events = watch.advance(State(), RULES, [*drops, login(after_s=3_601)])
    assert [(event.kind, event.count) for event in events if isinstance(event, Gap)] == [
        ("dropped", 7),
        ("dropped", 693),
    ]
    assert state.counts.dropped == 700
    assert "RateLimitBurst" in render.render(events[0], UTC).body


def test_login_that_cannot_be_read_is_a_gap_and_other_messages_are_counted():
    strange = entry("Accepted telepathy for root through 203.0.113.7")
    state, events = watch.advance(State(), RULES, [entry("what is this"), strange, entry("and this")])
    assert [(event.kind, event.text) for event in events] == [("unread", strange.message)]
    assert (state.counts.unread, state.counts.logins, state.sample) == (3, 0, "and this")


def test_gap_at_a_cursor_is_told_once():
    state, events = watch.gone(State(cursor="j:1"), "gone", 5)
    assert [event.kind for event in events] == ["gone"]
    assert watch.gone(state, "gone", 6) == (state, [])
    again = msgspec.structs.replace(state, cursor="j:2")
    (other,) = watch.gone(again, "gone", 6)[1]
    assert other.word != events[0].word


def test_missing_reader_is_told_after_a_minute_and_its_return_once():
    state, events = watch.down(State(cursor="j:1"), "not running", 1_000)
    assert events == []
    state, events = watch.down(state, "not running", 1_059)
    assert events == []
    state, (first,) = watch.down(state, "not running", 1_060)
    assert (first.kind, first.since_s, first.text) == ("down", 1_000, "not running")
    state, events = watch.down(state, "not running", 2_000)
    assert events == []
    state, (back,) = watch.up(state, 2_010)
    assert (back.kind, state.down_s) == ("up", 0)
    assert watch.up(state, 2_020) == (state, [])
    state, _ = watch.down(state, "not running", 3_000)
    _, (second,) = watch.down(state, "not running", 3_100)
    assert second.word != first.word
    brief, _ = watch.down(State(), "", 1)
    assert watch.up(brief, 30)[1] == []


# Any sequence

USERS = st.sampled_from(["alice", "root", "bob", "x" * 100, "é" * 90, "a b from c", ""])
PLACES = st.sampled_from([*(f"203.0.{n}.7" for n in range(6)), "2001:db8::1", "UNKNOWN", "fe80::1%eth0"])
TIMES = st.one_of(st.integers(0, 5_000), st.integers(-400_000, 4_000_000))
ENTRIES = st.one_of(
    st.builds(login, USERS, PLACES, TIMES, st.sampled_from(["publickey", "password"])),
    st.builds(failed, USERS, PLACES, TIMES, st.integers(1, 9)),
    st.builds(entry, st.sampled_from(["Accepted what", "strange", "Invalid user a from 1.2.3.4 port 5"]), TIMES),
    st.builds(lambda after: entry("Suppressed", after, dropped=3), TIMES),
    st.builds(lambda text: entry(text, at=None), st.text(max_size=30)),
)
SEQUENCES = st.lists(ENTRIES, max_size=60)
ANY_RULES = st.builds(
    Rules,
    zone=st.sampled_from([UTC, ZoneInfo("Asia/Tokyo")]),
    failures=st.integers(2, 6),
    window_s=st.integers(10, 2_000),
    tell=st.sampled_from(["every", "unusual"]),
    allow=st.sampled_from([(), (allow(users=("alice",), hours=((0, 700),)),)]),
)


@settings(max_examples=150, deadline=None)
@given(entries=SEQUENCES, rules=ANY_RULES, cuts=st.lists(st.integers(0, 60), max_size=4))
def test_pages_make_no_difference(entries, rules, cuts):
    """Nor does writing the state down in between."""
    whole, events = watch.advance(State(), rules, entries)
    state, found = State(), []
    places = sorted({0, len(entries), *(cut for cut in cuts if cut < len(entries))})
    for begin, end in itertools.pairwise(places):
        state, more = watch.advance(check.state(check.encoded(state)), rules, entries[begin:end])
        found += more
    assert state == whole
    assert found == events


@settings(max_examples=150, deadline=None)
@given(entries=SEQUENCES, rules=ANY_RULES, cut=st.integers(0, 60), later_s=st.integers(0, 10_000))
def test_what_is_told_before_a_crash_is_told_again_under_the_same_words(entries, rules, cut, later_s):
    """The state was not written: the entries come again, with others behind them, and nothing of them is missing."""
    before, _ = watch.advance(State(), rules, entries[:10])
    lost, first = watch.advance(before, rules, entries[10 : 10 + cut])
    _, ended = watch.tick(lost, rules, lost.at_s + later_s)
    after, again = watch.advance(before, rules, entries[10:])
    _, late = watch.tick(after, rules, int(BEGIN.timestamp()) + 10_000_000)
    assert again[: len(first)] == first
    assert {event.word for event in ended} <= {event.word for event in (*again, *late)}


@settings(max_examples=150, deadline=None)
@given(entries=SEQUENCES, rules=ANY_RULES)
def test_words_are_unique_and_every_message_is_one_that_the_queue_takes(entries, rules):
    state, events = watch.advance(State(), rules, entries)
    _, late = watch.tick(state, rules, int(BEGIN.timestamp()) + 10_000_000)
    messages = [render.render(event, rules.zone) for event in (*events, *late)]
    assert len({message.dedupe for message in messages}) == len(messages)
    for message in messages:
        checked(NotifySend(**{name: getattr(message, name) for name in NotifySend.__struct_fields__}))


@settings(max_examples=100, deadline=None)
@given(entries=SEQUENCES)
def test_each_login_is_told_or_counted(entries):
    """So is each failure, once they are many."""
    state, events = watch.advance(State(), RULES, entries)
    _, late = watch.tick(state, RULES, int(BEGIN.timestamp()) + 10_000_000)
    every = [*events, *late]
    logins = sum(isinstance(event, LoginTold) for event in every)
    more = sum(event.more for event in every if isinstance(event, MoreLogins))
    assert logins + more == state.counts.logins


def test_state_stays_small_whatever_is_logged():
    """It is one value of kv, of 64 KiB by default."""
    state = State(cursor="j:" + "x" * 1_000)
    rules = Rules(zone=UTC, failures=50, window_s=86_400)
    size = 0
    for turn in range(60):
        entries = [
            *(
                login(user=f"{'é' * 80}{turn}-{n}", address=f"2001:db8:{turn:x}:{n:x}::1", after_s=turn)
                for n in range(20)
            ),
            *(
                failed(user=f"{'é' * 80}{turn}-{n}", address=f"2001:db8:{turn:x}:{n:x}::1", after_s=turn)
                for n in range(20)
            ),
            entry("Accepted " + "é" * 15_000, turn),
        ]
        state, _ = watch.advance(state, rules, entries)
        size = max(size, len(check.encoded(state)))
    assert size < 56_000
