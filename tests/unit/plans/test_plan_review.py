"""The review, HMACs of secrets and the diff."""

from __future__ import annotations

import pytest
from msgspec import structs

from latticed.model.errors import Problem
from latticed.model.plan import PlanState
from latticed.plans import protocol, review
from latticed.plans.kind import Live
from latticed.plans.records import PlanRecord

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
PLAN = PlanRecord(
    plan="a" * 64, kind="file", intent={}, macs={"A": "1"}, state=PlanState.PLANNED, offered_us=0, updated_us=0
)
LIVE = Live(basis=b"live", text="one\ntwo\n", facts={"n": 1})


def digest(plan=PLAN, *, target="t", rendering=b"r", live=LIVE):
    return review.digest(plan, target=target, rendering=rendering, live=live)


def test_review_is_over_everything_that_a_change_depends_on():
    others = [
        digest(structs.replace(PLAN, plan="b" * 64)),
        digest(structs.replace(PLAN, kind="other")),
        digest(structs.replace(PLAN, macs={"A": "2"})),
        digest(structs.replace(PLAN, macs={})),
        digest(target="u"),
        digest(rendering=b"s"),
        digest(live=Live(basis=b"moved", text=LIVE.text, facts=LIVE.facts)),
    ]
    assert len({digest(), *others}) == 8
    assert digest(live=Live(basis=b"live", text="shown otherwise", facts={"n": 2})) == digest()
    assert digest(structs.replace(PLAN, state=PlanState.APPROVED, updated_us=9)) == digest()
    assert len(digest()) == 64


def test_hmac_tells_secrets_keys_and_references_apart():
    found = {review.mac(*one) for one in ((KEY, "A", "v"), (KEY, "A", "w"), (KEY, "B", "v"), (OTHER_KEY, "A", "v"))}
    assert len(found) == 4


def secret(reference, form, value):
    return protocol.SecretValue(reference=reference, form=form, value=value)


@pytest.mark.parametrize(
    ("form", "value"),
    [
        ("key", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        ("uuid", "01234567-89ab-cdef-0123-456789abcdef"),
        ("password", "correct-horse"),
    ],
)
def test_secret_in_the_form_of_its_field(form, value):
    assert review.macs(KEY, {"A": form}, (secret("A", form, value),)) == {"A": review.mac(KEY, "A", value)}
    for other in protocol.SECRET_FORMS.keys() - {form}:
        with pytest.raises(Problem, match="secrets: expected A in the form") as caught:
            review.macs(KEY, {"A": other}, (secret("A", form, value),))
        assert value not in str(caught.value)


@pytest.mark.parametrize(
    ("form", "value"),
    [
        ("key", "A" * 44),
        ("key", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAB="),
        ("uuid", "01234567-89AB-cdef-0123-456789abcdef"),
        ("password", 'quo"te-and'),
        ("password", "line\nbreak"),
        ("password", "trailing\n"),
        ("password", "a b c d e f"),
    ],
)
def test_values_that_a_tool_could_misread_are_refused(form, value):
    with pytest.raises(Problem, match="in the form"):
        review.macs(KEY, {"A": form}, (secret("A", form, value),))


def test_diff_from_the_live_state_to_the_rendering():
    assert review.diff(LIVE, b"one\ntwo\n") == ""
    assert review.diff(LIVE, b"one\nthree\n") == "--- live\n+++ planned\n@@ -1,2 +1,2 @@\n one\n-two\n+three\n"


def test_large_diffs_are_bounded():
    """Many lines are not compared, many characters are cut; both say so."""
    long = Live(text="x\n" * review.MAX_DIFFED_LINES)
    assert review.diff(long, b"y\n").startswith(f"@@ -1,{review.MAX_DIFFED_LINES} +1,1 @@\n-x\n")
    found = review.diff(Live(), b"z" * (2 << 20))
    assert len(found) <= protocol.MAX_DIFF_CHARACTERS
    assert found.endswith("\\ cut here: the review is over all of it\n")
