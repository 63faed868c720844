"""Who may claim an id when several verified bundles do (architecture, Lifecycle; contracts §5).

Adding a bundle must never stop or replace a plugin: the claim that matches the record wins, newcomers are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latticed.kit.value import Value
from latticed.model.verdict import Code, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from latticed.model.verdict import Verified

    _Signer = tuple[str, bool]
    """The publisher named in the manifest, and whether the manifest is signed."""


class IdClaim(Value, frozen=True, kw_only=True):
    """A verified bundle that has the id in its manifest; `name` is `<directory label>/<bundle name>`."""

    name: str
    verdict: Verified


class ClaimPin(Value, frozen=True, kw_only=True):
    """What the record of an id pins: publisher and signedness. `identity` and `source` say which bundle it was last."""

    publisher: str
    signed: bool
    identity: str
    source: str


class Claimants:
    """The claims to one id, indexed: each operation takes constant time, however many copies there are.

    Another publisher or signedness than the pin's is `publisher_changed`. Of the rest, the first of these wins alone:
    the pinned identity at the pinned source; the only one of the pinned identity; the one at the pinned source; the
    only one there is. If none of these is a single claim, all are `duplicate_id`.
    """

    __slots__ = ("_claims", "_names", "_sizes")

    def __init__(self, claims: Iterable[IdClaim] = ()) -> None:
        self._claims: dict[str, IdClaim] = {}
        # Both are empty below two claims: nearly every id has one, of thousands, and an index takes a kilobyte.
        self._names: dict[_Signer, dict[str, dict[str, None]]] = {}  # by signer, then identity
        self._sizes: dict[_Signer, int] = {}  # claims of each signer
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
        if len(self) > 1:
            # The second claim builds the index, with the first in it; later ones are added.
            for one in (claim,) if self._names else self:
                signer = _signer(one)
                self._names.setdefault(signer, {}).setdefault(one.verdict.identity, {})[one.name] = None
                self._sizes[signer] = self._sizes.get(signer, 0) + 1

    def drop(self, name: str) -> None:
        """Take out the claim of this name, if there is one."""
        claim = self._claims.pop(name, None)
        if len(self) < 2:
            self._names, self._sizes = {}, {}
        elif claim is not None:
            signer, identity = _signer(claim), claim.verdict.identity
            self._sizes[signer] -= 1
            del self._names[signer][identity][name]
            if not self._names[signer][identity]:
                del self._names[signer][identity]
            if not self._names[signer]:
                del self._names[signer], self._sizes[signer]

    def winner(self, pin: ClaimPin | None) -> IdClaim | None:
        """The winning claim; None when there is none or the claims are ambiguous."""
        if len(self) < 2:
            return next((one for one in self if pin is None or _signer(one) == _pinned(pin)), None)
        if pin is None:
            return None
        signer = _pinned(pin)
        identities = self._names.get(signer, {})
        # The only claim of the pinned signer wins, whatever its identity: an upgrade is a candidate.
        if self._sizes.get(signer) == 1:
            return self._claims[next(iter(next(iter(identities.values()))))]
        # Of several the one at the record's source, unless that is of another identity and just one has the pinned one.
        there = self._claims.get(pin.source)
        if there is not None and _signer(there) != signer:
            there = None
        same = identities.get(pin.identity, {})
        if there is not None and (there.name in same or len(same) != 1):
            return there
        return self._claims[next(iter(same))] if len(same) == 1 else None

    def refusal(self, name: str, pin: ClaimPin | None) -> Refused | None:
        """Why the claim of this name does not win; None for the winner and for an unknown name."""
        claim, winner = self._claims.get(name), self.winner(pin)
        if claim is None or claim is winner:
            return None
        if pin is not None and _signer(claim) != _pinned(pin):
            return _publisher_changed(claim, pin)
        rivals = len(self) if pin is None else self._sizes[_pinned(pin)]
        return _duplicate(claim, winner, rivals)


def _signer(claim: IdClaim) -> _Signer:
    """Who a bundle claims to be of: bundles of another one never compete for a pinned id."""
    manifest = claim.verdict.manifest
    return manifest.publisher, manifest.signed


def _pinned(pin: ClaimPin) -> _Signer:
    """The publisher and signedness that a bundle must have to be the pinned plugin."""
    return pin.publisher, pin.signed


def _publisher_changed(claim: IdClaim, pin: ClaimPin) -> Refused:
    """The refusal of a claim by another publisher than the record's."""
    manifest = claim.verdict.manifest
    expected, found = (_described(one.publisher, signed=one.signed) for one in (pin, manifest))
    return Refused(
        code=Code.PUBLISHER_CHANGED,
        reason=f"expected {manifest.id} from {expected}, found {found}",
        hint="if the plugin has changed hands, accept the new publisher by name",
        manifest=manifest,
    )


def _duplicate(claim: IdClaim, winner: IdClaim | None, rivals: int) -> Refused:
    """The refusal of a claim that `winner` wins, or that `rivals` make ambiguous (winner None)."""
    manifest = claim.verdict.manifest
    return Refused(
        code=Code.DUPLICATE_ID,
        reason=f"expected one bundle with the id {manifest.id}, found {rivals}"
        + (", of which another matches the record" if winner else " and no record that tells which one is meant"),
        hint=f"keep one bundle of {manifest.id} and remove the others",
        manifest=manifest,
    )


def _described(publisher: str, *, signed: bool) -> str:
    """The signer of a bundle in words, for a reason."""
    return f"publisher {publisher}" if signed else "nobody (unsigned)"
