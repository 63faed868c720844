"""Who may claim an id when several verified bundles do (architecture, Lifecycle; contracts §5).

So that dropping a bundle can never stop or replace a plugin: whoever matches the record stays, newcomers are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from latticed.model.verdict import Code, Refused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from latticed.model.verdict import Verified


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A verified bundle that says it is a plugin; `name` is its key among the bundle directories."""

    name: str
    verdict: Verified


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """What the record of an id holds fast: publisher and signedness, and which bundle it last was."""

    publisher: str
    signed: bool
    identity: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """Who is the plugin (nobody, when it cannot be told), and why the others are not."""

    winner: Claim | None
    refused: Mapping[str, Refused]


def resolve(claims: Sequence[Claim], pin: Pin | None) -> Claims:
    """Settle the claims to one id, all of the same id and with different names.

    Another publisher or signedness than the pin's is `publisher_changed`. Of the rest, the first of these wins alone:
    the pinned identity at the pinned source; the only one of the pinned identity; the one at the pinned source; the
    only one there is. If none of these is a single claim, all are `duplicate_id`.
    """
    refused = {claim.name: _publisher_changed(claim, pin) for claim in claims if pin and not _same_hand(claim, pin)}
    rest = [claim for claim in claims if claim.name not in refused]
    winner = _choose(rest, pin)
    refused |= {claim.name: _duplicate(claim, winner, rest) for claim in rest if claim is not winner}
    return Claims(winner=winner, refused=MappingProxyType(refused))


def _choose(claims: Sequence[Claim], pin: Pin | None) -> Claim | None:
    if len(claims) == 1:
        return claims[0]
    if pin is None:
        return None
    same = [claim for claim in claims if claim.verdict.identity == pin.identity]
    there = [claim for claim in claims if claim.name == pin.source]
    both = [claim for claim in same if claim in there]
    return next((found[0] for found in (both, same, there) if len(found) == 1), None)


def _same_hand(claim: Claim, pin: Pin) -> bool:
    manifest = claim.verdict.manifest
    return (manifest.publisher, manifest.signed) == (pin.publisher, pin.signed)


def _publisher_changed(claim: Claim, pin: Pin) -> Refused:
    manifest = claim.verdict.manifest
    expected = _hand(pin.publisher, signed=pin.signed)
    return Refused(
        code=Code.PUBLISHER_CHANGED,
        reason=f"expected {manifest.id} from {expected}, found {_hand(manifest.publisher, signed=manifest.signed)}",
        hint="if the plugin has changed hands, accept the new publisher by name",
        manifest=manifest,
    )


def _duplicate(claim: Claim, winner: Claim | None, rivals: Sequence[Claim]) -> Refused:
    manifest = claim.verdict.manifest
    found = f"found {len(rivals)}"
    return Refused(
        code=Code.DUPLICATE_ID,
        reason=f"expected one bundle with the id {manifest.id}, {found}"
        + (", of which another matches the record" if winner else " and no record that tells which one is meant"),
        hint=f"keep one bundle of {manifest.id} and remove the others",
        manifest=manifest,
    )


def _hand(publisher: str, *, signed: bool) -> str:
    return f"publisher {publisher}" if signed else "nobody (unsigned)"
