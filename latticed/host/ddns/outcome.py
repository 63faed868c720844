"""What is to be published, and the outcome of one try at a provider: `Published` or `UpdateFailed`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from latticed.kit.value import Value
from latticed.model.errors import FaultError
from latticed.model.fault import Fault

UNPROVEN_S: Final = 3_600.0
"""What was refused without a valid signature is tried again no sooner, in seconds: usually it is true."""


class UpdateJob(Value, frozen=True, kw_only=True):
    """What to publish: the record of this name and type (`A`, `AAAA`) gets this single address. `ttl` in seconds,
    `spec.AUTOMATIC` for the provider's own choice; `zone` empty: to be found.
    """

    name: str
    type: str
    address: str
    ttl: int
    zone: str = ""


class Published(Value, frozen=True, kw_only=True):
    """The provider has confirmed the address; `changed` when it had another address or TTL, or none, before."""

    address: str
    changed: bool


@dataclass(frozen=True, slots=True)
class UpdateFailed(Fault):
    """The address is not known to be published; `code` and `reason` are shown by `ddns.status`.

    `lasting`: the provider refused it, and a retry would not help. `retry_after_s`: the provider's Retry-After, for all
    records of the plugin there, 0 without one; `again_s`: this record alone is tried again no sooner.
    """

    lasting: bool = False
    retry_after_s: float = 0.0
    again_s: float = 0.0


class ProviderRefused(FaultError):
    """Raised within a try to end it; `fault` is its outcome. `Providers.publish` turns it into that value."""

    def __init__(self, fault: UpdateFailed) -> None:
        super().__init__(fault.code, fault.reason, fault.hint)
        self.fault = fault


def denied(code: str, reason: str) -> ProviderRefused:
    """The exception for what the provider refused: it is not tried again until the record is changed."""
    return ProviderRefused(UpdateFailed(code, reason, lasting=True))


def transient(code: str, reason: str, *, retry_after_s: float = 0.0) -> ProviderRefused:
    """The exception for what may work later: it is tried again, after `retry_after_s` at the earliest."""
    return ProviderRefused(UpdateFailed(code, reason, retry_after_s=retry_after_s))


def unproven(refused: ProviderRefused) -> ProviderRefused:
    """A refusal that came without a valid signature: it may be forged, so a denial is only tried again late."""
    if not refused.fault.lasting:
        return refused
    return ProviderRefused(replace(refused.fault, lasting=False, again_s=UNPROVEN_S))
