"""The access rules for host calls, as one pure function over frozen values."""

from __future__ import annotations

from latticed.kit.value import Value
from latticed.model import hostcall
from latticed.model.hostcall import Denial, Denied


class Rights(Value, frozen=True, kw_only=True):
    """Capabilities that a verified manifest declares, and those that the operator granted; both make one effective.

    `calls`: the only calls that may be made, of a version that stands by (`hostcall.IDLE`); None: all.
    """

    declared: frozenset[str]
    granted: frozenset[str]
    calls: frozenset[str] | None = None


class CallAttempt(Value, frozen=True, kw_only=True):
    """A call as far as access is concerned; `size` is the length in bytes of its encoded parameters; `within_rate`:
    whether every bucket that applies had a token.
    """

    method: str
    size: int
    within_rate: bool


class Allow(Value, frozen=True, kw_only=True):
    """The call may be carried out, by this effective capability."""

    capability: str


def decide(asked: CallAttempt, rights: Rights, *, max_bytes: int) -> Allow | Denied:
    """Whether the call may be carried out, or the first rule that refuses it. `max_bytes` bounds `asked.size`. Pure."""
    # The first rule that fails answers: what a plugin may not do at all is said before size and rate.
    capability = hostcall.CAPABILITY_OF.get(asked.method)
    if capability is None:
        return Denied(Denial.NOT_FOUND, "there is no such host call")
    if capability not in rights.declared:
        return Denied(Denial.CAPABILITY_DENIED, f"the manifest does not declare {capability}")
    if capability not in rights.granted:
        return Denied(Denial.CAPABILITY_NOT_GRANTED, f"the operator has not granted {capability}")
    if rights.calls is not None and asked.method not in rights.calls:
        return Denied(Denial.SERVICE_UNAVAILABLE, "another version of this plugin is in charge, this one stands by")
    if asked.size > max_bytes:
        return Denied(Denial.TOO_LARGE, f"expected at most {max_bytes} bytes, found {asked.size}")
    if not asked.within_rate:
        return Denied(Denial.RATE_LIMITED, "too many calls, try again later")
    return Allow(capability=capability)
