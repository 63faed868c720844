"""Steps of a task: every order of steps, without processes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.host.task.rules import ENDS, Step, TaskStatus, decide
from latticed.model.fault import Fault

SHA, OTHER = "a" * 64, "b" * 64
VERBS = ("approve", "withdraw", "begin", "finish", "fail", "cancel", "expire", "recover")
STEPS = st.builds(
    Step,
    verb=st.sampled_from(VERBS),
    sha256=st.sampled_from([SHA, OTHER, ""]),
    run_id=st.sampled_from(["r1", "r2", ""]),
)
FRESH = TaskStatus(state="submitted", sha256=SHA)


def after(standing, *steps):
    for step in steps:
        standing = decide(standing, step)
        assert isinstance(standing, TaskStatus), standing
    return standing


APPROVED = after(FRESH, Step(verb="approve", sha256=SHA))
RUNNING = after(APPROVED, Step(verb="begin", sha256=SHA, run_id="r1"))


@given(st.lists(STEPS, max_size=30))
def test_task_runs_at_most_once_and_only_as_approved(steps):
    """In any order of steps there is no run without approval of these bytes, and no second run."""
    standing, begun, approved = FRESH, 0, False
    for step in steps:
        next_ = decide(standing, step)
        if isinstance(next_, Fault):
            assert next_.code in {"invalid_transition", "digest_mismatch"}
            continue
        assert standing.state not in ENDS, "an end is an end"
        if step.verb == "withdraw":
            assert (standing.state, next_) == ("approved", FRESH)
            approved = False
        if next_.state == "approved":
            assert step.sha256 == SHA
            approved = True
        if next_.state == "running":
            assert approved
            assert step.sha256 == SHA == next_.approved_sha256
            assert next_.run_id == step.run_id
            begun += 1
        assert next_.sha256 == SHA
        standing = next_
    assert begun <= 1
    assert (standing.state in {"running", "done", "interrupted"}) <= (begun == 1)


def test_step_of_running_or_approved_task_gives_its_next_state():
    assert after(RUNNING, Step(verb="finish", run_id="r1")).state == "done"
    assert after(RUNNING, Step(verb="recover")).state == "interrupted"
    assert after(RUNNING, Step(verb="cancel")).state == "cancelled"
    assert after(APPROVED, Step(verb="expire")).state == "expired"


@pytest.mark.parametrize(
    ("before", "step", "code"),
    [
        (FRESH, Step(verb="approve", sha256=OTHER), "digest_mismatch"),
        (FRESH, Step(verb="begin", sha256=SHA, run_id="r1"), "invalid_transition"),
        (APPROVED, Step(verb="begin", sha256=OTHER, run_id="r1"), "digest_mismatch"),
        (APPROVED, Step(verb="recover"), "invalid_transition"),
        (RUNNING, Step(verb="begin", sha256=SHA, run_id="r2"), "invalid_transition"),
        (RUNNING, Step(verb="expire"), "invalid_transition"),
        (RUNNING, Step(verb="finish", run_id="r2"), "invalid_transition"),
        (
            TaskStatus(state="approved", sha256=OTHER, approved_sha256=SHA),
            Step(verb="begin", sha256=SHA),
            "digest_mismatch",
        ),
        (TaskStatus(state="interrupted", sha256=SHA), Step(verb="begin", sha256=SHA), "invalid_transition"),
    ],
)
def test_step_that_does_not_fit_the_task_is_refused_with_its_code(before, step, code):
    refused = decide(before, step)
    assert isinstance(refused, Fault)
    assert refused.code == code
