"""What a node tells of its daemon's decisions: all that matters, each once, and of a flood its sum."""

from __future__ import annotations

import errno
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.fleet import decision_tail, decisions, documents, judging, kept_state, node_daemon, node_record
from latticed.fleet.decisions import Decision, Followed, Passed, Tell, Wait
from latticed.model.errors import Problem
from tests.house import fleets

NOW = fleets.NOW


def decided(seq, action="plugin.status", decision="allow", *, code="", chain="a", ts=None):
    return Decision(
        seq=seq,
        ts=ts or f"2026-11-30T00:{seq // 60 % 60:02}:{seq % 60:02}.000000Z",
        actor="uid:1000 user:ada pid:7",
        action=action,
        target="acme.demo",
        decision=decision,
        code=code,
        reason="expected this, found that" if code else "",
        hash=f"{chain}{seq:063}",
    )


def taken(found, *, waiting=0, followed=None, paces=None, now_s=1_000.0):
    followed, paces, told = followed or Followed(), {} if paces is None else paces, []
    for one in found:
        followed, verdict = decisions.take(followed, one, paces, waiting=waiting, now_s=now_s, at_s=NOW)
        if isinstance(verdict, Tell):
            told.append(verdict.decision.seq)
    return followed, told


@pytest.mark.parametrize(
    ("action", "decision", "is_told"),
    [
        ("plugin.status", "allow", True),
        ("plugin.grants", "allow", True),
        ("plugin.verdict", "deny", True),
        ("bundle.verdict", "-", True),
        ("trust.revoked", "-", True),
        ("secret.bind", "allow", True),
        ("plan.apply", "allow", True),
        ("api.refused", "deny", True),
        ("audit.lost", "-", True),
        ("plugin.runtime", "-", True),
        ("kv.put", "allow", False),
        ("ddns.update", "-", False),
        ("market.refreshed", "allow", False),
        ("monitor.alert", "-", False),
        ("host.call", "allow", False),
        ("host.call", "deny", False),
    ],
)
def test_what_is_told(action, decision, is_told):
    followed, told = taken([decided(7, action, decision)])
    assert (followed.seq, bool(told)) == (7, is_told)


def test_flood_of_denials_is_summed_and_pushes_out_no_decision():
    flood = [decided(n, "api.refused", "deny", code="access_denied") for n in range(1, 2_001)]
    flood += [decided(2_001, "plugin.verdict", "deny", code="digest_mismatch"), decided(2_002)]
    followed, told = taken(flood)
    assert told == [*range(1, 9), 2_001, 2_002]
    assert followed.counted == {"api.refused access_denied": 1_992}
    assert not decisions.sum_is_due(followed, waiting=0, at_s=NOW + 1)
    assert decisions.sum_is_due(followed, waiting=0, at_s=NOW + decisions.SUM_S)
    said, after = decisions.sum_of(followed)
    assert said == "1992 more, up to event 2002: api.refused access_denied 1992"
    assert (after.seq, after.hash, after.counted) == (2_002, followed.hash, {})


def test_pace_of_denials_comes_back():
    paces, flood = {}, [decided(n, "route.login", "deny", code="bad_password") for n in range(1, 30)]
    followed, told = taken(flood, paces=paces)
    assert len(told) == 8
    followed, told = taken([decided(30, "route.login", "deny")], followed=followed, paces=paces, now_s=1_400.0)
    assert told == [30]


def test_decisions_wait_for_room_and_denials_do_not():
    full = decisions.MOST_WAITING
    before = Followed(seq=3, hash="x")
    assert decisions.take(before, decided(4), {}, waiting=full, now_s=0, at_s=NOW) == (before, Wait())
    after, verdict = decisions.take(before, decided(4, decision="deny"), {}, waiting=full, now_s=0, at_s=NOW)
    assert (after.seq, verdict, sum(after.counted.values())) == (4, Passed(), 1)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["plugin.status", "api.refused", "plugin.runtime", "kv.put", "task.end"]),
            st.sampled_from(["allow", "deny", "-"]),
            st.text("abc", max_size=3),
        ),
        max_size=300,
    )
)
def test_every_event_is_told_or_counted_or_none_of_the_fleets(rows):
    found = [decided(n, action, decision, code=code) for n, (action, decision, code) in enumerate(rows, 1)]
    followed, told = taken(found)
    left_out = sum(one.action == "kv.put" for one in found)
    assert len(told) + sum(followed.counted.values()) + left_out == len(found)
    assert len(followed.counted) <= 25
    assert followed.seq == len(found)
    said, _ = decisions.sum_of(followed)
    assert len(said) < 8_000


class RecordedDaemon(node_daemon.Daemon):
    """A record that grows, and can be replaced; `follow` ends where it ends."""

    def __init__(self):
        super().__init__("/nowhere")
        self.events, self.away = [], False

    def ask(self, method, *parts, body=None, query=None):
        assert (method, parts) == ("GET", ("audit",))
        if self.away:
            raise Problem("unreachable", "there is no daemon")
        found = self.events
        if "newest" in query:
            found = found[::-1]
        if "after" in query:
            found = [one for one in found if one.seq > int(query["after"])]
        if "since" in query:
            found = [one for one in found if one.ts >= query["since"]]
        return {"events": [{**as_row(one), "detail": {}} for one in found[:1]]}

    def follow(self, after):
        yield None
        yield from [one for one in self.events if one.seq > after]


def as_row(one):
    return {name: getattr(one, name) for name in Decision.__struct_fields__}


class Tailed:
    """A node beside such a daemon. `run`: follow what is there, and end."""

    def __init__(self, directory):
        self.directory, self.daemon, self.sent, self.now = directory, RecordedDaemon(), [], NOW
        token = documents.sign(fleets.Fleet().token(operators=(fleets.public(fleets.OPERATOR),)), fleets.OPERATOR)
        kept_state.enrol(directory, token, now_s=NOW)

    def run(self):
        kept = kept_state.opened(self.directory)
        self.sent = []
        stopped = threading.Event()

        def end(after, follow=self.daemon.follow):
            yield from follow(after)
            stopped.set()

        tail = decision_tail.DecisionTail(
            kept,
            self.daemon,
            node_record.NodeRecord(kept, self.sent.append, lambda: self.now),
            stopped,
            lambda: self.now,
        )
        original, self.daemon.follow = self.daemon.follow, end
        try:
            tail.work()
        finally:
            self.daemon.follow = original
        self.kept = kept
        return [documents.read(one.document, documents.NodeEvent).document for one in self.sent]

    def told(self):
        return [one.seq for one in self.run()]


@pytest.fixture
def tailed(tmp_path):
    return Tailed(tmp_path / "node")


def test_host_that_joins_tells_what_is_new_and_each_once(tailed):
    tailed.daemon.events = [decided(n) for n in range(1, 6)]
    assert tailed.told() == []
    tailed.daemon.events += [decided(n) for n in range(6, 9)]
    (first, *_) = found = tailed.run()
    assert [one.seq for one in found] == [6, 7, 8]
    assert (first.action, first.actor, first.decision) == ("plugin.status", "uid:1000 user:ada pid:7", "allow")
    assert first.at == 1_795_996_806  # when it was decided
    # Also after a restart of the agent, each from what is on disk.
    assert tailed.told() == []
    tailed.daemon.events.append(decided(9))
    assert tailed.told() == [9]


def test_chain_of_events_holds_whatever_they_tell(tailed):
    tailed.told()
    tailed.daemon.events = [decided(n, decision=("allow", "deny")[n % 2], code="x" * (n % 2)) for n in range(1, 20)]
    found = tailed.run()
    assert [one.number for one in found] == list(range(1, len(found) + 1))
    heads = [documents.GENESIS, *(documents.name_of(one) for one in found)]
    assert [one.prev for one in found] == heads[:-1]
    assert tailed.kept.state.head == heads[-1]


def test_record_that_was_replaced_is_said_and_followed_from_then_on(tailed):
    """Rebuilt from nothing, or restored from an older backup: other events have the numbers of before."""
    tailed.daemon.events = [decided(n) for n in range(1, 9)]
    tailed.told()
    later = "2026-12-01T00:00:0{}.000000Z"
    tailed.daemon.events = [decided(n, chain="b", ts=later.format(n)) for n in range(1, 4)]
    gap, *found = tailed.run()
    assert (gap.action, gap.seq) == ("fleet.decisions_missing", 0)
    assert "expected event 8" in gap.reason
    assert [one.seq for one in found] == [1, 2, 3]
    # A backup of event 2: that was told, what was decided since then was not.
    tailed.daemon.events = [
        *tailed.daemon.events[:2],
        decided(3, chain="c", ts="2026-12-02T00:00:00.000000Z"),
        decided(4, chain="c", ts="2026-12-02T00:00:01.000000Z"),
    ]
    gap, *found = tailed.run()
    assert gap.action == "fleet.decisions_missing"
    assert [one.seq for one in found] == [3, 4]
    assert tailed.run() == []


def test_events_that_retention_removed_are_said_to_be_missing(tailed):
    tailed.daemon.events = [decided(n) for n in range(1, 4)]
    tailed.told()
    tailed.daemon.events = [decided(n) for n in range(40, 43)]
    gap, *found = tailed.run()
    assert "some may be missing before event 40" in gap.reason
    assert [one.seq for one in found] == [40, 41, 42]


def test_what_the_disk_does_not_take_is_told_later(tailed, monkeypatch):
    tailed.told()
    tailed.daemon.events = [decided(n) for n in range(1, 4)]
    writes = iter(range(100))

    def full(*arguments, replace=kept_state.files.replace, **named):
        if next(writes) >= 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(kept_state.files, "replace", full)
        # It stops there rather than going on beyond it.
        patched.setattr(decision_tail, "AGAIN_S", 0)
        patched.setattr(threading.Event, "wait", lambda self, timeout=None: self.set())
        assert tailed.told() == [1]
    assert tailed.told() == [2, 3]


def test_sum_is_told_once_with_the_time(tailed):
    tailed.told()
    tailed.daemon.events = [decided(n, "api.refused", "deny", code="access_denied") for n in range(1, 50)]
    assert len(tailed.told()) == 8
    assert sum(tailed.kept.state.followed.counted.values()) == 41
    tailed.now += decisions.SUM_S
    (said,) = tailed.run()
    assert (said.action, said.reason) == (
        "fleet.counted",
        "41 more, up to event 49: api.refused access_denied 41",
    )
    assert tailed.run() == []


def test_state_of_before_has_not_followed_anything():
    state = judging.NodeState(fleet="home", operators=(), node="n1", node_key="", labels={})
    assert state.followed is None
