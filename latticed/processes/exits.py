"""How a child ended, as a code and as a message (pure)."""

from __future__ import annotations

import signal
from typing import Final

from latticed.kit.value import Value

_WORDS: Final = {
    signal.SIGKILL: "out of memory?",
    signal.SIGSYS: "it made a system call of a foreign kind",
    signal.SIGXFSZ: "it wrote more to a file than it may",
    signal.SIGSEGV: "a memory access that is not allowed",
    signal.SIGABRT: "it gave up by itself",
}
# Signals that the kernel sends for what a program itself did wrong.
_CRASHES: Final = frozenset(
    {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP}
)


class Exit(Value, frozen=True, kw_only=True):
    """How a process ended: `status` is the exit code, or None when the signal number `killed_by` ended it.

    `out_of_memory`: it reached its memory limit. `asked`: the daemon was stopping it.
    """

    status: int | None = None
    killed_by: int | None = None
    out_of_memory: bool = False
    asked: bool = False

    @property
    def code(self) -> str:
        """`exited`, `out_of_memory`, `file_too_large`, `forbidden_call`, `crashed` or `killed`."""
        if self.out_of_memory:
            return "out_of_memory"
        if self.killed_by is None:
            return "exited"
        named = {signal.SIGXFSZ: "file_too_large", signal.SIGSYS: "forbidden_call"}
        return named.get(_signal(self.killed_by), "crashed" if self.killed_by in _CRASHES else "killed")  # type: ignore[arg-type]

    @property
    def message(self) -> str:
        """What happened, for people: "exited 3", "killed by SIGSEGV (a memory access that is not allowed)"."""
        if self.killed_by is None:
            return f"exited {self.status}" + (" (out of memory)" if self.out_of_memory else "")
        known = _signal(self.killed_by)
        name = known.name if known is not None else f"signal {self.killed_by}"
        if self.out_of_memory:
            return f"killed by {name} (out of memory)"
        # A signal of the daemon's own needs no guess at its cause.
        why = _WORDS.get(known) if known is not None and not self.asked else None
        return f"killed by {name}" + (f" ({why})" if why else "")


def _signal(number: int) -> signal.Signals | None:
    """The signal with this number, None for a real-time one."""
    try:
        return signal.Signals(number)
    except ValueError:  # a real-time signal
        return None
