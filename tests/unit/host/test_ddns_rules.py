"""The status of a DNS record after a try, and when the next one is due."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.host.ddns import outcome, rules
from latticed.host.ddns.outcome import Published, UpdateFailed
from latticed.host.ddns.rules import LONGEST_US, SECOND_US, RetryPolicy, after, next_try, put_again
from latticed.host.ddns.spec import DdnsSpec
from latticed.ledger.ddns import DdnsStatus
from latticed.model import restart

POLICY = RetryPolicy(min_change_s=60, verify_s=21_600, backoff=restart.Backoff(base_s=30, ceiling_s=3_600, jitter=0.2))
T0 = 1_767_323_045_000_000
A, B = "93.184.216.34", "93.184.216.35"
SPEC = DdnsSpec(
    name="h.example.org",
    type="A",
    provider="cloudflare",
    secret="${secret:T}",
    ttl=1,
    zone="",
    address=A,
    interface="",
    server="",
    key="",
    algorithm="hmac-sha256",
)


def then(before, outcome, now_us=T0, roll=0.5):
    return after(before, outcome, now_us=now_us, policy=POLICY, roll=roll)


def due(how, wanted, now_us=T0):
    return next_try(how, wanted, now_us=now_us, policy=POLICY)


def published(address, *, changed=True):
    return Published(address=address, changed=changed)


DENIED = UpdateFailed(code="bad_credentials", reason="no", lasting=True)
LATER = UpdateFailed(code="no_answer", reason="silence")


def test_published_record_is_not_tried_before_verification():
    """A new record is due at once, another address after the pause."""
    assert due(DdnsStatus(), A) == T0
    how = then(DdnsStatus(), published(A))
    assert (how.state, how.published, how.succeeded_at, how.changed_at) == ("published", A, T0, T0)
    assert T0 + 0.9 * 21_600 * SECOND_US <= due(how, A) <= T0 + 21_600 * SECOND_US
    assert due(how, B) == T0 + 60 * SECOND_US
    assert due(how, B, T0 + 120 * SECOND_US) == T0 + 120 * SECOND_US


def test_denied_record_is_not_due_for_any_address():
    """It is due once something other than the address changes, or `retry` is set."""
    how = then(DdnsStatus(), DENIED)
    assert (how.state, how.code, how.failures, how.next_at) == ("denied", "bad_credentials", 1, 0)
    assert due(how, A) is due(how, B) is due(how, A, T0 + 10**15) is None
    new_address = replace_spec(address=B)
    assert put_again(how, SPEC, new_address, retry=False) == how
    assert due(put_again(how, SPEC, new_address, retry=True), A) == T0
    for other in (replace_spec(secret="${secret:U}"), replace_spec(ttl=60), replace_spec(zone="example.org")):
        assert due(put_again(how, SPEC, other, retry=False), A) == T0


def test_retry_backoff_doubles_up_to_ceiling():
    """A longer Retry-After is honoured, up to a day; a success resets the failures and keeps the last error."""
    how, waits = DdnsStatus(), []
    for _ in range(9):
        how = then(how, LATER)
        waits.append((due(how, A) - T0) / SECOND_US)
    assert waits == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]
    asked = then(DdnsStatus(), UpdateFailed(code="provider_rate_limited", reason="", retry_after_s=500))
    assert due(asked, A) == due(asked, B) == T0 + 500 * SECOND_US
    assert due(then(DdnsStatus(), UpdateFailed(code="x", reason="", retry_after_s=10**9)), A) == T0 + LONGEST_US
    fine = then(how, published(A), T0 + 5)
    assert (fine.failures, fine.code, fine.failed_at, fine.state) == (0, "no_answer", T0, "published")


def test_unproven_refusal_is_tried_again_after_an_hour():
    """It usually is true, and may be forged: neither often nor never."""
    refused = outcome.unproven(outcome.denied("refused", "r")).fault
    assert due(then(DdnsStatus(), refused), A) == T0 + 3_600 * SECOND_US
    soon = outcome.unproven(outcome.transient("server_failed", "r")).fault
    assert due(then(DdnsStatus(), soon), A) == T0 + 30 * SECOND_US


def test_flapping_address_doubles_the_pause_between_changes():
    """The pause is 60 s, doubled up to 3840 s; an address that stays long enough resets it."""
    how, now, holds = then(DdnsStatus(), published(A)), T0, []
    for turn in range(9):
        at = due(how, B if turn % 2 == 0 else A, now)
        holds.append((at - now) // SECOND_US)
        now = at
        how = then(how, published(B if turn % 2 == 0 else A), now)
    assert holds == [60, 120, 240, 480, 960, 1920, 3840, 3840, 3840]
    calm = then(how, published("93.184.216.40"), now + 5 * 3840 * SECOND_US)
    assert calm.flaps == 0
    assert due(calm, A, calm.changed_at) == calm.changed_at + 60 * SECOND_US


def test_verification_of_equal_address_is_no_change():
    """Neither the pause nor the time of the last change changes."""
    how = then(then(DdnsStatus(), published(A)), published(A, changed=False), T0 + 10 * SECOND_US)
    assert (how.changed_at, how.flaps, how.succeeded_at) == (T0, 0, T0 + 10 * SECOND_US)


def test_interrupted_change_is_pending_again():
    """The provider may have got the other address: it is asked although the published one equals the wanted one."""
    how = then(DdnsStatus(), published(A))
    later = T0 + 3_600 * SECOND_US
    assert due(rules.begun(how), A, later) == later
    assert due(put_again(how, replace_spec(address=B), SPEC, retry=False), A, later) == later
    assert rules.begun(then(how, LATER)).state == "retrying"


def test_put_with_other_provider_resets_status_but_not_the_pause():
    """What the new provider has is unknown; the pause is that of the record."""
    how = replace(then(then(DdnsStatus(), published(A)), LATER), flaps=2)
    fresh = put_again(how, SPEC, replace_spec(zone="example.org"), retry=False)
    assert fresh == DdnsStatus(changed_at=how.changed_at, flaps=2)


def test_clock_set_back_delays_a_ddns_try_at_most_a_day():
    """Times in the future were written before the clock was set back."""
    how = then(then(DdnsStatus(), published(A)), LATER)
    for wanted in (A, B):
        assert due(how, wanted, T0 - 10**15) <= T0 - 10**15 + LONGEST_US


def test_time_noted_before_the_clock_was_set_back_is_due_now():
    """Cut to a day it would be due only once the clock had caught up: the day begins anew at each look."""
    ahead = T0 + 730 * LONGEST_US
    for how in (then(DdnsStatus(), published(A), ahead), then(DdnsStatus(), LATER, ahead)):
        for wanted in (A, B):
            assert due(how, wanted) == T0
    back_a_little = then(DdnsStatus(), LATER, T0 + 60 * SECOND_US)
    assert due(back_a_little, A) == T0 + 90 * SECOND_US


outcomes = st.one_of(
    st.builds(Published, address=st.sampled_from([A, B]), changed=st.booleans()),
    st.builds(
        UpdateFailed,
        code=st.just("c"),
        reason=st.just("r"),
        lasting=st.booleans(),
        retry_after_s=st.floats(0, 10**6),
    ),
)


@given(st.lists(st.tuples(outcomes, st.integers(0, 10**11), st.floats(0, 1, exclude_max=True)), max_size=30))
def test_next_try_stays_within_bounds_after_any_outcomes(story):
    """Denied is never due; nothing is due in the past or later than a day; pauses between changes hold."""
    how, now = DdnsStatus(), T0
    for result, passed_us, roll in story:
        now += passed_us
        how = then(how, result, now, roll)
        for wanted in (A, B):
            at = due(how, wanted, now)
            assert (at is None) == (how.state == "denied")
            assert at is None or now <= at <= now + LONGEST_US
            if at is not None and wanted != how.published and how.changed_at:
                assert at >= min(how.changed_at + 60 * SECOND_US, now + LONGEST_US)
        assert (how.failures == 0) == (how.state == "published")
        assert 0 <= how.flaps <= 6


@pytest.mark.parametrize("state", ["pending", "published", "retrying", "denied"])
def test_next_try_handles_every_state(state):
    """In each state a new record is tried now or never; none is left out."""
    assert next_try(DdnsStatus(state=state), A, now_us=T0, policy=POLICY) in (T0, None)


def replace_spec(**changed):
    import msgspec

    return msgspec.structs.replace(SPEC, **changed)
