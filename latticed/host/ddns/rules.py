"""The status of a DNS record after a try, and when the next try is due. Pure.

    pending ───┬─ the provider has the address ─► published: compared again after `verify_s`
    published ─┼─ it failed ────────────────────► retrying: tried again after a backoff
    retrying ──┴─ the provider refused it ──────► denied: not tried until more than its address changes (`put_again`)

A record is pending at first, after a put that changes more than the address, and while a change is being sent.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, assert_never

from latticed.host.ddns.outcome import Published, UpdateFailed
from latticed.kit.value import Value
from latticed.ledger.ddns import DdnsStatus
from latticed.model import restart

if TYPE_CHECKING:
    from latticed.host.ddns.spec import DdnsSpec

SECOND_US: Final = 1_000_000
LONGEST_S: Final = 86_400
LONGEST_US: Final = LONGEST_S * SECOND_US
"""The longest wait. A later time was noted before the wall clock was set back: it is due now (`due_at`)."""
_MAX_FLAPS: Final = 6
"""The pause between changes is doubled at most this often: 64 times `min_change_s`."""
_CALM: Final = 4
"""An address that has stayed for so many pauses resets the pause."""


class RetryPolicy(Value, frozen=True, kw_only=True):
    """The operator's settings, in seconds. `min_change_s`: pause between changes of one record, doubled by each that
    follows too soon. `verify_s`: after which a published record is compared with what the provider has. `backoff`:
    pauses after failures in a row.
    """

    min_change_s: float
    verify_s: float
    backoff: restart.Backoff


def after(
    before: DdnsStatus, outcome: Published | UpdateFailed, *, now_us: int, policy: RetryPolicy, roll: float
) -> DdnsStatus:
    """The status after one try that ended at `now_us` (wall clock, µs); `roll` in [0, 1) is random."""
    match outcome:
        case Published():
            # Up to a tenth earlier, never later: records that were put together are not all verified at one moment.
            spread = 0.9 + 0.1 * roll
            flaps, changed_at = before.flaps, before.changed_at
            # That the provider had the address already is no change: the pause and `flaps` stay.
            if outcome.changed:
                flaps, changed_at = _flaps(before, now_us, policy), now_us
            return replace(
                before,
                state="published",
                published=outcome.address,
                changed_at=changed_at,
                flaps=flaps,
                succeeded_at=now_us,
                failures=0,
                next_at=now_us + round(policy.verify_s * spread * SECOND_US),
            )
        case UpdateFailed():
            # `published` is kept: it is what the provider had when it was last known.
            failures = before.failures + 1
            delay_s = max(policy.backoff.delay_s(failures, roll), outcome.retry_after_s, outcome.again_s)
            return replace(
                before,
                state="denied" if outcome.lasting else "retrying",
                failures=failures,
                code=outcome.code,
                reason=outcome.reason,
                failed_at=now_us,
                next_at=0 if outcome.lasting else now_us + min(round(delay_s * SECOND_US), LONGEST_US),
            )
        case _:
            assert_never(outcome)


def next_try(status: DdnsStatus, wanted: str, *, now_us: int, policy: RetryPolicy) -> int | None:
    """When to ask the provider for `wanted` (not empty), wall clock in µs, from `now_us` to a day later; None: not in
    this state.
    """
    if status.state == "denied":
        return None
    is_change = wanted != status.published
    # `next_at` is a backoff after failures, for any address; for a published record the time of its verification, which
    # another address does not wait for.
    waits = status.state == "retrying" or (status.state == "published" and not is_change)
    at = due_at(status.next_at, now_us) if waits else now_us
    if is_change or status.state == "pending":  # something may have to be written
        at = max(at, due_at(earliest_change(status, policy), now_us))
    return at


def due_at(noted_us: int, now_us: int) -> int:
    """A time that was noted, as it counts now: not in the past, and now when it is later than any wait is long.

    It may not be cut to the longest wait: that would move on with each recheck.
    """
    return now_us if noted_us > now_us + LONGEST_US else max(noted_us, now_us)


def earliest_change(status: DdnsStatus, policy: RetryPolicy) -> int:
    """When the next change may be sent, by the pause between changes; wall clock in µs, 0 while there was none."""
    return status.changed_at + _pause_us(status.flaps, policy) if status.changed_at else 0


def put_again(before: DdnsStatus, old: DdnsSpec, new: DdnsSpec, *, retry: bool) -> DdnsStatus:
    """The status of a record whose spec is changed from `old` to `new`, or that is to be tried again (`retry`).

        another provider, zone or server    ->  as of a new record, but with the pause between changes
        another TTL, secret or key, retry   ->  pending, also after a denial: tried once that pause is over
        another address alone               ->  denied and retrying stay as they are, published becomes pending

    Pending even if the new address is the published one: an interrupted try may have changed it, so the provider is
    asked.
    """
    # What another provider or zone has is unknown. The pause stays, or putting the record there and back would evade
    # it.
    if new.asks_elsewhere(old):
        return DdnsStatus(changed_at=before.changed_at, flaps=before.flaps)
    if new.asks_otherwise(old) or retry:
        return replace(before, state="pending", failures=0, next_at=0)
    return begun(before)


def begun(before: DdnsStatus) -> DdnsStatus:
    """The status while a change is being sent: pending if it was published, as what the provider has is not known until
    its answer.
    """
    return replace(before, state="pending") if before.state == "published" else before


def _flaps(before: DdnsStatus, now_us: int, policy: RetryPolicy) -> int:
    """How many changes in quick succession, with one more at `now_us`: the pause grows with it. 0 for the first change,
    and after a calm period.
    """
    if not before.changed_at:
        return 0
    is_calm = now_us - before.changed_at >= _CALM * _pause_us(before.flaps, policy)
    return 0 if is_calm else min(before.flaps + 1, _MAX_FLAPS)


def _pause_us(flaps: int, policy: RetryPolicy) -> int:
    """The pause after the last change, in µs: `min_change_s`, doubled for each flap."""
    pause = restart.Backoff(base_s=policy.min_change_s, ceiling_s=LONGEST_S)
    return round(pause.plain_s(min(flaps, _MAX_FLAPS) + 1) * SECOND_US)
