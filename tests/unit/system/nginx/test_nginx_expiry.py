"""When ends of certificates are told: at 21, 7 and 1 days, once each, whatever happens in between."""

from __future__ import annotations

import json
import random

import pytest

from latticed.system.nginx import expiry

NOW = 1_800_000_000
DAY = expiry.DAY_S


def at(days, **ends):
    """Notices of one look: sites by days, at a time that is `days` before NOW."""
    return expiry.news(ends or {"shop": NOW}, {}, now_s=NOW - int(days * DAY))[0]


@pytest.mark.parametrize(
    ("left", "days"), [(22, None), (21, 21), (20, 21), (7.5, 21), (7, 7), (1.01, 7), (1, 1), (0, 1), (-3, 1)]
)
def test_what_is_told_depends_on_the_days_that_are_left(left, days):
    assert [one.days for one in at(left)] == ([] if days is None else [days])


def test_a_daemon_that_looks_every_hour_tells_three_times():
    told, seen = {}, []
    for hours in range(30 * 24, -48, -1):
        notices, told = expiry.news({"shop": NOW}, told, now_s=NOW - hours * 3600)
        told = expiry.read(json.loads(json.dumps(told)))
        seen += [(one.days, hours) for one in notices]
    assert seen == [(21, 21 * 24), (7, 7 * 24), (1, 24)]


@pytest.mark.parametrize("seed", range(30))
def test_gaps_clocks_that_are_set_back_and_repeated_looks_tell_nothing_twice(seed):
    rng = random.Random(seed)
    told, seen = {}, []
    for _ in range(200):
        notices, told = expiry.news({"shop": NOW}, told, now_s=NOW - rng.randint(-5, 40) * DAY)
        seen += [one.days for one in notices]
    assert seen == sorted(set(seen), reverse=True)
    assert seen[-1] == 1


def test_a_renewed_certificate_is_told_of_anew_and_a_site_that_is_gone_is_forgotten():
    _, told = expiry.news({"shop": NOW, "wiki": NOW}, {}, now_s=NOW - 3 * DAY)
    notices, told = expiry.news({"shop": NOW + 60 * DAY}, told, now_s=NOW - 3 * DAY)
    assert (notices, told) == ((), {})
    (notice,), _ = expiry.news({"shop": NOW + 60 * DAY}, told, now_s=NOW + 40 * DAY)
    assert notice == expiry.Notice(("shop",), NOW + 60 * DAY, 21)


def test_sites_of_one_certificate_are_told_of_together():
    (first, second) = at(5, shop=NOW, wiki=NOW, old=NOW + DAY)
    assert {first.sites, second.sites} == {("shop", "wiki"), ("old",)}
    assert first.word != second.word


@pytest.mark.parametrize("kept", [None, [], "x", {"shop": 1}, {"shop": [1]}, {"shop": [True, 1]}, {"shop": ["1", 2]}])
def test_what_was_kept_in_another_form_counts_as_nothing(kept):
    assert expiry.read(kept) == {}


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (20 * DAY + 5, "ends in 20 days"),
        (DAY + 3 * 3600, "ends in 27 hours"),
        (59, "ends in 0 hours"),
        (0, "has ended"),
    ],
)
def test_how_long_is_left_is_said(left, words):
    assert expiry.left(expiry.Notice(("shop",), NOW, 1), NOW - left) == words
