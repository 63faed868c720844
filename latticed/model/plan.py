"""Plans: what a plugin would have changed on this host, as kind and intent (architecture decision 10).

A plan is named by the SHA-256 of its canonical form, RFC 8785 of `{"intent", "kind"}`. That is JSON with sorted keys
and without white space; intents hold no fractions and no integers beyond ±(2^53-1), so that every implementation writes
them alike.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

KINDS: Final = ("nft", "wireguard", "nginx", "proxy")
"""What can be planned."""
MAX_INTENT_BYTES: Final = 256 << 10
"""Of the canonical form, kind included (contracts §12)."""
MAX_DEPTH: Final = 32
"""Levels of nesting, as in manifests (contracts §2)."""
_LARGEST: Final = 2**53 - 1
"""Greatest integer that RFC 8785 writes exactly."""


class PlanState(StrEnum):
    """State of a plan. Only operators approve, refuse and confirm, only the root helper applies and undoes."""

    PLANNED = "planned"
    APPROVED = "approved"
    APPLYING = "applying"
    UNCONFIRMED = "unconfirmed"
    APPLIED = "applied"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"
    STALE = "stale"
    REFUSED = "refused"


_DECIDABLE: Final = frozenset({PlanState.APPROVED, PlanState.REFUSED, PlanState.STALE})
TRANSITIONS: Final = MappingProxyType(
    {
        # What narrows an approved intent is applied without an approval of its own.
        PlanState.PLANNED: _DECIDABLE | {PlanState.APPLYING},
        PlanState.APPROVED: frozenset({PlanState.APPLYING, PlanState.REFUSED, PlanState.STALE, PlanState.PLANNED}),
        PlanState.APPLYING: frozenset(
            {PlanState.UNCONFIRMED, PlanState.APPLIED, PlanState.ROLLED_BACK, PlanState.FAILED}
        ),
        PlanState.UNCONFIRMED: frozenset({PlanState.APPLIED, PlanState.ROLLED_BACK, PlanState.FAILED}),
        PlanState.APPLIED: frozenset({PlanState.PLANNED, PlanState.STALE, PlanState.APPLYING}),
        PlanState.ROLLED_BACK: _DECIDABLE | {PlanState.PLANNED, PlanState.APPLYING},
        PlanState.FAILED: _DECIDABLE | {PlanState.PLANNED, PlanState.APPLYING},
        PlanState.STALE: _DECIDABLE - {PlanState.STALE} | {PlanState.PLANNED, PlanState.APPLYING},
        PlanState.REFUSED: frozenset[PlanState](),
    }
)
"""All transitions. What was undone, failed or went stale is planned anew or approved anew; a refused one stays refused.

An approved plan is planned again when a secret of it gets another value. An applied one is stale once another one has
taken its place.
"""


class BadIntent(ValueError):
    """An intent that no plan can hold; the message says where and why, never a value."""


def canonical(kind: str, intent: dict[str, Any]) -> bytes:
    """The bytes that name a plan; BadIntent for what has no canonical form or is too large.

    `{"intent":{"ports":[22]},"kind":"nft"}` for kind `nft` and intent `{"ports": [22]}`.
    """
    import rfc8785  # only plans and manifests of v2 pay for it

    _check(intent, "intent", 0)
    try:
        data: bytes = rfc8785.dumps({"kind": kind, "intent": intent})
    except (rfc8785.CanonicalizationError, UnicodeEncodeError) as error:
        raise BadIntent("intent: expected text without lone surrogates") from error
    if len(data) > MAX_INTENT_BYTES:
        raise BadIntent(f"intent: expected at most {MAX_INTENT_BYTES} bytes, found {len(data)}")
    return data


def sha256(canonical_form: bytes) -> str:
    """The name of the plan with this canonical form: 64 hex digits."""
    return hashlib.sha256(canonical_form).hexdigest()


def _check(value: Any, where: str, depth: int) -> None:
    """Raise BadIntent for a value that RFC 8785 would not write alike everywhere, naming its path."""
    # Bounded before rfc8785 is called, which recurses as this function does.
    if depth > MAX_DEPTH:
        raise BadIntent(f"intent: expected at most {MAX_DEPTH} levels of nesting")
    if isinstance(value, dict):
        for name, inner in value.items():
            _check(inner, f"{where}.{name}"[:200], depth + 1)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check(inner, f"{where}[{index}]"[:200], depth + 1)
    elif isinstance(value, float):
        raise BadIntent(f"{where}: expected no fractions")
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) > _LARGEST:
        raise BadIntent(f"{where}: expected an integer within ±(2^53-1)")
