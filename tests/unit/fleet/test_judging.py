"""What a node believes: growing generations, ways back, expiry, revocations, labels, nonces."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.fleet import documents, judging
from tests.house import fleets

NOW, DAY = fleets.NOW, fleets.DAY
FLEET = fleets.Fleet()


def taken(state, desired, *, now_s=NOW):
    state, verdict = judging.judge(state, desired, now_s=now_s)
    assert isinstance(verdict, judging.TakenUp), verdict
    return state


def refused(state, desired, *, now_s=NOW):
    after, verdict = judging.judge(state, desired, now_s=now_s)
    assert isinstance(verdict, judging.Refusal), verdict
    assert after.present == state.present
    assert after.generation == state.generation
    return verdict.code


def with_added(desired, **envelopes):
    found = documents.unpack(desired, most=64 << 10)
    kept = {name: value for name in ("assignment", "intent", "controller") if (value := getattr(found, name))}
    return fleets.packed(**kept, **envelopes)


def test_back_to_what_the_present_intent_names_and_to_nothing_else():
    first, second = FLEET.intent(1), FLEET.intent(2, plugins=())
    third = FLEET.intent(3, plugins=(), back_to=(documents.name_of(first),))
    state = FLEET.state()
    for generation, intent in enumerate((first, second, third), 1):
        state = taken(state, FLEET.desired(generation, intent=intent))
    assert refused(state, FLEET.desired(4, intent=second)) == "intent_old"
    back = taken(state, FLEET.desired(4, intent=first))
    assert (back.present.intent_generation, back.highest, back.generation) == (1, 3, 4)
    # What named it is not present any more: neither it nor what lay between is taken again.
    assert refused(back, FLEET.desired(5, intent=third)) == "intent_old"
    assert refused(back, FLEET.desired(5, intent=second)) == "intent_old"
    assert taken(back, FLEET.desired(5, intent=FLEET.intent(4))).highest == 4


def ranged(generation, versions, **fields):
    demo = fleets.plugin(identity=None, versions=versions, publisher="acme")
    return FLEET.intent(generation, plugins=(demo, fleets.plugin("acme.named")), **fields)


def as_it_was(state, identity):
    """The state once all that is present is as wanted, `acme.demo` in this identity."""
    for one in state.present.plugins:
        found = identity if one.id == "acme.demo" else fleets.IDENTITY
        state = judging.settled(state, state.present, one, found)
    return state


def which(state):
    return [(one.identity, one.versions, one.publisher) for one in state.present.plugins]


def test_back_is_to_what_the_node_had_also_where_a_range_has_the_newer_one_too():
    first, other = ranged(1, ">=0.1, <1"), ranged(2, ">=0.1")
    second = ranged(3, ">=0.2, <1", back_to=(documents.name_of(first), documents.name_of(other)))
    state = as_it_was(taken(FLEET.state(), FLEET.desired(1, intent=first)), "1" * 64)
    assert which(state) == [(None, ">=0.1, <1", "acme"), (fleets.IDENTITY, None, None)]
    state = as_it_was(taken(state, FLEET.desired(2, intent=second)), "2" * 64)
    assert which(state)[0] == (None, ">=0.2, <1", "acme")
    back = taken(state, FLEET.desired(3, intent=first))
    assert which(back) == [("1" * 64, None, None), (fleets.IDENTITY, None, None)]
    # Also when it is assigned again, and when it was settled meanwhile.
    again = taken(as_it_was(back, "1" * 64), FLEET.desired(4, intent=first))
    assert which(again) == which(back)
    # What is new is as it was signed; of what it never was as wanted under there is the range.
    third = taken(again, FLEET.desired(5, intent=ranged(4, ">=0.3")))
    assert which(third)[0] == (None, ">=0.3", "acme")
    assert which(taken(state, FLEET.desired(3, intent=other)))[0] == (None, ">=0.1", "acme")


def test_each_step_back_is_to_what_the_node_had_then():
    """Each intent names the one before it alone."""
    state, intents = FLEET.state(), []
    for number in range(1, 10):
        before = tuple(documents.name_of(one) for one in intents[-1:])
        intents.append(ranged(number, f">=0.{number}", back_to=before))
        state = as_it_was(taken(state, FLEET.desired(number, intent=intents[-1])), str(number) * 64)
    for number in range(8, 0, -1):
        state = taken(state, FLEET.desired(20 - number, intent=intents[number - 1]))
        assert which(state)[0] == (str(number) * 64, None, None)


def test_what_a_node_had_is_kept_for_a_bounded_number_of_intents():
    state, first = FLEET.state(), ranged(1, "*")
    for number in range(1, 100):
        intent = ranged(number, "*", back_to=(documents.name_of(first),) if number > 1 else ())
        state = as_it_was(taken(state, FLEET.desired(number, intent=intent)), f"{number:064x}")
    assert len(state.had) <= 18
    assert which(taken(state, FLEET.desired(100, intent=first)))[0] == (f"{1:064x}", None, None)


def test_an_intent_may_be_assigned_again():
    """Other bundles of the same intent, for instance."""
    intent = FLEET.intent(1)
    state = taken(FLEET.state(), FLEET.desired(1, intent=intent))
    assert taken(state, FLEET.desired(2, intent=intent)).present.generation == 2


def test_expiry_bars_what_is_new_and_never_what_was_taken_up():
    desired = FLEET.desired(1)
    state = taken(FLEET.state(), desired)
    for later in (NOW + 2 * DAY, NOW + 8 * DAY, NOW + 365 * DAY):
        after, verdict = judging.judge(state, desired, now_s=later)
        assert isinstance(verdict, judging.Unchanged)
        assert after == state
    for later, code in ((2, "assignment_expired"), (8, "controller_expired")):
        assert refused(state, FLEET.desired(2), now_s=NOW + later * DAY) == code
    assigned = FLEET.desired(2, expires=NOW + 365 * DAY)
    assert refused(state, assigned, now_s=NOW + 8 * DAY) == "controller_expired"
    certified = documents.sign(FLEET.certificate(expires=NOW + 365 * DAY), fleets.OPERATOR)
    found = documents.unpack(assigned, most=64 << 10)
    lasting = fleets.packed(assignment=found.assignment, intent=found.intent, controller=certified)
    assert refused(state, lasting, now_s=NOW + 31 * DAY) == "intent_expired"
    # A clock an hour ahead or behind only moves when that begins.
    assert taken(state, lasting, now_s=NOW + 30 * DAY - 3_600).generation == 2
    assert taken(state, lasting, now_s=NOW - 3_600).generation == 2


def test_controller_of_a_later_epoch_comes_after_a_stolen_key_that_used_up_the_generations():
    last = 2**53 - 1
    state = taken(FLEET.state(), FLEET.desired(last, intent=FLEET.intent(1)))
    assert refused(state, FLEET.desired(last, intent=FLEET.intent(2))) == "generation_old"
    fresh = FLEET.desired(1, intent=FLEET.intent(2), controller=fleets.OTHER_CONTROLLER, epoch=2)
    state = taken(state, fresh)
    assert (state.epoch, state.generation) == (2, 1)
    assert refused(state, FLEET.desired(last, intent=FLEET.intent(3))) == "epoch_old"


def test_two_controllers_of_one_epoch_take_turns():
    state = FLEET.state()
    for generation, controller in enumerate([fleets.CONTROLLER, fleets.OTHER_CONTROLLER, fleets.CONTROLLER], 1):
        state = taken(state, FLEET.desired(generation, intent=FLEET.intent(generation), controller=controller))
    other = FLEET.desired(3, intent=FLEET.intent(4), controller=fleets.OTHER_CONTROLLER)
    assert refused(state, other) == "generation_old"


def test_later_certificate_of_the_same_key_raises_nothing_that_it_signed_before():
    """Whoever holds the engine has all assignments of before, and each certificate that was ever published."""
    state = taken(FLEET.state(), FLEET.desired(1))
    state = taken(state, FLEET.desired(2))
    renewed = documents.sign(FLEET.certificate(epoch=2), fleets.OPERATOR)
    for generation in (1, 3):
        found = documents.unpack(FLEET.desired(generation, intent=FLEET.intent(2)), most=64 << 10)
        mixed = fleets.packed(assignment=found.assignment, intent=found.intent, controller=renewed)
        assert refused(state, mixed) == "epoch_mismatch"
    # What was taken up stays so under it.
    found = documents.unpack(FLEET.desired(2), most=64 << 10)
    mixed = fleets.packed(assignment=found.assignment, intent=found.intent, controller=renewed)
    assert isinstance(judging.judge(state, mixed, now_s=NOW)[1], judging.Unchanged)


def test_revocations_are_learnt_whatever_the_rest_is_worth_and_kept():
    state = taken(FLEET.state(), FLEET.desired(1))
    revoked = documents.sign(FLEET.revocations(fleets.public(fleets.CONTROLLER), serial=4), fleets.OPERATOR)
    state, verdict = judging.judge(state, with_added(FLEET.desired(2), revocations=revoked), now_s=NOW)
    assert verdict.code == "controller_revoked"
    assert (state.revocations, fleets.public(fleets.CONTROLLER) in state.revoked) == (4, True)
    # An older list, or an empty one, takes nothing back; neither does one that is withheld.
    older = documents.sign(FLEET.revocations(serial=1), fleets.OPERATOR)
    for desired in (FLEET.desired(2), with_added(FLEET.desired(2), revocations=older)):
        state, verdict = judging.judge(state, desired, now_s=NOW)
        assert (verdict.code, state.revocations) == ("controller_revoked", 4)
    # What it had assigned before goes on.
    assert state.present.generation == 1
    certificate = FLEET.certificate(controller_key=fleets.public(fleets.OTHER_CONTROLLER))
    intent = FLEET.intent(2)
    fresh = fleets.packed(
        assignment=documents.sign(FLEET.assignment(intent, 2), fleets.OTHER_CONTROLLER),
        intent=documents.sign(intent, fleets.OPERATOR),
        controller=documents.sign(certificate, fleets.SECOND),
    )
    assert taken(state, fresh).generation == 2


def test_lists_of_revocations_are_remembered_by_name_within_bounds():
    state = taken(FLEET.state(), FLEET.desired(1))
    signed = [
        documents.sign(FLEET.revocations(fleets.public(fleets.key(900)), serial=serial), fleets.OPERATOR)
        for serial in range(1, documents.MOST_LISTS + 3)
    ]
    names = tuple(documents.read(one, documents.Revocations).sha256 for one in signed)
    for one in (*signed[:2], signed[0]):
        state, _ = judging.judge(state, with_added(FLEET.desired(1), revocations=one), now_s=NOW)
    assert state.lists == names[:2]
    for one in signed:
        state, _ = judging.judge(state, with_added(FLEET.desired(1), revocations=one), now_s=NOW)
    assert state.lists == names[2:]


def test_revoked_intents_and_operators_count_no_more():
    state, bad = FLEET.state(), FLEET.intent(1)
    revoked = documents.sign(FLEET.revocations(intents=(documents.name_of(bad),)), fleets.SECOND)
    assert refused(state, with_added(FLEET.desired(1, intent=bad), revocations=revoked)) == "intent_revoked"
    thief = documents.sign(FLEET.revocations(fleets.public(fleets.OPERATOR)), fleets.SECOND)
    state, verdict = judging.judge(state, with_added(FLEET.desired(1), revocations=thief), now_s=NOW)
    assert verdict.code == "operator_revoked"
    assert refused(state, FLEET.desired(1)) == "operator_revoked"
    # Nor can he take it back.
    mine = documents.sign(FLEET.revocations(fleets.public(fleets.SECOND), serial=9), fleets.OPERATOR)
    assert refused(state, with_added(FLEET.desired(1), revocations=mine)) == "operator_revoked"


def test_two_operators_share_one_order():
    """Whoever signs first takes the number; the other's of the same number is older than what is there."""
    mine, his = FLEET.intent(1), FLEET.intent(1, plugins=())
    state = taken(FLEET.state(), FLEET.desired(1, intent=mine, operator=fleets.OPERATOR))
    assert refused(state, FLEET.desired(2, intent=his, operator=fleets.SECOND)) == "intent_old"
    next_one = FLEET.intent(2, plugins=())
    assert taken(state, FLEET.desired(2, intent=next_one, operator=fleets.SECOND)).highest == 2


def test_labels_are_those_of_the_newest_certificate():
    state = FLEET.state()
    for_databases = FLEET.intent(1, selector=documents.Selector(labels={"role": "db"}, nodes=()))
    desired = FLEET.desired(1, intent=for_databases)
    assert refused(state, desired) == "not_selected"
    relabelled = documents.sign(FLEET.node_certificate(labels={"role": "db"}, serial=2), fleets.OPERATOR)
    state = taken(state, with_added(desired, node=relabelled))
    assert (state.labels, state.serial) == ({"role": "db"}, 2)
    older = documents.sign(FLEET.node_certificate(labels={"role": "web"}, serial=1), fleets.OPERATOR)
    state, _ = judging.judge(state, with_added(desired, node=older), now_s=NOW)
    assert state.labels == {"role": "db"}


@pytest.mark.parametrize(
    ("labels", "nodes", "selected"),
    [
        ({}, (), True),
        ({"role": "web"}, (), True),
        ({"role": "web", "site": "fra"}, (), False),
        ({"role": "WEB"}, (), False),
        ({}, ("n1",), True),
        ({}, ("n2", "n10"), False),
        ({"role": "db"}, ("n1",), False),
    ],
)
def test_selector_means_all_of_its_labels_and_any_of_its_names(labels, nodes, selected):
    selector = documents.Selector(labels=labels, nodes=nodes)
    assert selector.selects("n1", {"role": "web"}) is selected


def test_an_invocation_counts_once_also_when_the_clock_goes_back():
    state = FLEET.state()
    invoked = documents.sign(FLEET.invocation(), fleets.OPERATOR)
    state, verdict = judging.judge_invocation(state, invoked, now_s=NOW)
    assert isinstance(verdict, judging.Carried)
    after, verdict = judging.judge_invocation(state, invoked, now_s=NOW)
    assert (verdict.code, after) == ("invocation_replayed", state)
    # An hour on, its nonce is forgotten with the next one.
    later = documents.sign(FLEET.invocation(nonce="ef" * 16, expires=NOW + 3_700), fleets.OPERATOR)
    state, verdict = judging.judge_invocation(state, later, now_s=NOW + 3_600)
    assert isinstance(verdict, judging.Carried)
    assert list(state.nonces) == ["ef" * 16]
    _, verdict = judging.judge_invocation(state, invoked, now_s=NOW)
    assert verdict.code == "invocation_replayed"


@given(st.integers(0, 2**32))
def test_any_order_of_genuine_documents_keeps_what_must_hold(seed):
    """Replayed, reordered, from two operators, with ways back, revocations and a clock that jumps: the floor grows,
    intents go back only where they are named, and nothing but a document that counts alters what is wanted.
    """
    chance = random.Random(seed)
    intents = []
    for generation in range(1, 6):
        named = tuple(documents.name_of(one) for one in intents if chance.random() < 0.4)
        intents.append(
            FLEET.intent(generation, plugins=(), back_to=named, expires=NOW + chance.choice([DAY, 30 * DAY]))
        )
    pool = [
        FLEET.desired(number, intent=chance.choice(intents), operator=chance.choice([fleets.OPERATOR, fleets.SECOND]))
        for number in range(1, 9)
    ]
    gone = fleets.public(chance.choice([fleets.SECOND, fleets.STRANGER]))
    revoked = documents.sign(FLEET.revocations(gone), fleets.OPERATOR)
    pool[chance.randrange(8)] = with_added(chance.choice(pool), revocations=revoked)
    state, now = FLEET.state(), NOW
    for desired in chance.choices(pool, k=14):
        now = NOW + chance.randrange(-3_600, 3 * DAY)
        before = state
        state, verdict = judging.judge(state, desired, now_s=now)
        assert state.revoked >= before.revoked
        assert state.highest >= before.highest
        if not isinstance(verdict, judging.TakenUp):
            assert (state.present, state.generation) == (before.present, before.generation)
            continue
        assert state.generation > before.generation
        found = documents.read(documents.unpack(desired, most=64 << 10).intent, documents.Intent)
        assert found.key not in state.revoked
        assert found.document.expires > now
        back = before.present is not None and found.sha256 in (before.present.intent, *before.present.back_to)
        assert found.document.generation > before.highest or back


@pytest.mark.parametrize("by", ["intent", "operator"])
def test_intent_that_is_revoked_names_no_way_back_and_is_withdrawn(by):
    first = FLEET.intent(1)
    second = FLEET.intent(2, plugins=(), back_to=(documents.name_of(first),))
    state = taken(FLEET.state(), FLEET.desired(1, intent=first))
    present = FLEET.desired(2, intent=second, operator=fleets.SECOND)
    state = taken(state, present)
    keys, intents = ((), (documents.name_of(second),)) if by == "intent" else ((fleets.public(fleets.SECOND),), ())
    revoked = documents.sign(FLEET.revocations(*keys, intents=intents), fleets.OPERATOR)
    assert not state.withdrawn
    state, verdict = judging.judge(state, with_added(present, revocations=revoked), now_s=NOW)
    assert (type(verdict), state.withdrawn) == (judging.Unchanged, True)
    assert refused(state, FLEET.desired(3, intent=first)) == "intent_old"
    assert not taken(state, FLEET.desired(3, intent=FLEET.intent(3))).withdrawn
