"""What a check says about its target, and the state and alert that follow from a result. Pure.

Probes report what they observed: an answer, or the exception that ended the check. Whether that is `up`, `down` or
says nothing about the target is decided here. Then, by state:

    unknown ─ up ────────────────► up ◄──────────────► down ◄──── unknown
                                     `failures` in a row      (`failures` in a row)

A transition alerts, except the first `up`: a new target that is fine is no news.
"""

from __future__ import annotations

import errno
import ssl
from typing import TYPE_CHECKING, Final, Literal, assert_never

from latticed.host.call import HostError
from latticed.kit import text
from latticed.kit.value import Value
from latticed.ledger.monitors import Result
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from latticed.host.monitor.body_search import BodyFinding
    from latticed.host.monitor.spec import MonitorSpec

State = Literal["unknown", "up", "down"]
Outcome = Literal["up", "down", "unsupported", "blocked", "error"]
"""`unsupported`: this host cannot make such a check; `blocked`: the egress guard forbids it; `error`: the check failed
for a reason that says nothing about the target.
"""
REASON_CHARACTERS: Final = 200
"""Reasons are cut to this: they may contain text of the peer, and hundreds per monitor are stored."""
UP: Final = Result(outcome="up")
INTERNAL: Final = Result(outcome="error", code="internal", reason="the check failed, see the daemon's log")

_DAY_S: Final = 86_400
_CERTIFICATE_EXPIRED: Final = 10  # X509_V_ERR_CERT_HAS_EXPIRED
# Errors that the target, or the way to it, causes: `down`, with these codes. Errors in neither table are `failed`.
_OF_TARGET: Final = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
    errno.ENETUNREACH: "unreachable",
    errno.EHOSTUNREACH: "unreachable",
    errno.ETIMEDOUT: "timeout",
}
# Errors that say nothing about the target: `error`, so no alert.
_OF_THIS_HOST: Final = {
    **dict.fromkeys((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM), "no_resources"),
    errno.EADDRNOTAVAIL: "no_resources",  # no port is free, or no address to come from
    errno.EACCES: "not_permitted",  # this host's own firewall or security module
    errno.EPERM: "not_permitted",
}
# By `BodyFinding.kind`: outcome, code, and reason with a place for `BodyFinding.detail`.
_OF_BODY: Final[dict[str, tuple[Outcome, str, str]]] = {
    "found": ("up", "", ""),
    "absent": ("down", "body_mismatch", "expected words are not in the body"),
    "corrupt": ("down", "protocol_error", "the body is not what it says it is"),
    "cut_short": ("down", "protocol_error", "the body ends too early"),
    "too_large": (
        "error",
        "body_too_large",
        "expected words are not in the first {} KiB of the body, and no more is looked at",
    ),
    "coding": ("error", "content_coding", "the body comes in the Content-Encoding {}"),
    "charset": ("error", "charset_unknown", "the body comes in the charset {}"),
    "no_charset": ("error", "charset_unknown", "it names no charset and is not UTF-8"),
}


class BadAnswer(Exception):
    """What was received is not an HTTP answer, or not a whole one."""


class HeaderTooLarge(Exception):
    """An answer whose header is larger than what this host parses; it may be a good one."""


class PingUnsupported(Exception):
    """This process may not open a socket for ICMP echoes."""


CheckError = OSError | HostError | BadAnswer | HeaderTooLarge | PingUnsupported
"""What may end a check without an answer; `of_error` knows each of these."""


class HttpAnswer(Value, frozen=True, kw_only=True):
    """What an HTTP check observed. `expires_s`: when the certificate ends, seconds since the epoch, 0 without TLS;
    `body` None: not searched.
    """

    status: int
    expires_s: int
    body: BodyFinding | None = None


def is_expected(status: int, spec: MonitorSpec) -> bool:
    """Whether an answer with this status can be `up`: one of `spec.statuses`, or 200 to 399 when there are none."""
    return status in spec.statuses if spec.statuses else 200 <= status < 400


def of_answer(answer: HttpAnswer, spec: MonitorSpec, *, now_s: float) -> Result:
    """The result that an HTTP answer gives: status is judged first, then body, then certificate; the first that is not
    as expected counts. `now_s`: wall clock, seconds since the epoch.
    """

    # Status and end of the certificate are in each result, whatever was wrong.
    def result(outcome: Outcome, code: str = "", reason: str = "") -> Result:
        return Result(
            outcome=outcome,
            code=code,
            reason=_shown(reason),
            http_status=answer.status,
            expires_at=answer.expires_s * 1_000_000,
        )

    if not is_expected(answer.status, spec):
        wanted = ", ".join(map(str, spec.statuses)) or "200 to 399"
        return result("down", "status_unexpected", f"expected status {wanted}, found {answer.status}")
    if answer.body is not None and answer.body.kind != "found":
        outcome, code, reason = _OF_BODY[answer.body.kind]
        return result(outcome, code, reason.format(answer.body.detail))
    if spec.certificate_days and answer.expires_s:
        # One that has expired does not get here: the TLS handshake fails before there is an answer (`of_error`).
        left_s = answer.expires_s - int(now_s)
        if left_s < spec.certificate_days * _DAY_S:
            reason = f"expected a certificate that is good for {spec.certificate_days} days, found {left_s // _DAY_S}"
            return result("down", "certificate_expiring", reason)
    return result("up")


def of_error(error: CheckError, *, late: str) -> Result:
    """The result that the error which ended a check gives; `late` is the reason when the check's own deadline passed.

    The order of the cases matters, as most are subclasses of OSError.
    """
    match error:
        case HostError():
            return _of_denial(error)
        case BadAnswer():
            return down("protocol_error", str(error))
        case HeaderTooLarge():
            return _no_verdict("error", "header_too_large", str(error))
        case PingUnsupported():
            return _no_verdict("unsupported", "unsupported", str(error))
        case TimeoutError(errno=None):  # of asyncio.timeout; the system's own has an errno
            return down("timeout", late)
        case ssl.SSLCertVerificationError():
            expired = error.verify_code == _CERTIFICATE_EXPIRED
            return down("certificate_expired" if expired else "certificate_invalid", error.verify_message)
        case ssl.SSLError():  # its errno is not one of the system's
            return down("tls_failed", error.reason or "the TLS handshake failed")
        case OSError():
            number = error.errno or 0
            # PermissionError without a number: an address that the guard has not allowed (`AllowedAddresses`).
            if isinstance(error, PermissionError) or number in _OF_THIS_HOST:
                code = _OF_THIS_HOST.get(number, "not_permitted")
                return _no_verdict("error", code, error.strerror or str(error))
            return down(_OF_TARGET.get(number, "failed"), error.strerror or "the connection failed")
        case _:
            assert_never(error)


def down(code: str, reason: str = "") -> Result:
    """A `down` result with this code; `reason` is escaped and cut."""
    return Result(outcome="down", code=code, reason=_shown(reason))


def _of_denial(error: HostError) -> Result:
    """The result of a refusal by the egress guard: down for a name without an address or a late look-up, blocked for a
    target that may not be connected to.
    """
    match error.code:
        case Denial.DEADLINE_EXCEEDED:
            return down("timeout", error.reason)
        case Denial.SERVICE_UNAVAILABLE:
            return down("unresolved", error.reason)
        # Too many look-ups of this plugin are unanswered: the resolver's trouble, not the target's.
        case Denial.RATE_LIMITED:
            return _no_verdict("error", "no_resources", error.reason)
        case _:
            return _no_verdict("blocked", error.code, error.reason)


def _no_verdict(outcome: Literal["unsupported", "blocked", "error"], code: str, reason: str) -> Result:
    """A result that does not change the state."""
    return Result(outcome=outcome, code=code, reason=_shown(reason))


def _shown(reason: str) -> str:
    """A reason as it is stored: one line, invisible characters escaped, at most REASON_CHARACTERS."""
    return text.sanitise(reason, REASON_CHARACTERS)


class MonitorStatus(Value, frozen=True, kw_only=True):
    """The state of a monitor; `against`: how many results in a row, so far, were unlike `state`; below `failures`."""

    state: State = "unknown"
    against: int = 0


def decide(
    before: MonitorStatus, outcome: Outcome, failures: int
) -> tuple[MonitorStatus, Literal["up", "down"] | None]:
    """The status after one more result, and the alert that is due, or None.

        up, then down, with failures=2   ->  (up, against 1), None
        and down once more               ->  (down, against 0), "down"
        unknown, then up                 ->  (up, against 0), None

    What says nothing about the target (unsupported, blocked, error) changes nothing, not even `against`. `failures` is
    at least 1.
    """
    match outcome:
        case "unsupported" | "blocked" | "error":
            return before, None
        case "up" | "down":
            pass
        case _:
            assert_never(outcome)
    # One `up` ends `unknown`: that a new target is fine needs no confirmation, and is no alert.
    if outcome == before.state or (before.state == "unknown" and outcome == "up"):
        return MonitorStatus(state=outcome), None
    against = before.against + 1
    if against < failures:
        return MonitorStatus(state=before.state, against=against), None
    return MonitorStatus(state=outcome), outcome
