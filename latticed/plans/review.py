"""What an operator approves: the review, one digest over all that a change depends on, and the diff to read (pure)."""

from __future__ import annotations

import difflib
import hashlib
import hmac
import re
from typing import TYPE_CHECKING, Final

from latticed.kit import text
from latticed.model import chain
from latticed.model.errors import Problem
from latticed.plans import protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.plans.kind import Kind, Live
    from latticed.plans.records import PlanRecord

_REVIEW: Final = b"LATTICED-REVIEW-V1\n"
_SECRET: Final = b"LATTICED-SECRET-V1\n"
MAX_DIFFED_LINES: Final = 20_000
"""Beyond so many lines both sides are shown whole: difflib takes quadratic time at worst."""


def mac(key: bytes, reference: str, value: str) -> str:
    """The HMAC-SHA256, in hex, of a secret's value under the helper's key: binds it, and tells nothing of it."""
    return hmac.new(key, _SECRET + f"{reference}\0{value}".encode(), hashlib.sha256).hexdigest()


def macs(key: bytes, wanted: Mapping[str, str], given: tuple[protocol.SecretValue, ...]) -> dict[str, str]:
    """The HMAC of each secret; `wanted` are the references of an intent and their forms.

    Problem bad_request when others were given than wanted, or one has not the form of its field. Names no value.
    """
    values = {one.reference: one for one in given}
    if len(values) != len(given) or values.keys() != wanted.keys():
        odd = sorted(values.keys() ^ wanted.keys())[:3]
        raise Problem("bad_request", f"secrets: expected a value for each reference of the intent, once; see {odd}")
    for reference, form in wanted.items():
        if values[reference].form != form or not re.fullmatch(protocol.SECRET_FORMS[form], values[reference].value):
            raise Problem("bad_request", f"secrets: expected {reference} in the form {form!r}")
    return {reference: mac(key, reference, values[reference].value) for reference in sorted(wanted)}


def shown(kind: Kind, plan: PlanRecord, live: Live | None) -> bytes:
    """The rendering with references where the secrets will be."""
    return kind.render(plan.intent, live, {name: f"${{secret:{name}}}" for name in plan.macs})


def digest(plan: PlanRecord, *, target: str, rendering: bytes, live: Live) -> str:
    """The review: 64 hex digits. `rendering` is the shown one; secrets count by their HMACs."""
    parts = {
        "plan": plan.plan,
        "kind": plan.kind,
        "target": target,
        "rendering": hashlib.sha256(rendering).hexdigest(),
        "live": hashlib.sha256(live.basis).hexdigest(),
        "secrets": plan.macs,
    }
    return hashlib.sha256(_REVIEW + chain.encode(parts).encode("ascii")).hexdigest()


def diff(live: Live, rendering: bytes) -> str:
    """The unified diff from the live state to the rendering, cut at MAX_DIFF_CHARACTERS; empty when they are equal."""
    old = live.text.splitlines()
    new = rendering.decode("utf-8", "replace").splitlines()
    if old == new:
        return ""
    if len(old) + len(new) > MAX_DIFFED_LINES:
        lines = [f"@@ -1,{len(old)} +1,{len(new)} @@", *(f"-{one}" for one in old), *(f"+{one}" for one in new)]
    else:
        lines = list(difflib.unified_diff(old, new, "live", "planned", lineterm=""))
    whole = "\n".join(lines) + "\n"
    if len(whole) <= protocol.MAX_DIFF_CHARACTERS:
        return whole
    return text.clip(whole, protocol.MAX_DIFF_CHARACTERS - 80) + "\n\\ cut here: the review is over all of it\n"
