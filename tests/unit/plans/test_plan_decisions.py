"""What the root helper decides: roles, states, what may be applied, what has expired, what makes room for offers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from latticed.kit.peers import Peer
from latticed.model.fault import Fault
from latticed.model.plan import TRANSITIONS, PlanState
from latticed.plans import decide, protocol
from latticed.plans.decide import Role, Way
from latticed.plans.records import Armed, Bound, PlanRecord, Target

BOOT = "11111111-1111-1111-1111-111111111111"
CLOSED = [PlanState.PLANNED, PlanState.APPROVED, PlanState.ROLLED_BACK, PlanState.FAILED, PlanState.STALE]


def plan(name="a" * 64, *, at=0, **fields):
    known = {"kind": "file", "intent": {}, "macs": {}, "state": PlanState.PLANNED, "offered_us": at, "updated_us": at}
    return PlanRecord(plan=name, **{**known, **fields})


def armed(of="a" * 64, *, deadline_ns=100, **fields):
    known = {"apply_id": "1", "intent": {}, "macs": {}, "boot_id": BOOT, "narrows": False, "committed": True}
    return Armed(plan=of, deadline_ns=deadline_ns, **{**known, **fields})


def target(**fields):
    return Target(kind="file", **fields)


def peer(uid, gid=5, groups=()):
    return Peer(pid=1, uid=uid, gid=gid, groups=frozenset(groups))


@pytest.mark.parametrize(
    ("who", "role"),
    [
        (peer(0), Role.ROOT),
        (peer(0, gid=65_534), Role.ROOT),
        (peer(65_534), Role.STRANGER),
        (peer(65_534, groups=[7]), Role.STRANGER),
        (peer(50), Role.DAEMON),
        (peer(50, gid=7, groups=[7]), Role.DAEMON),
        (peer(60), Role.APPROVER),
        (peer(61, groups=[7]), Role.APPROVER),
        (peer(61, gid=7), Role.APPROVER),
        (peer(61), Role.STRANGER),
    ],
)
def test_role_of_a_peer(who, role):
    """The daemon's user is named as an approver here, and so is uid 65534: neither counts."""
    approvers = decide.Approvers(daemon_uid=50, uids=frozenset({50, 60, 65_534}), gids=frozenset({7}), names={})
    assert approvers.role(who) is role


def test_every_request_has_somebody_who_may_make_it():
    assert decide.MAY[Role.ROOT] == set(protocol.ANSWERS)
    assert decide.MAY[Role.DAEMON] == {protocol.Offer, protocol.Observe, protocol.Apply}
    assert not decide.MAY[Role.STRANGER]


def test_state_is_what_the_target_says_first():
    one = plan(state=PlanState.APPROVED, macs={"A": "1"})
    assert decide.state_of(one, target()) is PlanState.APPROVED
    assert decide.state_of(one, target(armed=armed(committed=False))) is PlanState.APPLYING
    assert decide.state_of(one, target(armed=armed())) is PlanState.UNCONFIRMED
    assert decide.state_of(one, target(armed=armed("b" * 64))) is PlanState.APPROVED
    assert decide.state_of(one, target(confirmed=one.plan, macs={"A": "1"})) is PlanState.APPLIED
    assert decide.state_of(one, target(confirmed=one.plan, macs={"A": "2"})) is PlanState.APPROVED


@pytest.mark.parametrize(
    ("boot_id", "now_ns", "expired"), [(BOOT, 99, False), (BOOT, 100, True), (BOOT, 10**18, True), ("other", 0, True)]
)
def test_a_change_expires_at_its_deadline_and_with_its_boot(boot_id, now_ns, expired):
    assert decide.is_expired(armed(), boot_id=boot_id, now_ns=now_ns) is expired
    assert (decide.left_s(armed(), boot_id=boot_id, now_ns=now_ns) == 0) is expired


@pytest.mark.parametrize("is_narrow", [True, False])
@pytest.mark.parametrize("state", list(PlanState))
def test_what_may_be_applied(state, is_narrow):
    found = decide.apply(plan(state=state), target(), is_narrow=is_narrow)
    if state is PlanState.REFUSED:
        assert isinstance(found, Fault)
    elif state is PlanState.APPROVED:
        assert found is Way.REVIEWED
    elif state is PlanState.APPLIED:
        assert found is Way.ALREADY
    elif is_narrow:
        assert found is Way.NARROWS
    else:
        assert found.code == "not_approved"


def test_nothing_is_applied_beside_an_unconfirmed_change():
    for state in PlanState:
        found = decide.apply(plan("b" * 64, state=state), target(armed=armed()), is_narrow=True)
        assert found.code == "target_busy"


def test_narrowing_needs_an_approval_and_the_same_secrets():
    bound = Bound(plan="x", intent={"n": 3}, macs={"A": "1", "B": "2"})

    def fewer(approved, new):
        return new["n"] <= approved["n"]

    assert decide.narrows(bound, {"n": 2}, {"A": "1"}, fewer)
    assert not decide.narrows(bound, {"n": 4}, {"A": "1"}, fewer)
    assert not decide.narrows(bound, {"n": 2}, {"A": "other"}, fewer)
    assert not decide.narrows(bound, {"n": 2}, {"C": "1"}, fewer)
    assert not decide.narrows(None, {"n": 0}, {}, fewer)


@pytest.mark.parametrize("state", list(PlanState))
def test_what_may_be_approved_and_refused(state):
    one = plan(state=state)
    may_approve, may_refuse = decide.approve(one, target()) is None, decide.refuse(one, target()) is None
    assert may_approve == (state in CLOSED)
    assert may_refuse == (state in {*CLOSED, PlanState.REFUSED})
    if may_approve and state is not PlanState.APPROVED:
        assert PlanState.APPROVED in TRANSITIONS[state], "the ledger's mirror can follow"


def test_confirming():
    waiting = target(armed=armed())
    assert decide.confirm(plan(), waiting, boot_id=BOOT, now_ns=99) is None
    assert decide.confirm(plan(), waiting, boot_id=BOOT, now_ns=100).code == "expired"
    assert decide.confirm(plan(), waiting, boot_id="other", now_ns=0).code == "expired"
    assert decide.confirm(plan("b" * 64), waiting, boot_id=BOOT, now_ns=0).code == "invalid_transition"
    applying = target(armed=armed(committed=False))
    assert decide.confirm(plan(), applying, boot_id=BOOT, now_ns=0).code == "invalid_transition"
    for why, code in (("deadline", "expired"), ("boot", "expired"), ("operator", "invalid_transition")):
        undone = plan(state=PlanState.ROLLED_BACK, undone_by=why)
        assert decide.confirm(undone, target(), boot_id=BOOT, now_ns=0).code == code


NAMES = [character * 64 for character in "0123456789abcdef"]
PLANS = st.lists(
    st.builds(
        plan,
        st.sampled_from(NAMES),
        at=st.integers(0, 50),
        state=st.sampled_from([*CLOSED, PlanState.REFUSED]),
        reviewed=st.booleans(),
    ),
    unique_by=lambda one: one.plan,
)


@given(PLANS, st.sampled_from(NAMES), st.sampled_from(NAMES))
def test_room_is_made_by_what_nobody_needs(kept, confirmed, waiting):
    """Never by what is confirmed, armed, or among the eight reviewed last; by the oldest of the others, a refused one
    only where nothing else is left, and an approved one only after those.
    """
    at = target(confirmed=confirmed, armed=armed(waiting))
    gone = decide.evicted(kept, {"file": at})
    reading = sorted((one for one in kept if one.reviewed), key=lambda one: one.updated_us)[-decide.REVIEWED_KEPT :]
    free = [one for one in kept if one.plan not in {confirmed, waiting} and one not in reading]
    if gone is None:
        assert free == []
        return
    ranks = [PlanState.REFUSED, PlanState.APPROVED]
    rank = lambda one: ranks.index(one.state) + 1 if one.state in ranks else 0  # noqa: E731
    assert gone in free
    assert rank(gone) == min(map(rank, free))
    assert all(gone.updated_us <= one.updated_us for one in free if rank(one) == rank(gone))


def test_records_are_frozen():
    with pytest.raises(AttributeError):
        plan().state = PlanState.APPROVED
    assert structs.replace(plan(), review="x").review == "x"
