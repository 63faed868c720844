"""What became of one try at a provider."""

from __future__ import annotations

from dataclasses import dataclass

from latticed.model.errors import Fault, FaultError


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateJob:
    """What is to be true at the provider: the record of this name and type has this address and no other."""

    name: str
    type: str
    address: str
    ttl: int
    zone: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The provider has the address, by its own word; `changed` when it had another one or none before."""

    address: str
    changed: bool


@dataclass(frozen=True, slots=True)
class UpdateFailed(Fault):
    """It has not, as far as is known. `lasting`: the provider said no, and would say so again.

    `retry_after_s`: what the provider asked for, 0 when nothing.
    """

    lasting: bool = False
    retry_after_s: float = 0.0


class ProviderRefused(FaultError):
    """Ends a try; `fault` is its outcome."""

    fault: UpdateFailed

    def __init__(self, fault: UpdateFailed) -> None:
        super().__init__(fault)


def denied(code: str, reason: str) -> ProviderRefused:
    """The provider said no; trying again is no use."""
    return ProviderRefused(UpdateFailed(code, reason, lasting=True))


def transient(code: str, reason: str, *, retry_after_s: float = 0.0) -> ProviderRefused:
    """It may go better later."""
    return ProviderRefused(UpdateFailed(code, reason, retry_after_s=retry_after_s))
