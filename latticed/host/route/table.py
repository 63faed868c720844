"""Which plugin answers which HTTP path (system-plugins.md, worker:route), and whether anybody listens for it.

Runners and host calls claim prefixes here; the ingress looks paths up, and listens while there is a claim. Nothing is
served by this module. One table for the whole daemon; all of it happens on the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

RESERVED: Final = "/.well-known/"
"""What never belongs to a plugin (RFC 8615)."""
MAX_PREFIXES: Final = 16
MAX_PREFIX_CHARACTERS: Final = 255
MAX_SEGMENTS: Final = 8
_NOT_IN_PREFIX: Final = frozenset('%?#\\"<>^`{|} ')


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRequest:
    """What somebody outside asks: `path` decoded, once and whole; `query` decoded pairs in their order.

    `headers` may be asked for in any case of letters.
    """

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteResponse:
    """What a target answers."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200


class RouteTarget(Protocol):
    """What answers for a prefix."""

    @property
    def methods(self) -> frozenset[str]:
        """The HTTP methods that it takes."""
        ...

    async def serve(self, request: RouteRequest) -> RouteResponse:
        """The answer, or Problem. Whoever calls sets the deadline."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteListener:
    """Where routes are served, as far as that is known: at `url`, or not because of `fault`; neither: about to be."""

    url: str = ""
    fault: str = ""


NOBODY: Final = RouteListener(fault="nothing listens for routes")


class RouteClaim:
    """The prefixes that one plugin answers for."""

    __slots__ = ("plugin_id", "prefixes", "target")

    def __init__(self, plugin_id: str, prefixes: tuple[str, ...], target: RouteTarget) -> None:
        self.plugin_id = plugin_id
        self.prefixes = prefixes
        self.target = target


class RouteTable:
    """The table. `changed` is set whenever a claim comes or goes; whoever waits for it clears it.

    `on_release` is called once a claim is gone: what is still being answered under it may have to be cut.
    """

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.on_release: Callable[[], None] = lambda: None
        self.listener = NOBODY
        self._claims: dict[str, RouteClaim] = {}
        self._guests: dict[str, RouteClaim] = {}  # those of `_claims` that are no plugin's own: few
        self._depths: Counter[int] = Counter()
        self._deepest = 0
        self._known = asyncio.Event()
        self._known.set()

    def claimed(self) -> list[tuple[str, str]]:
        """(prefix, plugin id) of all there are."""
        return [(prefix, claim.plugin_id) for prefix, claim in self._claims.items()]

    @property
    def in_use(self) -> bool:
        """Whether there is anything to listen for."""
        return bool(self._claims)

    # Claiming.

    def check(self, plugin_id: str, prefixes: Iterable[str], *, granted_prefixes: frozenset[str] = frozenset()) -> None:
        """Problem("route_taken") when `plugin_id` may not have one of `prefixes` (each as `normal` makes it)."""
        wanted, free = tuple(prefixes), {normal(one) for one in granted_prefixes}
        if len(wanted) > MAX_PREFIXES:
            raise _refused(f"expected at most {MAX_PREFIXES} prefixes, found {len(wanted)}")
        for prefix in wanted:
            if fault := prefix_fault(prefix):
                raise _refused(f"{prefix[:80]!r}: {fault}")
            if not prefix.startswith(own(plugin_id)) and prefix not in free:
                raise _refused(f"{prefix} is neither below {own(plugin_id)} nor declared and granted")
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
        """From now on `target` answers for `prefixes`, all or none; Problem as `check`.

        A claim of an earlier life of the same plugin gives way.
        """
        wanted = tuple(dict.fromkeys(prefixes))
        self.check(plugin_id, wanted, granted_prefixes=granted_prefixes)
        claim = RouteClaim(plugin_id, wanted, target)
        for prefix in wanted:
            if (old := self._claims.get(prefix)) is not None:
                self._drop(prefix, old)
            self._claims[prefix] = claim
            self._depths[prefix.count("/") - 1] += 1
            if not prefix.startswith(own(plugin_id)):
                self._guests[prefix] = claim
        self._deepest = max(self._depths, default=0)
        self.changed.set()
        return claim

    def release(self, claim: RouteClaim) -> None:
        """`claim` answers no more; what has been claimed anew since stays."""
        for prefix in claim.prefixes:
            self._drop(prefix, claim)
        self._deepest = max(self._depths, default=0)
        self.changed.set()
        self.on_release()

    def find(self, path: str) -> RouteClaim | None:
        """Whose the decoded `path` is: that of the longest prefix. `/a` counts as below `/a/`."""
        if path.startswith(RESERVED) or path == RESERVED[:-1]:
            return None
        found, end = self._claims.get("/"), 0
        for _ in range(self._deepest):
            end = path.find("/", end + 1)
            if end < 0:
                return self._claims.get(path + "/", found)
            found = self._claims.get(path[: end + 1], found)
        return found

    def _holder(self, prefix: str, plugin_id: str) -> str | None:
        """Who has `prefix` already, or the plugin's own space that it lies in; or lies in the space of `plugin_id`."""
        home = self._claims.get(prefix[: prefix.find("/", 1) + 1])
        for held in (self._claims.get(prefix), home if home and prefix.startswith(own(home.plugin_id)) else None):
            if held is not None and held.plugin_id != plugin_id:
                return held.plugin_id
        if prefix == own(plugin_id):
            guests = (one.plugin_id for place, one in self._guests.items() if place.startswith(prefix))
            return next((guest for guest in guests if guest != plugin_id), None)
        return None

    def _drop(self, prefix: str, claim: RouteClaim) -> None:
        if self._claims.get(prefix) is not claim:
            return
        del self._claims[prefix]
        self._guests.pop(prefix, None)
        depth = prefix.count("/") - 1
        self._depths[depth] -= 1
        if not self._depths[depth]:
            del self._depths[depth]

    # Listening.

    def tell(self, listener: RouteListener) -> None:
        """The ingress says how it stands."""
        self.listener = listener
        if listener.url or listener.fault:
            self._known.set()
        else:
            self._known.clear()

    async def listened(self, within_s: float) -> RouteListener:
        """How it stands, waiting for at most `within_s` seconds while the ingress is about to listen."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._known.wait()
        return self.listener


def own(plugin_id: str) -> str:
    """The prefix that always belongs to `plugin_id`."""
    return f"/{plugin_id}/"


def normal(prefix: str) -> str:
    """`prefix` with the slash at its end that every prefix has here."""
    return prefix if prefix.endswith("/") else prefix + "/"


def served(plugin_id: str, declared: Iterable[str], granted_prefixes: frozenset[str]) -> tuple[str, ...]:
    """What a plugin claims: its own prefix, and what its manifest declares as far as it was granted."""
    free = {normal(one) for one in granted_prefixes}
    return tuple(dict.fromkeys([own(plugin_id), *(p for p in map(normal, declared) if p in free)]))


def prefix_fault(prefix: str) -> str:
    """What is wrong with a prefix, or nothing."""
    if not (prefix.startswith("/") and prefix.endswith("/")) or len(prefix) > MAX_PREFIX_CHARACTERS:
        return f"expected at most {MAX_PREFIX_CHARACTERS} characters between slashes"
    if not prefix.isprintable() or not _NOT_IN_PREFIX.isdisjoint(prefix):
        return "expected a decoded path of visible characters"
    segments = prefix[1:-1].split("/") if prefix != "/" else []
    if len(segments) > MAX_SEGMENTS or not {"", ".", ".."}.isdisjoint(segments):
        return f"expected at most {MAX_SEGMENTS} segments, none of them empty or dots"
    if prefix.startswith(RESERVED):
        return f"{RESERVED} belongs to no plugin"
    return ""


def _refused(detail: str, hint: str = "") -> Problem:
    return Problem("route_taken", f"cannot serve this route: {detail}", hint)
