"""Many calls that come at once, made a few milliseconds in each turn of the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class SlicedCalls:
    """Makes calls in the order in which they were put, each once; whatever else the loop has to do comes between.

    Belongs to the event loop it was made in.
    """

    def __init__(self, slice_s: float) -> None:
        """`slice_s`: no further call is begun in a turn that has taken so many seconds; one is made in each."""
        self._slice_s = slice_s
        self._loop = asyncio.get_running_loop()
        self._due: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._going = False

    def put(self, calls: Iterable[tuple[Callable[..., object], tuple[Any, ...]]]) -> None:
        """Have each function called with its arguments: at once as many as there is time for, unless others wait.

        An exception goes to the loop's exception handler, and the calls behind it are made as well.
        """
        self._due += calls
        if not self._going:
            self._make_some()

    def _make_some(self) -> None:
        """Make calls until none is left or the time is over; the next turn goes on."""
        self._going = True
        until_s = self._loop.time() + self._slice_s
        try:
            while self._due:
                function, arguments = self._due.popleft()
                try:
                    function(*arguments)
                except Exception as error:  # noqa: BLE001 - of one caller, and the others wait as well
                    self._loop.call_exception_handler({"message": f"{function!r} failed", "exception": error})
                if self._loop.time() >= until_s:
                    break
        finally:  # also when SystemExit ends this turn: the loop may go on
            self._going = bool(self._due)
            if self._going:
                self._loop.call_soon(self._make_some)
