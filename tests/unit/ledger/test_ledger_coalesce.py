from __future__ import annotations

from collections.abc import Callable

from latticed.ledger.coalesce import MAX_WINDOWS, Denials
from latticed.model.audit import Event

Make = Callable[..., Event]


def test_the_first_twenty_are_written_each(event: Make) -> None:
    """Within the quota nothing is coalesced."""
    denials, denied = Denials(), event(decision="deny")
    assert [denials.take(denied, 0.0) for _ in range(20)] == [denied] * 20
    assert denials.take(denied, 0.0) is None


def test_beyond_the_quota_one_event_a_second_carries_the_count(event: Make) -> None:
    """The count is of all denials since the last event written, the one that carries it included."""
    denials, denied = Denials(quota=1), event(decision="deny", detail={"key": "a"})
    denials.take(denied, 0.0)
    assert [denials.take(denied, 0.1 * tenth) for tenth in range(1, 10)] == [None] * 9
    written = denials.take(denied, 1.0)
    assert written is not None
    assert written.detail == {"count": 10, "key": "a"}
    assert denials.due(1.5) == []


def test_a_count_is_due_when_the_flood_ends(event: Make) -> None:
    """Nobody has to be denied again for the count to be written."""
    denials, denied = Denials(quota=1), event(decision="deny")
    denials.take(denied, 0.0)
    denials.take(denied, 0.5)
    assert denials.due(0.9) == []
    assert [owed.detail["count"] for owed in denials.due(1.0)] == [1]
    assert denials.due(5.0) == []


def test_a_new_window_has_a_new_quota_and_loses_no_count(event: Make) -> None:
    """After ten seconds denials are written one by one again; the old window's count is still owed."""
    denials, denied = Denials(quota=1), event(decision="deny")
    denials.take(denied, 0.0)
    denials.take(denied, 0.5)
    assert denials.take(denied, 10.0) == denied
    assert [owed.detail["count"] for owed in denials.due(10.0)] == [1]


def test_a_window_that_ends_after_a_count_still_reports_it(event: Make) -> None:
    """A window is forgotten only once its count is written, even if its last event is less than a second old."""
    denials, denied = Denials(quota=2), event(decision="deny")
    for now_s in (0.0, 9.5, 9.6):
        denials.take(denied, now_s)
    assert [owed.detail["count"] for owed in denials.due(10.0)] == [1]


def test_actors_actions_and_codes_are_counted_apart(event: Make) -> None:
    """One actor's flood does not hide another's denial."""
    denials = Denials(quota=1)
    for changed in ({}, {"actor": "plugin:b"}, {"action": "plugin.status"}, {"code": "rate_limited"}):
        denied = event(decision="deny", **changed)
        assert denials.take(denied, 0.0) == denied
        assert denials.take(denied, 0.0) is None


def test_a_peer_that_forks_is_still_one_actor(event: Make) -> None:
    """The pid does not make a new actor."""
    denials = Denials(quota=1)
    assert denials.take(event(actor="uid:1000 user:eve pid:1"), 0.0) is not None
    assert denials.take(event(actor="uid:1000 user:eve pid:2"), 0.0) is None
    assert denials.take(event(actor="uid:1001 user:bob pid:2"), 0.0) is not None


def test_memory_is_bounded_and_evicted_counts_are_reported(event: Make) -> None:
    """The oldest window gives way to a new one, but its count is written."""
    denials = Denials(quota=1)
    for _ in range(3):
        denials.take(event(actor="first"), 0.0)
    for number in range(MAX_WINDOWS):
        denials.take(event(actor=f"actor {number}"), 0.0)
    assert [(owed.actor, owed.detail["count"]) for owed in denials.due(0.0)] == [("first", 2)]
    assert len(denials._windows) == MAX_WINDOWS


def test_what_could_not_be_written_is_reported_again(event: Make) -> None:
    """A full disk does not lose the count."""
    denials, denied = Denials(), event(detail={"count": 7})
    denials.put_back(denied)
    assert denials.rest(0.0) == [denied]
    assert denials.rest(0.0) == []
