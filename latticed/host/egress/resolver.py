"""Looking up names: the system's way, in threads, because getaddrinfo has no other."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from latticed.model.addresses import Address

AT_ONCE: Final = 4
"""Look-ups of one owner that callers wait for; further callers queue behind them."""
UNANSWERED: Final = 12
"""Threads of one owner that may hang in getaddrinfo although nobody waits for them any more."""
THREADS: Final = 256
"""Threads of all owners."""


class Busy(OSError):
    """No thread is left for this look-up: those that there may be wait for name servers that do not answer."""


class Resolver(Protocol):
    """Knows the addresses of names."""

    async def lookup(self, host: str, owner: str = "") -> tuple[Address, ...]:
        """All addresses of a name in normal form, none when it has none; OSError when it cannot be known.

        `owner` is whom the look-up is counted for: a plugin's id, or empty for latticed itself.
        """
        ...


@dataclass(slots=True)
class _Share:
    """What one owner has under way: `users` wait or queue, `hanging` threads are waited for by nobody."""

    places: asyncio.Semaphore
    users: int = 0
    hanging: int = 0


class SystemResolver:
    """getaddrinfo, a thread for each look-up.

    Threads cannot be cancelled: one whose caller has gone hangs until the system gives up (resolv.conf(5): 5 s, twice,
    per name server). So every owner has a share of its own: names whose servers never answer hold up no one else's.
    The caller's place is free again when it leaves. Threads are daemonic: the end of the process waits for none.
    """

    def __init__(self, *, at_once: int = AT_ONCE, unanswered: int = UNANSWERED, threads: int = THREADS) -> None:
        self._at_once = at_once
        self._unanswered = unanswered
        self._threads_left = threads
        self._shares: dict[str, _Share] = {}

    async def lookup(self, host: str, owner: str = "") -> tuple[Address, ...]:
        """As in Resolver."""
        share = self._shares.setdefault(owner, _Share(asyncio.Semaphore(self._at_once)))
        share.users += 1
        try:
            async with share.places:
                if share.hanging >= self._unanswered or not self._threads_left:
                    raise Busy("too many look-ups are still unanswered")
                return await self._in_a_thread(host, owner, share)
        finally:
            share.users -= 1
            self._tidy(owner, share)

    async def _in_a_thread(self, host: str, owner: str, share: _Share) -> tuple[Address, ...]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[Address, ...]] = loop.create_future()

        def tell(found: tuple[Address, ...] | OSError) -> None:
            self._threads_left += 1
            if answer.cancelled():
                share.hanging -= 1
                self._tidy(owner, share)
            elif isinstance(found, OSError):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        def ask() -> None:
            found = _asked(host)
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(tell, found)

        try:
            threading.Thread(target=ask, name="latticed-lookup", daemon=True).start()
        except RuntimeError as error:  # the system has no thread to give
            raise Busy(str(error)) from error
        self._threads_left -= 1
        try:
            return await answer
        except asyncio.CancelledError:
            if answer.cancelled():
                share.hanging += 1
            raise

    def _tidy(self, owner: str, share: _Share) -> None:
        if not share.users and not share.hanging:
            self._shares.pop(owner, None)


def _asked(host: str) -> tuple[Address, ...] | OSError:
    try:
        # Bytes: the name is in its final form, Python's older IDNA codec must not touch it.
        found = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    except OSError as error:
        return error
    except UnicodeError:
        return OSError("not a name")
    return tuple(dict.fromkeys(ip_address(one[4][0]) for one in found))
