"""Which plugin answers which HTTP path (system-plugins.md, worker:route), and where the listener for it is.

Runners and the route keeper claim prefixes here; the ingress looks paths up, and listens while there is a claim.
Nothing is served by this module. One table for each listener; used on the event loop only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Final, Protocol

from latticed.kit.value import Value
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from latticed.host.route.own_style import OwnStyle

RESERVED: Final = "/.well-known/"
"""Belongs to no plugin (RFC 8615)."""
MAX_PREFIXES: Final = 16
"""Prefixes of one claim, thus of one manifest."""
MAX_PREFIX_CHARACTERS: Final = 255
MAX_SEGMENTS: Final = 8
"""Also bounds the look-ups of `find` for one request."""
# Characters that no path has unescaped (RFC 3986, section 3.3), and %, which only encoded paths have.
_NOT_IN_PREFIX: Final = frozenset('%?#\\"<>^`{|} ')


class RouteRequest(Value, frozen=True, kw_only=True):
    """A request of an HTTP client: `path` decoded once, with the prefix of its route; `query` decoded pairs in their
    order; `body` the whole body.

    `headers` is a case-insensitive mapping.
    """

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str]
    body: bytes = b""


class RouteResponse(Value, frozen=True, kw_only=True):
    """The answer of a target, complete in memory; the listener adds the security headers.

    `policy` and `cache` replace its Content-Security-Policy and Cache-Control unless empty; `more` are further headers.
    `own`: what a page loads of its plugin's, from which the listener makes the policy.
    """

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200
    policy: str = ""
    cache: str = ""
    more: tuple[tuple[str, str], ...] = ()
    own: OwnStyle | None = None


class RouteTarget(Protocol):
    """Answers the requests below a prefix. `Templated`, `Invoked` and workers implement it; the ingress calls it."""

    @property
    def methods(self) -> frozenset[str]:
        """The HTTP methods that it takes."""
        ...

    async def serve(self, request: RouteRequest) -> RouteResponse:
        """The answer; a Problem becomes an error document with the status of its code. The caller has a deadline."""
        ...


class RouteListener(Value, frozen=True, kw_only=True):
    """Where routes are served: at `url`, or not, because of `fault`; both empty while the listener starts."""

    url: str = ""
    fault: str = ""


NO_LISTENER: Final = RouteListener(fault="nothing listens for routes")


class RouteClaim:
    """Prefixes that one plugin has claimed, and what answers for them."""

    __slots__ = ("plugin_id", "prefixes", "target")

    def __init__(self, plugin_id: str, prefixes: tuple[str, ...], target: RouteTarget) -> None:
        self.plugin_id = plugin_id
        self.prefixes = prefixes
        self.target = target


class RouteTable:
    """Claims by prefix, each ending with a slash; the longest prefix of a path answers.

    `changed` is set whenever a claim is made or released; the ingress clears it. `on_release` is called after a
    release: the listener aborts requests still running under that claim. `listener`: where routes are served now.
    """

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.on_release: Callable[[], None] = lambda: None
        self.listener = NO_LISTENER
        self._claims: dict[str, RouteClaim] = {}
        self._granted: dict[str, RouteClaim] = {}  # the claims at granted prefixes, which are few
        self._depths: Counter[int] = Counter()  # claimed prefixes by number of segments: bounds `find`
        self._deepest = 0
        self._listener_known = asyncio.Event()
        # NO_LISTENER is final until an ingress says otherwise: without one, `wait_for_listener` returns at once.
        self._listener_known.set()

    def claimed(self) -> list[tuple[str, str]]:
        """(prefix, plugin id) of all claims."""
        return [(prefix, claim.plugin_id) for prefix, claim in self._claims.items()]

    @property
    def in_use(self) -> bool:
        """Whether there is any claim."""
        return bool(self._claims)

    # Claiming.

    def check(self, plugin_id: str, prefixes: Iterable[str], *, granted_prefixes: frozenset[str] = frozenset()) -> None:
        """Problem("route_taken") when `plugin_id` may not have all of `prefixes` (each `normalised`); claims nothing.

        `granted_prefixes`: those it may claim besides its own, compared exactly. What it holds itself is no obstacle.
        """
        claimed, granted = tuple(prefixes), {normalised(one) for one in granted_prefixes}
        if len(claimed) > MAX_PREFIXES:
            raise _refused(f"expected at most {MAX_PREFIXES} prefixes, found {len(claimed)}")
        for prefix in claimed:
            if fault := prefix_fault(prefix):
                raise _refused(f"{prefix[:80]!r}: {fault}")
            if not prefix.startswith(own_prefix(plugin_id)) and prefix not in granted:
                raise _refused(f"{prefix} is neither below {own_prefix(plugin_id)} nor declared and granted")
            if (holder := self._holder(prefix, plugin_id)) is not None:
                raise _refused(f"{prefix} belongs to {holder}", f"latticectl disable {holder}")

    def claim(
        self,
        plugin_id: str,
        prefixes: Iterable[str],
        target: RouteTarget,
        *,
        granted_prefixes: frozenset[str] = frozenset(),
    ) -> RouteClaim:
        """Have `target` answer for `prefixes`, all or none; Problem as `check`.

        Replaces what an earlier instance of the same plugin has claimed of them.
        """
        claimed = tuple(dict.fromkeys(prefixes))
        # All are checked before the first is claimed: a refusal leaves nothing half claimed.
        self.check(plugin_id, claimed, granted_prefixes=granted_prefixes)
        claim = RouteClaim(plugin_id, claimed, target)
        # A plugin that starts again replaces the claim of its earlier instance, so no request in between is 404.
        for prefix in claimed:
            if (old := self._claims.get(prefix)) is not None:
                self._drop(prefix, old)
            self._claims[prefix] = claim
            self._depths[prefix.count("/") - 1] += 1
            # `_granted` is what `_holder` searches for a claim of another plugin below an own prefix; without it that
            # would be a walk through all claims.
            if not prefix.startswith(own_prefix(plugin_id)):
                self._granted[prefix] = claim
        self._deepest = max(self._depths, default=0)
        self.changed.set()
        return claim

    def release(self, claim: RouteClaim) -> None:
        """Drop a claim. Prefixes that a newer claim has replaced stay claimed."""
        for prefix in claim.prefixes:
            self._drop(prefix, claim)
        self._deepest = max(self._depths, default=0)
        self.changed.set()
        # Last: the listener looks claims up again and must not find this one any more.
        self.on_release()

    def find(self, path: str) -> RouteClaim | None:
        """The claim with the longest prefix of the decoded `path`, if any. `/a` counts as below `/a/`."""
        # Also below a granted `/`: who answers there can prove control of the host (ACME, RFC 8555, section 8.3).
        if path.startswith(RESERVED) or path == RESERVED[:-1]:
            return None
        found, end = self._claims.get("/"), 0
        # Paths are untrusted: the number of look-ups depends on the claims, not on the length of the path.
        for _ in range(self._deepest):
            end = path.find("/", end + 1)
            # The path ends here; with a slash added, `/a` finds the claim of `/a/`.
            if end < 0:
                return self._claims.get(path + "/", found)
            found = self._claims.get(path[: end + 1], found)
        return found

    def _holder(self, prefix: str, plugin_id: str) -> str | None:
        """The id of another plugin that stands in the way of `prefix`, or None.

        That is one that claims the same prefix, or, as its own, the first segment of it: `/b/x/` is taken while b
        claims `/b/`. For the plugin's own prefix also one with a granted claim below: `/b/` is taken while a claims
        `/b/x/`. Claims below other prefixes are no obstacle, as the longest match answers.
        """
        # The first segment with its slashes; for `/` the empty text, which is no claim.
        owner = self._claims.get(prefix[: prefix.find("/", 1) + 1])
        above = owner if owner and prefix.startswith(own_prefix(owner.plugin_id)) else None
        for claim in (self._claims.get(prefix), above):
            if claim is not None and claim.plugin_id != plugin_id:
                return claim.plugin_id
        if prefix == own_prefix(plugin_id):
            claimants = (one.plugin_id for path, one in self._granted.items() if path.startswith(prefix))
            return next((claimant for claimant in claimants if claimant != plugin_id), None)
        return None

    def _drop(self, prefix: str, claim: RouteClaim) -> None:
        """Remove `claim` from one prefix; nothing if another claim has the prefix by now."""
        # A newer claim of the same plugin has replaced this one; releasing the old one late must not remove the new.
        if self._claims.get(prefix) is not claim:
            return
        del self._claims[prefix]
        self._granted.pop(prefix, None)
        # `find` goes as deep as the deepest claim: its count must not keep a depth that is no longer used.
        depth = prefix.count("/") - 1
        self._depths[depth] -= 1
        if not self._depths[depth]:
            del self._depths[depth]

    # Listening.

    def set_listener(self, listener: RouteListener) -> None:
        """Called by the ingress when its listener starts, fails or ends."""
        self.listener = listener
        if listener.url or listener.fault:
            self._listener_known.set()
        else:
            self._listener_known.clear()

    async def wait_for_listener(self, within_s: float) -> RouteListener:
        """The listener, waiting for at most `within_s` seconds while it starts."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._listener_known.wait()
        return self.listener


def own_prefix(plugin_id: str) -> str:
    """The prefix that `plugin_id` has without a grant."""
    return f"/{plugin_id}/"


def normalised(prefix: str) -> str:
    """`prefix` ending with a slash, as every prefix does here."""
    return prefix if prefix.endswith("/") else prefix + "/"


def claimable(plugin_id: str, declared: Iterable[str], granted_prefixes: frozenset[str]) -> tuple[str, ...]:
    """The prefixes that a plugin claims: its own, then those that its manifest declares and the operator granted."""
    granted = {normalised(one) for one in granted_prefixes}
    return tuple(dict.fromkeys([own_prefix(plugin_id), *(p for p in map(normalised, declared) if p in granted)]))


def prefix_fault(prefix: str) -> str:
    """What is wrong with a normalised prefix, or an empty text."""
    if not (prefix.startswith("/") and prefix.endswith("/")) or len(prefix) > MAX_PREFIX_CHARACTERS:
        return f"expected at most {MAX_PREFIX_CHARACTERS} characters between slashes"
    if not prefix.isprintable() or not _NOT_IN_PREFIX.isdisjoint(prefix):
        return "expected a decoded path of visible characters"
    segments = prefix[1:-1].split("/") if prefix != "/" else []
    if len(segments) > MAX_SEGMENTS or not {"", ".", ".."}.isdisjoint(segments):
        return f"expected at most {MAX_SEGMENTS} segments, none of them empty or dots"
    # The prefix `/` passes, if granted: `find` leaves RESERVED out of it.
    if prefix.startswith(RESERVED):
        return f"{RESERVED} belongs to no plugin"
    return ""


def _refused(detail: str, hint: str = "") -> Problem:
    """Problem route_taken; `hint` is the command that helps, if there is one."""
    return Problem("route_taken", f"cannot serve this route: {detail}", hint)
