"""Calls on threads, one at a time while they are quick: side by side they would take longer.

Two threads that make many system calls hand the interpreter's lock over at each of them. A call that waits for a disk
or hashes much does not hold it, and the next one may go beside it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

QUICK_S: Final = 0.005


class OneByOne:
    """`run(call)` has `call()` done on a thread, after the calls before it, but waits for none longer than QUICK_S."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def run(self, call: Callable[[], T]) -> T:
        """What `call` returns or raises."""
        mine = await self._mine()
        try:
            return await asyncio.to_thread(call)
        finally:
            if mine:
                self._turn.release()

    async def _mine(self) -> bool:
        """Whether the turn was taken; False when whoever has it keeps it for long."""
        try:
            async with asyncio.timeout(QUICK_S):
                return await self._turn.acquire()
        except TimeoutError:
            return False
