"""When scans are due, in virtual time."""

from __future__ import annotations

from latticed.catalog.scan_schedule import FALLBACK_S, TICK_S, ScanSchedule


def test_first_scan_is_due_at_once_then_by_the_timer() -> None:
    """Without events, a scan comes every `rescan_s`."""
    times = ScanSchedule(rescan_s=60, now_s=100.0)
    assert times.scan_due_s(watched=True) == 100.0
    times.scan_began()
    times.scan_ended(began_s=100.0, now_s=100.5)
    assert times.scan_due_s(watched=True) == 160.5


def test_unwatched_directory_is_scanned_more_often() -> None:
    """Changes are found only by timed scans then."""
    times = ScanSchedule(rescan_s=60, now_s=0.0)
    times.scan_began()
    times.scan_ended(began_s=0.0, now_s=0.01)
    assert times.scan_due_s(watched=False) == 0.01 + FALLBACK_S


def test_requested_scans_take_at_most_a_fifth_of_the_time() -> None:
    """An operator's request is not delayed."""
    times = ScanSchedule(rescan_s=60, now_s=0.0)
    times.scan_began()
    times.scan_ended(began_s=0.0, now_s=2.0)
    times.want_scan()
    assert times.scan_due_s(watched=True) == 10.0
    times.want_scan_now(2.5)
    assert times.scan_due_s(watched=True) == 2.5


def test_request_during_a_scan_causes_another() -> None:
    """A hint that arrives while a scan runs is not swallowed by its end."""
    times = ScanSchedule(rescan_s=60, now_s=0.0)
    times.scan_began()
    times.want_scan()
    times.scan_ended(began_s=0.0, now_s=0.0)
    assert times.scan_due_s(watched=True) < 1.0


def test_scan_tick_is_due_one_interval_after_the_last() -> None:
    times = ScanSchedule(rescan_s=60, now_s=5.0)
    assert times.tick_due_s() == 5.0 + TICK_S
    times.ticked(7.0)
    assert times.tick_due_s() == 7.0 + TICK_S
