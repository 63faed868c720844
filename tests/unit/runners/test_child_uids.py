"""Uids that children are lent: each to one at a time, all of the range, begun anywhere in it."""

from __future__ import annotations

import pytest

from latticed.model.errors import Problem
from latticed.runners.child_spawner import _Uids


def test_each_is_lent_once_until_it_comes_back():
    """All of them, none twice; then none, until one is given back."""
    uids = _Uids(1_000, 16)
    taken = [uids.take() for _ in range(16)]
    assert sorted(taken) == list(range(1_000, 1_016))
    with pytest.raises(Problem) as none_left:
        uids.take()
    assert none_left.value.code == "too_many_children"
    uids.give_back(taken[3])
    uids.give_back(taken[1])
    assert [uids.take(), uids.take()] == [taken[3], taken[1]]


def test_two_daemons_begin_at_different_ones():
    """Of 65,536, by chance: eight that all begin at one would be no chance."""
    assert len({_Uids(1_900_000_000, 65_536).take() for _ in range(8)}) > 1
