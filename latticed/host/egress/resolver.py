"""Looks up names with getaddrinfo(3), which blocks, in threads."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Protocol

from latticed.kit.threads import UnawaitedThread

if TYPE_CHECKING:
    from latticed.model.addresses import Address

CONCURRENT: Final = 4
"""Look-ups of one owner that run at the same time; further callers wait for one to end."""
MAX_ABANDONED: Final = 12
"""Threads of one owner that may still be in getaddrinfo after their caller gave up."""
MAX_THREADS: Final = 256
"""Threads of all owners."""


class TooManyLookups(OSError):
    """No thread can be started: too many wait for name servers that do not answer, or the system has none."""


class Resolver(Protocol):
    """Looks up the addresses of names."""

    async def lookup(self, host: str, owner: str = "") -> tuple[Address, ...]:
        """All addresses of a name in normal form, none when it has none; OSError when the look-up fails.

        `owner`: whose limit it counts against, a plugin's id, or empty for latticed itself.
        """
        ...


@dataclass(slots=True)
class _OwnerLookups:
    """Look-ups of one owner: `callers` wait for a slot or an answer; `abandoned` threads outlive their callers."""

    slots: asyncio.Semaphore
    callers: int = 0
    abandoned: int = 0


class SystemResolver:
    """getaddrinfo, a thread for each look-up.

    Threads cannot be cancelled: one whose caller has gone stays until getaddrinfo gives up (resolv.conf(5): 5 s, twice,
    per name server). So each owner has limits of its own: names whose servers never answer delay no other owner. A
    caller that gives up frees its slot. The threads are daemon threads: the process does not wait for them at its end.
    """

    def __init__(
        self, *, concurrent: int = CONCURRENT, max_abandoned: int = MAX_ABANDONED, max_threads: int = MAX_THREADS
    ) -> None:
        self._concurrent = concurrent
        self._max_abandoned = max_abandoned
        self._threads_left = max_threads
        self._by_owner: dict[str, _OwnerLookups] = {}

    async def lookup(self, host: str, owner: str = "") -> tuple[Address, ...]:
        """As in Resolver."""
        lookups = self._by_owner.setdefault(owner, _OwnerLookups(asyncio.Semaphore(self._concurrent)))
        lookups.callers += 1
        try:
            async with lookups.slots:
                # Checked with the slot taken: while a caller waits for it, more threads may be abandoned.
                if lookups.abandoned >= self._max_abandoned or not self._threads_left:
                    raise TooManyLookups("too many look-ups are still unanswered")
                return await self._lookup_in_thread(host, owner, lookups)
        finally:
            lookups.callers -= 1
            self._drop_if_idle(owner, lookups)

    async def _lookup_in_thread(self, host: str, owner: str, lookups: _OwnerLookups) -> tuple[Address, ...]:
        """Look up `host` in a new thread. OSError; TooManyLookups when no thread can be started.

        When cancelled, the thread goes on and is counted in `lookups.abandoned` until it ends.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[Address, ...]] = loop.create_future()

        def deliver(found: tuple[Address, ...] | OSError) -> None:
            # On the event loop, as every other access to these counters: no lock is needed.
            self._threads_left += 1
            if answer.cancelled():
                lookups.abandoned -= 1
                self._drop_if_idle(owner, lookups)
            elif isinstance(found, OSError):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        def run() -> None:
            found = _getaddrinfo(host)
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(deliver, found)

        try:
            # Not asyncio.to_thread: its pool is shared, and look-ups that hang would take all of its threads.
            UnawaitedThread(target=run, name="latticed-lookup", daemon=True).start()
        except RuntimeError as error:  # the system has no thread to give
            raise TooManyLookups(str(error)) from error
        self._threads_left -= 1
        try:
            return await answer
        except asyncio.CancelledError:
            if answer.cancelled():  # else `deliver` was first: the thread has ended
                lookups.abandoned += 1
            raise

    def _drop_if_idle(self, owner: str, lookups: _OwnerLookups) -> None:
        """Forget an owner without callers and threads, so that the dict does not grow with every id there ever was."""
        if not lookups.callers and not lookups.abandoned:
            self._by_owner.pop(owner, None)


def _getaddrinfo(host: str) -> tuple[Address, ...] | OSError:
    """The addresses of a name, each once, in the order of getaddrinfo(3). Blocks: called in a thread.

    Errors are returned, not raised, for the event loop to raise them.
    """
    try:
        # Bytes: the name is in its final form, and Python would encode a str with its IDNA 2003 codec.
        # SOCK_STREAM: otherwise each address comes once for every type of socket.
        found = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    except OSError as error:
        return error
    except UnicodeError:
        return OSError("not a name")
    return tuple(dict.fromkeys(ip_address(one[4][0]) for one in found))
