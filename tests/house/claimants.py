"""All claims to one id decided at once, for tests that compare the whole outcome."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from latticed.model.verdict import Refused
from latticed.trust.claims import Claimants, ClaimPin, IdClaim


class Settled(NamedTuple):
    winner: IdClaim | None
    refused: Mapping[str, Refused]


def resolve(claims: Iterable[IdClaim], pin: ClaimPin | None) -> Settled:
    """The bundle that is the plugin, and why each of the others is not."""
    found = Claimants(claims)
    refused = {claim.name: why for claim in found if (why := found.refusal(claim.name, pin)) is not None}
    return Settled(found.winner(pin), refused)
