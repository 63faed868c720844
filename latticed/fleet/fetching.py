"""Which bundle the link fetches next, and from where: beside each other, so that a slow source keeps away only its own.

A bundle is asked for from the engine first, then from each of its URLs. From each source, the engine or a server, one
comes at a time; others wait for their turn, in the order in which they were needed. What came stays in the spool until
the node says that it has tried it, and others wait for room until then.
"""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from latticed.fleet import chunks, https_source, messages
from latticed.fleet.engine import EngineUnavailable
from latticed.fleet.spool import NotFetched
from latticed.kit import logs, tasks, text

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Collection

    from latticed.fleet.engine import Engine
    from latticed.fleet.nats_connection import NatsConnection
    from latticed.fleet.spool import Spool

log = logs.get_logger()

_MOST_NEEDED: Final = 64
"""A further one is not heard: the node asks again."""
_SERVERS_AT_ONCE: Final = 2
"""Beside the engine, which they leave room in the spool."""


@dataclass(slots=True)
class _Needed:
    """A bundle that is needed, and how many of its `sources` were tried: empty is the engine, the others are URLs.
    `anew`: what the spool has of it is of no use.
    """

    message: messages.BundleNeeded
    anew: bool
    tried: int = 0

    @property
    def sources(self) -> tuple[str, ...]:
        return ("", *self.message.urls)

    @property
    def source(self) -> str:
        return self.sources[self.tried]


class Fetching:
    """`need`, `keep` and `forget` say what is to be in the spool, `work` has it there; `tell` hears what became of each
    of them, and says whether it could take that.

    `https_hosts`: servers that may be asked, no other; `https`: whom to trust there, instead of the system's
    authorities.
    """

    def __init__(
        self,
        connection: NatsConnection,
        engine: Engine,
        spool: Spool,
        tell: Callable[[messages.BundleHere | messages.BundleMissing], bool],
        *,
        https: ssl.SSLContext | None = None,
        https_hosts: Collection[str] = (),
    ) -> None:
        self._connection = connection
        self._engine = engine
        self._spool = spool
        self._tell = tell
        self._https = https
        self._https_hosts = https_hosts
        self._needed: dict[str, _Needed] = {}
        self._here: set[str] = set()  # told to be, and still wanted
        self._running: dict[asyncio.Task[None], _Needed] = {}  # those too that were cancelled, until they have ended
        self._changed = asyncio.Event()

    def need(self, message: messages.BundleNeeded) -> None:
        """Fetch it, unless that is under way."""
        if message.sha256 not in self._needed and len(self._needed) < _MOST_NEEDED:
            self._needed[message.sha256] = _Needed(message, message.anew)
            self._changed.set()

    def keep(self, wanted: Collection[str]) -> None:
        """These are wanted still, of what came; the rest of it may go from the spool."""
        under_way = {one.message.sha256 for one in self._running.values()}
        for sha256 in self._here.difference(wanted):
            self._here.discard(sha256)
            if sha256 not in under_way:
                self._spool.release(sha256)
        self._changed.set()

    def forget(self) -> None:
        """Nothing of before is needed; what came of it stays in the spool, until it is not kept."""
        self._needed.clear()
        for task in self._running:
            task.cancel()

    async def work(self) -> None:
        """Fetch, for ever."""
        with tasks.first_error():
            async with asyncio.TaskGroup() as group:
                while True:
                    self._changed.clear()
                    while (needed := self._next()) is not None:
                        task = group.create_task(self._fetch(needed))
                        self._running[task] = needed
                        task.add_done_callback(self._ended)
                    await self._changed.wait()

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._changed.set()

    def _next(self) -> _Needed | None:
        """The first that may be fetched now from its next source."""
        running = self._running.values()
        busy = {_server(one.source) for one in running}
        servers = sum(1 for one in running if one.source)
        under_way = {one.message.sha256 for one in running}
        taken = self._here | under_way
        most = max(1, min(_SERVERS_AT_ONCE, self._spool.at_once - 1))
        for sha256, one in self._needed.items():
            if sha256 in under_way or len(taken | {sha256}) > self._spool.at_once:
                continue
            if not one.source and one.message.urls and not self._connection.up:
                one.tried = 1  # it would wait behind one that has no URL, and waits for the connection
            if _server(one.source) not in busy and (not one.source or servers < most):
                return one
        return None

    async def _fetch(self, needed: _Needed) -> None:
        """Fetch it from its next source. One that none has is said to be missing, and the node asks again."""
        try:
            await self._fetch_held(needed)
        finally:
            if needed.message.sha256 not in self._here:
                self._spool.release(needed.message.sha256)

    async def _fetch_held(self, needed: _Needed) -> None:
        sha256 = needed.message.sha256
        reason = await self._not_fetched(needed)
        if self._needed.get(sha256) is not needed:
            return  # nobody needs it any more, or it was asked for anew
        del self._needed[sha256]
        needed.tried += 1
        if not reason:
            if self._tell(messages.BundleHere(sha256=sha256)):
                self._here.add(sha256)
        elif needed.tried < len(needed.sources):
            self._needed[sha256] = needed  # behind those that wait
        else:
            log.info("bundle_not_fetched", sha256=sha256, reason=reason)
            self._tell(messages.BundleMissing(sha256=sha256, reason=reason))

    async def _not_fetched(self, needed: _Needed) -> str:
        """Why this source did not bring it; empty when it is in the spool.

        What came of one source is gone on with at the next: the digest is that of the whole. When that does not hold,
        this one is asked for the whole: no source can spoil it for the others.
        """
        sha256, url = needed.message.sha256, needed.source
        try:
            await tasks.in_thread(lambda: self._spool.hold(sha256))
            if needed.anew:
                await tasks.in_thread(functools.partial(self._spool.forget, sha256))
                needed.anew = False
            if not url and not needed.message.urls:
                await self._connection.wait_up()
            try:
                await self._fetch_from(url, sha256)
            except NotFetched as error:
                if not error.begun_elsewhere:
                    raise
                await self._fetch_from(url, sha256)
        except (NotFetched, EngineUnavailable, OSError) as error:
            return text.sanitise(str(error), 400) or "expected a source that has it, found none"
        return ""

    async def _fetch_from(self, url: str, sha256: str) -> None:
        """From a URL, or from the engine for none; as these raise."""
        if url and not https_source.is_named(url, self._https_hosts):
            raise NotFetched(f"expected a server that https_hosts of this host names, found {text.sanitise(url, 80)}")
        if url:
            await https_source.fetch(url, self._spool, sha256, tls=self._https)
        else:
            await chunks.fetch(self._engine, self._spool, sha256)


def _server(source: str) -> tuple[bool, str]:
    """What one comes from at a time."""
    return bool(source), https_source.server_of(source)
