"""Settling of names, in virtual time."""

from __future__ import annotations

from latticed.catalog.settle import Settle


def test_changed_name_is_due_after_quiet_s() -> None:
    """It is marked once."""
    settle = Settle(quiet_s=0.15, longest_s=2.0)
    settle.mark("a", 10.0)
    assert settle.due(10.14) == []
    assert settle.due(10.15) == ["a"]
    assert settle.due(99.0) == []
    assert settle.next_due_s() is None


def test_each_further_change_restarts_quiet_s() -> None:
    """A bundle that is being written is not judged yet."""
    settle = Settle(quiet_s=0.15, longest_s=2.0)
    for step in range(10):
        settle.mark("a", 10.0 + step * 0.1)
    assert settle.due(11.0) == []
    assert settle.due(11.05) == ["a"]


def test_name_that_keeps_changing_is_due_after_longest_s() -> None:
    """The number of marks does not matter."""
    settle = Settle(quiet_s=0.15, longest_s=2.0)
    for step in range(21):
        settle.mark("a", 10.0 + step * 0.1)
    settle.mark("b", 12.0)
    assert settle.next_due_s() == 12.0
    assert settle.due(12.0) == ["a"]
    assert settle.due(12.15) == ["b"]


def test_forgotten_name_does_not_become_due() -> None:
    """It was judged for another reason."""
    settle = Settle(quiet_s=0.1, longest_s=1.0)
    settle.mark("a", 0.0)
    settle.forget("a")
    settle.forget("never marked")
    assert len(settle) == 0
    assert settle.due(5.0) == []


def test_changed_name_is_due_at_once_with_quiet_s_of_zero() -> None:
    settle = Settle(quiet_s=0.0, longest_s=0.0)
    settle.mark("a", 1.0)
    assert settle.due(1.0) == ["a"]
