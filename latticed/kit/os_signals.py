"""Signals that a program on asyncio acts on.

    os_signals.act_on({signal.SIGTERM: stopping.set, signal.SIGHUP: reload})

Unlike with `loop.add_signal_handler`, none is lost behind a flood of others, and no flood hangs the program.
"""

from __future__ import annotations

import asyncio
import functools
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def act_on(acts: Mapping[signal.Signals, Callable[[], object]]) -> None:
    """Call what `acts` has for a signal on the running loop, between its callbacks, whenever that signal comes.

    Several of one signal may be one call. It ends with the loop. From the main thread only.
    """
    loop = asyncio.get_running_loop()

    def came(act: Callable[[], object], _number: int, _frame: object) -> None:
        loop.call_soon_threadsafe(act)

    for number, act in acts.items():
        # Sets the socket that wakes the loop, to which Python writes each signal's number, and asyncio calls by what it
        # reads there. But some 280 signals within one turn of the loop fill it, and the next number is lost. So what is
        # to be done hangs on the handler that Python calls itself, between any two instructions, and never leaves out.
        loop.add_signal_handler(number, lambda: None)
        signal.signal(number, functools.partial(came, act))
        signal.siginterrupt(number, False)  # system calls go on, as with asyncio's own handlers
    # By default Python asks for a warning where that socket is full, and takes a lock for it that the code which the
    # signal interrupts may hold: the process would hang for ever.
    signal.set_wakeup_fd(signal.set_wakeup_fd(-1), warn_on_full_buffer=False)
