"""Who may claim an id when several verified bundles do (architecture, Lifecycle; contracts §5).

So that dropping a bundle can never stop or replace a plugin: whoever matches the record stays, newcomers are refused.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from latticed.model.verdict import Code, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from latticed.model.verdict import Verified

    _Hand = tuple[str, bool]
    """Publisher, and whether it signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdClaim:
    """A verified bundle that says it is a plugin; `name` is its key among the bundle directories."""

    name: str
    verdict: Verified


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimPin:
    """What the record of an id holds fast: publisher and signedness, and which bundle it last was."""

    publisher: str
    signed: bool
    identity: str
    source: str


class Claimants:
    """The claims to one id, indexed: a change, a winner or one refusal costs the same however many copies there are.

    Another publisher or signedness than the pin's is `publisher_changed`. Of the rest, the first of these wins alone:
    the pinned identity at the pinned source; the only one of the pinned identity; the one at the pinned source; the
    only one there is. If none of these is a single claim, all are `duplicate_id`.
    """

    def __init__(self, claims: Iterable[IdClaim] = ()) -> None:
        self._claims: dict[str, IdClaim] = {}
        self._hands: dict[_Hand, dict[str, dict[str, None]]] = {}  # by hand, then identity: names
        self._sizes: Counter[_Hand] = Counter()
        for claim in claims:
            self.put(claim)

    def __len__(self) -> int:
        return len(self._claims)

    def __iter__(self) -> Iterator[IdClaim]:
        return iter(self._claims.values())

    def put(self, claim: IdClaim) -> None:
        """Add a claim, in place of the one of the same name."""
        self.drop(claim.name)
        self._claims[claim.name] = claim
        hand = _hand_of(claim)
        self._hands.setdefault(hand, {}).setdefault(claim.verdict.identity, {})[claim.name] = None
        self._sizes[hand] += 1

    def drop(self, name: str) -> None:
        """Take out the claim of this name, if there is one."""
        claim = self._claims.pop(name, None)
        if claim is None:
            return
        hand, identity = _hand_of(claim), claim.verdict.identity
        self._sizes[hand] -= 1
        del self._hands[hand][identity][name]
        if not self._hands[hand][identity]:
            del self._hands[hand][identity]
        if not self._hands[hand]:
            del self._hands[hand], self._sizes[hand]

    def winner(self, pin: ClaimPin | None) -> IdClaim | None:
        """Who is the plugin; nobody, when it cannot be told."""
        if pin is None:
            return next(iter(self)) if len(self) == 1 else None
        hand = (pin.publisher, pin.signed)
        identities = self._hands.get(hand, {})
        if self._sizes[hand] == 1:
            return self._claims[next(iter(next(iter(identities.values()))))]
        there = self._claims.get(pin.source)
        if there is not None and _hand_of(there) != hand:
            there = None
        same = identities.get(pin.identity, {})
        if there is not None and (there.name in same or len(same) != 1):
            return there
        return self._claims[next(iter(same))] if len(same) == 1 else None

    def refusal(self, name: str, pin: ClaimPin | None) -> Refused | None:
        """Why the claim of this name is not the plugin; None for the winner, and for a name that claims nothing."""
        claim, winner = self._claims.get(name), self.winner(pin)
        if claim is None or claim is winner:
            return None
        if pin is not None and _hand_of(claim) != (pin.publisher, pin.signed):
            return _publisher_changed(claim, pin)
        rivals = len(self) if pin is None else self._sizes[pin.publisher, pin.signed]
        return _duplicate(claim, winner, rivals)


def _hand_of(claim: IdClaim) -> _Hand:
    manifest = claim.verdict.manifest
    return manifest.publisher, manifest.signed


def _publisher_changed(claim: IdClaim, pin: ClaimPin) -> Refused:
    manifest = claim.verdict.manifest
    expected = _hand(pin.publisher, signed=pin.signed)
    return Refused(
        code=Code.PUBLISHER_CHANGED,
        reason=f"expected {manifest.id} from {expected}, found {_hand(manifest.publisher, signed=manifest.signed)}",
        hint="if the plugin has changed hands, accept the new publisher by name",
        manifest=manifest,
    )


def _duplicate(claim: IdClaim, winner: IdClaim | None, rivals: int) -> Refused:
    manifest = claim.verdict.manifest
    return Refused(
        code=Code.DUPLICATE_ID,
        reason=f"expected one bundle with the id {manifest.id}, found {rivals}"
        + (", of which another matches the record" if winner else " and no record that tells which one is meant"),
        hint=f"keep one bundle of {manifest.id} and remove the others",
        manifest=manifest,
    )


def _hand(publisher: str, *, signed: bool) -> str:
    return f"publisher {publisher}" if signed else "nobody (unsigned)"
