"""Redirects: whether one may be followed, and which headers and body are sent on (RFC 9110, section 15.4)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from latticed.host.call import HostError
from latticed.host.egress import headers, url
from latticed.kit.value import Value
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.host.egress.headers import Header
    from latticed.host.egress.url import Target

MAX_REDIRECTS: Final = 5
STATUSES: Final = frozenset({301, 302, 303, 307, 308})
"""Those with a Location to follow (RFC 9110, section 15.4). 300, 304 and 305 are answers like any other."""


class EgressRequest(Value, frozen=True, kw_only=True):
    """One request, ready to be sent.

    `secret`: names, in lower case, of the headers that hold secrets; `secret_body`: whether the body holds any.
    """

    method: str
    target: Target
    header: tuple[Header, ...]
    body: bytes = b""
    secret: frozenset[str] = frozenset()
    secret_body: bool = False


def follow(
    request: EgressRequest, status: int, location: str | None, *, is_bound: Callable[[Target], bool]
) -> EgressRequest:
    """The next request after an answer with a status of STATUSES; HostError `egress_blocked` when it may not be made.

    `location`: the Location header, relative or absolute. `is_bound` says which origins the operator bound: no redirect
    leads out of one, or into one. The guard has yet to judge the new target.
    """
    if location is None:
        raise HostError(Denial.SERVICE_UNAVAILABLE, f"{request.target.shown} answered {status} without a Location")
    target = _target(request.target, location)
    if target.origin != request.target.origin:
        _check_crossing(request.target, target, is_bound)
    moved = replace(request, target=target)
    if request.method != "HEAD" and (status == 303 or (status in {301, 302} and request.method == "POST")):
        # As browsers do (RFC 9110, section 15.4): after a POST the target is fetched with GET, without the body.
        moved = replace(moved, method="GET", body=b"", secret_body=False, header=headers.without_body(moved.header))
    if target.origin == request.target.origin:
        return moved
    # 307 and 308 repeat the body; headers with secrets are dropped in `across_origins`, a body cannot be.
    if moved.secret_body:
        raise _blocked("it leads a body that holds a secret to another origin")
    return replace(moved, header=headers.across_origins(moved.header, request.secret))


def _target(base: Target, location: str) -> Target:
    """As `url.refer`, with HostError egress_blocked for every refusal."""
    try:
        return url.refer(base, location)
    except HostError as error:
        raise _blocked(f"it leads to no plain target ({error.reason})") from error


def _check_crossing(old: Target, new: Target, is_bound: Callable[[Target], bool]) -> None:
    """HostError when a redirect may not lead from the origin of `old` to that of `new`."""
    if old.scheme == "https" and new.scheme != "https":
        raise _blocked(f"it leads from https to {new.scheme}")
    if is_bound(old):
        raise _blocked(f"it leads away from the bound origin {old.shown}")
    if is_bound(new):
        raise _blocked(f"it leads into the bound origin {new.shown}, which only the caller itself may name")


def _blocked(reason: str) -> HostError:
    return HostError(Denial.EGRESS_BLOCKED, f"redirect not followed: {reason}")
