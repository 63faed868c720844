"""The audit chain under random events and random tampering."""

from __future__ import annotations

import copy
import json
from typing import Any

import apsw
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from latticed.kit.clock import SystemClock, rfc3339
from latticed.ledger import migrations
from latticed.ledger.chain import Chain
from latticed.ledger.coalesce import Denials
from latticed.model import chain as model_chain
from latticed.model.audit import Event
from latticed.trust import audit_chain
from tests.house import exports, long

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))

any_text = st.text(st.characters(), max_size=250)  # surrogates and controls included
details = st.dictionaries(any_text, st.one_of(any_text, st.integers(), st.booleans()), max_size=40)
events = st.builds(
    Event,
    actor=any_text,
    action=any_text,
    target=any_text,
    decision=st.sampled_from(["allow", "deny", "-"]),
    code=any_text,
    reason=st.text(max_size=1_200),
    detail=details,
)
plain = st.builds(Event, actor=st.text(max_size=5), action=st.just("a"), target=st.just("t"), detail=details)


def exported(found: list[Event], *, sign_after: int = 0) -> list[dict[str, Any]]:
    """The export of a chain of `found`, as it would be read from a file."""
    connection = apsw.Connection(":memory:")
    try:
        migrations.migrate(connection)
        chain = Chain(connection, key=KEY)
        chain.begin(rfc3339(SystemClock().wall_us()))
        for number, event in enumerate(found, start=1):
            chain.append(event)
            if number == sign_after:
                chain.sign()
        chain.flush()
        return [json.loads(json.dumps(line)) for line in exports.export(connection)]
    finally:
        connection.close()


@settings(deadline=None)
@given(found=st.lists(events, min_size=1, max_size=3))
def test_recorded_events_verify_and_equal_rfc_8785(found: list[Event]) -> None:
    """The canonical form of a stored event is that of RFC 8785 and is printable ASCII."""
    lines = exported(found, sign_after=1)
    report = audit_chain.verify(lines, key=KEY.public_key())
    assert report.ok, report.problem
    assert report.events == len(found)
    for row in (line for line in lines if "head" not in line):
        body = {key: value for key, value in row.items() if key != "hash"}
        assert model_chain.canonical(row) == rfc8785.dumps(body)
        assert model_chain.canonical(row).decode("ascii").isprintable()
        assert len(row["detail"]) <= 32


@st.composite
def tamperings(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A chain whose last event is signed, and a copy with one random change."""
    size = draw(st.integers(2, 6))
    lines = exported(draw(st.lists(plain, min_size=size, max_size=size)), sign_after=size)
    changed = copy.deepcopy(lines)
    at = draw(st.integers(0, size - 1))
    match draw(st.sampled_from(["edit", "detail", "delete", "swap", "repeat", "head"])):
        case "edit":
            field = draw(st.sampled_from(sorted(audit_chain.FIELDS)))
            changed[at][field] = draw(st.one_of(st.integers(), st.text(max_size=70), st.booleans(), st.floats()))
        case "detail":
            changed[at]["detail"][draw(st.text(max_size=3))] = draw(st.one_of(st.integers(), st.text(max_size=3)))
        case "delete":
            del changed[at]
        case "swap":
            other = draw(st.integers(0, size - 1))
            changed[at], changed[other] = changed[other], changed[at]
        case "repeat":
            changed.insert(at, copy.deepcopy(changed[at]))
        case _:
            field = draw(st.sampled_from(["seq", "hash", "ts", "signature"]))
            changed[-1]["head"][field] = draw(st.one_of(st.integers(), st.text(max_size=90)))
    assume(json.dumps(changed, sort_keys=True) != json.dumps(lines, sort_keys=True))
    return lines, changed


@settings(deadline=None, max_examples=long.times(120, 1_000))
@given(pair=tamperings())
def test_any_single_change_of_an_export_is_found(pair: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> None:
    """The unchanged chain passes."""
    lines, changed = pair
    assert audit_chain.verify(lines, key=KEY.public_key()).ok
    assert not audit_chain.verify(changed, key=KEY.public_key()).ok


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
almost_events = st.fixed_dictionaries(dict.fromkeys(sorted(audit_chain.FIELDS), json_values))


@given(lines=st.lists(st.one_of(json_values, almost_events, st.builds(lambda v: {"head": v}, json_values))))
def test_any_json_line_in_an_export_gives_a_report(lines: list[Any]) -> None:
    """No exception is raised."""
    report = audit_chain.verify(lines, key=KEY.public_key())
    assert report.ok == (not lines)


@given(
    gaps=st.lists(st.sampled_from([0.0, 0.01, 0.4, 1.0, 3.0, 11.0]), max_size=120),
    actors=st.lists(st.sampled_from("ab"), min_size=120, max_size=120),
)
def test_counts_of_coalesced_events_add_up_to_all_denials(gaps: list[float], actors: list[str]) -> None:
    """The times of denials are arbitrary."""
    denials, now_s, written = Denials(quota=3), 0.0, []
    for gap, actor in zip(gaps, actors, strict=False):
        now_s += gap
        taken = denials.take(Event(actor=actor, action="x", target="y", decision="deny"), now_s)
        written += [taken] if taken else []
        if gap >= 1.0:
            written += denials.due(now_s)
    written += denials.rest(now_s)
    assert sum(int(event.detail.get("count", 1)) for event in written) == len(gaps)
