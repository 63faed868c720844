"""Leases of children's uids: each to one child at a time, the whole range, from a random start."""

from __future__ import annotations

import pytest

from latticed.model.errors import Problem
from latticed.runners.child_spawner import _Uids


def test_each_uid_is_leased_once_until_returned():
    """All are leased, none twice; then none, until one is given back."""
    uids = _Uids(1_000, 16)
    taken = [uids.take() for _ in range(16)]
    assert sorted(taken) == list(range(1_000, 1_016))
    with pytest.raises(Problem) as none_left:
        uids.take()
    assert none_left.value.code == "too_many_children"
    uids.give_back(taken[3])
    uids.give_back(taken[1])
    assert [uids.take(), uids.take()] == [taken[3], taken[1]]


def test_first_leased_uid_is_random():
    """Eight daemons that all start at the same of 65,536 uids would be no coincidence."""
    assert len({_Uids(1_900_000_000, 65_536).take() for _ in range(8)}) > 1
