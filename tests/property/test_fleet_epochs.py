"""Which assignment comes after which: by the epoch that an operator certified, then by generation."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from latticed.fleet import documents, judging
from tests.house import fleets

FLEET, NOW = fleets.Fleet(), fleets.NOW
LAST = 2**53 - 1
INTENT = FLEET.intent(1)
_KEYS = st.sampled_from([fleets.CONTROLLER, fleets.OTHER_CONTROLLER])
_GENERATIONS = st.integers(1, 4) | st.just(LAST)
_STEPS = st.tuples(_KEYS, st.integers(1, 3), st.integers(1, 3), _GENERATIONS)
"""Who assigns, the epoch that he says, that of his certificate which is sent along, and the generation."""


def sent(controller, said, certified, generation):
    certificate = FLEET.certificate(controller_key=fleets.public(controller), epoch=certified)
    return fleets.packed(
        assignment=documents.sign(FLEET.assignment(INTENT, generation, epoch=said), controller),
        intent=documents.sign(INTENT, fleets.OPERATOR),
        controller=documents.sign(certificate, fleets.OPERATOR),
    )


@given(st.lists(_STEPS, max_size=12))
def test_what_is_taken_up_grows_by_epoch_then_generation(steps):
    """From two controllers that hold certificates of several epochs, in any order and mixture."""
    state = FLEET.state()
    for controller, said, certified, generation in steps:
        before = state
        state, verdict = judging.judge(state, sent(controller, said, certified, generation), now_s=NOW)
        later = said == certified and (said, generation) > (before.epoch, before.generation)
        assert isinstance(verdict, judging.TakenUp) is later, verdict
        if not later:
            assert state == before
        else:
            assert (state.epoch, state.generation) == (said, generation)


@given(st.lists(_STEPS, max_size=8))
def test_no_stolen_key_bars_who_is_certified_afterwards(steps):
    """Whatever controllers of epochs up to 3 did, up to the last generation: the first of epoch 4 counts, and then
    nothing of theirs does.
    """
    state = FLEET.state()
    for step in [*steps, (fleets.CONTROLLER, 3, 3, LAST)]:
        state, _ = judging.judge(state, sent(*step), now_s=NOW)
    fresh = sent(fleets.STRANGER, 4, 4, 1)
    state, verdict = judging.judge(state, fresh, now_s=NOW)
    assert isinstance(verdict, judging.TakenUp)
    for step in steps:
        state, verdict = judging.judge(state, sent(*step), now_s=NOW)
        assert isinstance(verdict, judging.Refusal), step
    assert isinstance(judging.judge(state, fresh, now_s=NOW)[1], judging.Unchanged)
