"""The outcome of one try at a provider."""

from __future__ import annotations

from dataclasses import dataclass

from latticed.model.errors import Fault, FaultError


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateJob:
    """What to publish: the record of this name and type gets this single address. `ttl` in seconds."""

    name: str
    type: str
    address: str
    ttl: int
    zone: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The provider has confirmed the address; `changed` when it had another one, or none, before."""

    address: str
    changed: bool


@dataclass(frozen=True, slots=True)
class UpdateFailed(Fault):
    """The address is not known to be published. `lasting`: the provider refused it, and a retry would not help.

    `retry_after_s`: the provider's Retry-After, 0 without one.
    """

    lasting: bool = False
    retry_after_s: float = 0.0


class ProviderRefused(FaultError):
    """Ends a try; `fault` is its outcome."""

    fault: UpdateFailed

    def __init__(self, fault: UpdateFailed) -> None:
        super().__init__(fault)


def denied(code: str, reason: str) -> ProviderRefused:
    """The provider refused it: it is not tried again."""
    return ProviderRefused(UpdateFailed(code, reason, lasting=True))


def transient(code: str, reason: str, *, retry_after_s: float = 0.0) -> ProviderRefused:
    """It is tried again later."""
    return ProviderRefused(UpdateFailed(code, reason, retry_after_s=retry_after_s))
