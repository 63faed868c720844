"""Looking up names: the system's way, in threads, because getaddrinfo has no other."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from latticed.model.addresses import Address

MAX_LOOKUPS: Final = 16


class Resolver(Protocol):
    """Knows the addresses of names."""

    async def lookup(self, host: str) -> tuple[Address, ...]:
        """All addresses of a name in normal form, none when it has none; OSError when it cannot be known."""
        ...


class SystemResolver:
    """getaddrinfo, a thread for each lookup and at most so many at once.

    Threads cannot be cancelled: one whose caller has gone keeps its place until the system gives up. They are daemonic,
    so that the end of the process does not wait for them.
    """

    def __init__(self, *, lookups: int = MAX_LOOKUPS) -> None:
        self._places = asyncio.Semaphore(lookups)

    async def lookup(self, host: str) -> tuple[Address, ...]:
        """As in Resolver."""
        await self._places.acquire()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[Address, ...]] = loop.create_future()

        def tell(found: tuple[Address, ...] | OSError) -> None:
            self._places.release()
            if answer.done():  # nobody waits any more
                return
            if isinstance(found, OSError):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        def ask() -> None:
            found = _asked(host)
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(tell, found)

        threading.Thread(target=ask, name="latticed-lookup", daemon=True).start()
        return await answer


def _asked(host: str) -> tuple[Address, ...] | OSError:
    try:
        # Bytes: the name is in its final form, Python's older IDNA codec must not touch it.
        found = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    except OSError as error:
        return error
    except UnicodeError:
        return OSError("not a name")
    return tuple(dict.fromkeys(ip_address(one[4][0]) for one in found))
