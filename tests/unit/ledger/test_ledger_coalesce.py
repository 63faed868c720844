from __future__ import annotations

from collections.abc import Callable

from latticed.ledger.coalesce import MAX_WINDOWS, Denials
from latticed.model.audit import Event

Make = Callable[..., Event]


def test_denials_within_quota_are_written_one_by_one(event: Make) -> None:
    """The quota is 20 in a window."""
    denials, denied = Denials(), event(decision="deny")
    assert [denials.take(denied, 0.0) for _ in range(20)] == [denied] * 20
    assert denials.take(denied, 0.0) is None


def test_denials_beyond_quota_become_one_counted_event_per_second(event: Make) -> None:
    """The count covers the denials since the last event, including the one whose fields it carries."""
    denials, denied = Denials(quota=1), event(decision="deny", detail={"key": "a"})
    denials.take(denied, 0.0)
    assert [denials.take(denied, 0.1 * tenth) for tenth in range(1, 10)] == [None] * 9
    written = denials.take(denied, 1.0)
    assert written is not None
    assert written.detail == {"count": 10, "key": "a"}
    assert denials.due(1.5) == []


def test_count_of_denials_is_written_without_a_further_denial(event: Make) -> None:
    denials, denied = Denials(quota=1), event(decision="deny")
    denials.take(denied, 0.0)
    denials.take(denied, 0.5)
    assert denials.due(0.9) == []
    assert [owed.detail["count"] for owed in denials.due(1.0)] == [1]
    assert denials.due(5.0) == []


def test_new_window_of_denials_has_a_new_quota_and_loses_no_count(event: Make) -> None:
    """After ten seconds denials are written one by one again; the count of the old window is still written."""
    denials, denied = Denials(quota=1), event(decision="deny")
    denials.take(denied, 0.0)
    denials.take(denied, 0.5)
    assert denials.take(denied, 10.0) == denied
    assert [owed.detail["count"] for owed in denials.due(10.0)] == [1]


def test_ended_window_of_denials_still_reports_its_count(event: Make) -> None:
    """A window is dropped only once its count is written, even if its last event is under a second old."""
    denials, denied = Denials(quota=2), event(decision="deny")
    for now_s in (0.0, 9.5, 9.6):
        denials.take(denied, now_s)
    assert [owed.detail["count"] for owed in denials.due(10.0)] == [1]


def test_actors_actions_and_codes_are_counted_separately(event: Make) -> None:
    """A flood by one actor does not hide another's denial."""
    denials = Denials(quota=1)
    for changed in ({}, {"actor": "plugin:b"}, {"action": "plugin.status"}, {"code": "rate_limited"}):
        denied = event(decision="deny", **changed)
        assert denials.take(denied, 0.0) == denied
        assert denials.take(denied, 0.0) is None


def test_denials_of_one_actor_with_different_pids_are_counted_together(event: Make) -> None:
    """A peer that forks for each request is one actor."""
    denials = Denials(quota=1)
    assert denials.take(event(actor="uid:1000 user:eve pid:1"), 0.0) is not None
    assert denials.take(event(actor="uid:1000 user:eve pid:2"), 0.0) is None
    assert denials.take(event(actor="uid:1001 user:bob pid:2"), 0.0) is not None


def test_evicted_window_of_denials_still_reports_its_count(event: Make) -> None:
    """The number of windows is limited: the oldest one is evicted for a new one."""
    denials = Denials(quota=1)
    for _ in range(3):
        denials.take(event(actor="first"), 0.0)
    for number in range(MAX_WINDOWS):
        denials.take(event(actor=f"actor {number}"), 0.0)
    assert [(owed.actor, owed.detail["count"]) for owed in denials.due(0.0)] == [("first", 2)]
    assert len(denials._windows) == MAX_WINDOWS


def test_count_of_denials_is_due_again_after_a_failed_write(event: Make) -> None:
    """A full disk does not lose it."""
    denials, denied = Denials(), event(detail={"count": 7})
    denials.put_back(denied)
    assert denials.rest(0.0) == [denied]
    assert denials.rest(0.0) == []
