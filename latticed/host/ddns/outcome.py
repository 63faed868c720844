"""What is to be published, and the outcome of one try at a provider: `Published` or `UpdateFailed`."""

from __future__ import annotations

from dataclasses import dataclass

from latticed.kit.value import Value
from latticed.model.errors import FaultError
from latticed.model.fault import Fault


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

    `lasting`: the provider refused it, and a retry would not help. `retry_after_s`: the provider's Retry-After, 0
    without one.
    """

    lasting: bool = False
    retry_after_s: float = 0.0


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
