"""Parameters of monitor.put, validated once: targets in normal form, numbers within bounds.

    http  "HTTP://Web.Example/x?y"  ->  "http://web.example/x?y"
    tcp   "[::1]:22"                ->  "[::1]:22"
    ping  "Web.Example"             ->  "web.example"

A `MonitorPut` is what a plugin asks for, a `MonitorSpec` what is stored and checked.
"""

from __future__ import annotations

import re
from typing import Final, Literal, TypeVar

import msgspec

from latticed.host.call import HostError, Params, Whole
from latticed.host.egress import url
from latticed.host.secret.references import REFERENCE
from latticed.kit import text
from latticed.model import hosts
from latticed.model.hostcall import Denial

Kind = Literal["http", "tcp", "ping"]
Number = TypeVar("Number", int, float)

# Bounds of the parameters, both included. The least interval is the operator's (`monitor.min_interval_s`).
LONGEST_INTERVAL_S: Final = 86_400.0
TIMEOUT_S: Final = (0.1, 60.0)
FAILURES: Final = (1, 10)
CERTIFICATE_DAYS: Final = (0, 365)
STATUSES: Final = (100, 599)
MAX_STATUSES: Final = 16
MAX_TARGET_CHARACTERS: Final = 2_048
MAX_BODY_CHARACTERS: Final = 256
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")
# Fields of kind http alone, with the defaults that mean "not given".
_HTTP_ONLY: Final = {"statuses": (), "body": "", "certificate_days": 0}


class MonitorPut(Params, frozen=True):
    """Parameters of monitor.put."""

    name: str
    """1 to 64 letters, digits, `.`, `_`, `-`; names are a plugin's own."""
    kind: Kind
    """How the target is checked."""
    target: str
    """http: a URL; tcp: `host:port`; ping: a host. No user name, no `${secret:…}`."""
    interval_s: float = 30.0
    """Seconds between two checks, give or take a tenth: `monitor.min_interval_s` to 86,400."""
    timeout_s: float = 5.0
    """Seconds for everything, the look-up too: 0.1 to 60, at most `interval_s`."""
    failures: Whole = 2
    """1 to 10: so many equal results in a row change its state."""
    statuses: tuple[Whole, ...] = ()
    """http: the statuses that are fine; empty: 200 to 399."""
    body: str = ""
    """http: up to 256 characters that must be in the first 256 KiB of the body."""
    certificate_days: Whole = 0
    """http: so many days the certificate must still be good; 0: not judged."""
    shared: bool = False
    """Whether other plugins with `monitor:read` see it."""


class MonitorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """As `MonitorPut`, checked; `target` is a URL, `host:port` or a host, in normal form.

    Its JSON is stored in the ledger (`encode`): a field that is added needs a default, or stored rows no longer decode.
    """

    kind: Kind
    target: str
    interval_s: float
    timeout_s: float
    failures: int
    statuses: tuple[int, ...]
    body: str
    certificate_days: int
    shared: bool

    @property
    def shown(self) -> str:
        """The target without its query, which may contain a token."""
        return self.target.partition("?")[0]

    def differs_in_kind(self, other: MonitorSpec) -> bool:
        """Whether kind or target differ: then results of one say nothing about the other."""
        return (self.kind, self.target) != (other.kind, other.target)


def checked(asked: MonitorPut, *, least_interval_s: float) -> MonitorSpec:
    """The spec. `least_interval_s`: the operator's lower bound.

    HostError: bad_params names the field and what was expected, egress_blocked says that the target can never be
    allowed. Whether this plugin may connect to it is not judged here: the guard does that at each check.
    """
    if not _NAME.fullmatch(asked.name):
        raise bad("name", "1 to 64 letters, digits, '.', '_', '-', first a letter or digit")
    interval_s = _within("interval_s", asked.interval_s, (least_interval_s, LONGEST_INTERVAL_S))
    timeout_s = _within("timeout_s", asked.timeout_s, TIMEOUT_S)
    if timeout_s > interval_s:
        raise bad("timeout_s", "at most interval_s, for checks of one monitor never overlap")
    # Refused, not ignored: who sets them expects them to be checked.
    if asked.kind != "http" and (odd := [name for name, usual in _HTTP_ONLY.items() if getattr(asked, name) != usual]):
        raise bad(odd[0], f"nothing, for it says nothing about kind {asked.kind}")
    if len(asked.statuses) > MAX_STATUSES:
        raise bad("statuses", f"at most {MAX_STATUSES}")
    if len(asked.body) > MAX_BODY_CHARACTERS or any(text.is_control(c) for c in asked.body):
        raise bad("body", f"at most {MAX_BODY_CHARACTERS} characters, none of them a control character")
    return MonitorSpec(
        kind=asked.kind,
        target=_target(asked.kind, asked.target),
        interval_s=interval_s,
        timeout_s=timeout_s,
        failures=_within("failures", asked.failures, FAILURES),
        statuses=tuple(sorted({_within("statuses", one, STATUSES) for one in asked.statuses})),
        body=asked.body,
        certificate_days=_within("certificate_days", asked.certificate_days, CERTIFICATE_DAYS),
        shared=asked.shared,
    )


def encode(spec: MonitorSpec) -> str:
    """A spec as it is stored in a row of the ledger: JSON."""
    return msgspec.json.encode(spec).decode("utf-8")


def decode(stored: str) -> MonitorSpec:
    """What `encode` wrote; msgspec.ValidationError or DecodeError for anything else."""
    return msgspec.json.decode(stored, type=MonitorSpec)


def host_and_port(target: str) -> tuple[str, int]:
    """The parts of a `host:port` in normal form, the host without brackets: "[::1]:22" gives ("::1", 22)."""
    host, _, port = target.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def bad(name: str, expected: str) -> HostError:
    """HostError bad_params for a field: `name: expected …`."""
    return HostError(Denial.BAD_PARAMS, f"{name}: expected {expected}")


def _target(kind: Kind, given: str) -> str:
    """A target in the normal form of its kind; HostError bad_params or egress_blocked."""
    if len(given) > MAX_TARGET_CHARACTERS:
        raise bad("target", f"at most {MAX_TARGET_CHARACTERS} characters")
    # Targets are shown in lists and results: a secret must not get into one. Refused, because a reference that is not
    # replaced would look like one that is.
    if REFERENCE.search(given):
        raise bad("target", "no secrets: they are not filled in here")
    if kind == "http":
        # Measured again: each character may become twelve when it is percent-encoded, and the target is stored.
        if len(target := str(url.parse(given))) > MAX_TARGET_CHARACTERS:
            raise bad("target", f"at most {MAX_TARGET_CHARACTERS} characters once it is encoded")
        return target
    host, port = given, ""
    if kind == "tcp":
        host, colon, port = given.rpartition(":")
        if not colon or not _PORT.fullmatch(port) or int(port) > url.HIGHEST_PORT:
            raise bad("target", "host:port, an IPv6 address in brackets")
    try:
        bare = kind == "ping" and hosts.address_of(host) is not None  # without a port, IPv6 needs no brackets
        plain = hosts.normal(hosts.bracketed(host) if bare else host)
    except hosts.NotAHost as error:
        raise HostError(Denial.BAD_PARAMS, f"target: {error}") from error
    return f"{hosts.bracketed(plain)}:{port}" if port else plain


def _within(name: str, value: Number, bounds: tuple[Number, Number]) -> Number:
    """The value, if it is within the bounds (both included); HostError bad_params otherwise."""
    low, high = bounds
    if not low <= value <= high:  # in this form NaN is refused too
        raise bad(name, f"{low:g} to {high:g}")
    return value
