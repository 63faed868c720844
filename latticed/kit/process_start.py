"""Resets what a process inherits from the one that started it (execve(2)): signals, descriptors, limits, umask.

Each entry point calls this first. It may have been started by a cron job with SIGCHLD ignored, a wrapper with SIGTERM
blocked, a shell with `>&-`, or in a container with low limits.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from typing import Final

_OF_THE_INTERPRETER: Final = frozenset({signal.SIGPIPE, signal.SIGXFSZ})
"""Python ignores these: writing fails instead."""
_OF_THE_SHELL: Final = frozenset(
    {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
)
"""What nohup and shells ignore on purpose for a command in the background (POSIX, Shell Command Language, 2.11)."""
_NO_END: Final = frozenset(
    {
        *(signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF),
        *(signal.SIGIO, signal.SIGPWR, signal.SIGSTKFLT),
        *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
    }
)
"""Signals whose default is to end the process; a server ignores them."""
_UNCATCHABLE: Final = frozenset({signal.SIGKILL, signal.SIGSTOP})
# Soft limits that may have been lowered for others; raised as far as the hard limit goes.
_RAISED: Final = (
    *(resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_DATA, resource.RLIMIT_AS, resource.RLIMIT_NPROC),
)


def reset_for_server() -> None:
    """For a long-lived program: reset signals, umask, limits and standard descriptors that it inherited, as far as
    possible.

    Call it first, before anything is opened and before handlers of signals are set.
    """
    _open_standard_descriptors()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - _UNCATCHABLE - _OF_THE_INTERPRETER:
        # What is not handled later must not end the process: a stray SIGUSR1, for example.
        signal.signal(number, signal.SIG_IGN if number in _NO_END else signal.SIG_DFL)
    os.umask(0o022)  # others must reach the control socket; what is private is made private by its own mode
    for which in _RAISED:
        _, hard = resource.getrlimit(which)
        resource.setrlimit(which, (hard, hard))


def reset_for_command() -> None:
    """For a program that a person or a script runs: what they ignore or mask on purpose stays so, the rest is reset.

    Call it first, before anything is opened.
    """
    _open_standard_descriptors()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - _UNCATCHABLE - _OF_THE_INTERPRETER - _OF_THE_SHELL:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    inherited = os.umask(0o077)
    os.umask((inherited | 0o022) & ~0o700)  # we read what we write, and no other user writes it


def _open_standard_descriptors() -> None:
    """Open those of descriptors 0 to 2 that are closed, on /dev/null.

    Else the next file or socket would get such a number, and output would go into it. Writing to a stdout that was
    closed still fails.
    """
    # stdout for reading only: writing to it fails with EBADF, as to a closed one, instead of losing output in silence.
    for number, name, flags in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_RDWR)):
        try:
            os.fstat(number)
        except OSError:  # EBADF: it is closed
            null = os.open(os.devnull, flags)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
        # Python sets these to None when the descriptor is closed at its start.
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))
