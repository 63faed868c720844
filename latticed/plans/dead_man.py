"""The dead-man: a process for one unconfirmed change, which undoes it at its deadline whatever became of the others.

    helper ── starts ──► dead-man (session of its own, empty environment)
           ◄── "ready" ──    everything is imported
           writes the record
           ── closes its pipe ──►   (as its death does) looks at the record, from then on four times a second
           commits           none, or gone: not begun, confirmed, undone: it ends
                             deadline on CLOCK_BOOTTIME: takes the lock, puts the snapshot back

It is ready before there is a record, so that its start takes nothing of the time to confirm; and it waits for the pipe
without a limit, so that a helper that was stopped there, and goes on later, still has its dead-man. It is a program
started anew, not a fork: it has no secrets of the helper's memory, and shares files with it alone (`plans.store`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Final

from latticed.model.errors import Problem
from latticed.plans.upkeep import MAX_RETRY_S, boot_now

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from latticed.plans.store import Store
    from latticed.plans.upkeep import Upkeep

START_S: Final = 30.0
"""How long a dead-man may take until it is ready, in seconds; a third of one on a machine that is not overloaded. With
ten, applies were refused at a load of 24 on two cores.
"""
LOOK_S: Final = 0.25
"""Between two looks at the record."""
LOCK_S: Final = 0.7
"""How long the lock may be held beyond the deadline, in seconds, before its holder is killed, and again after that:
two seconds after the deadline the snapshot is to be back.
"""
_READY: Final = b"ready\n"
_PRIORITY: Final = -10
"""Nice value: an overloaded machine is one that a change may have to be undone on."""
_OOM_SCORE: Final = b"-1000"
"""Never chosen when memory runs out (proc(5), oom_score_adj)."""


class DeadMen:
    """Starts dead-men. `command`: the words that start this program anew with the same settings and kinds."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = tuple(command)
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, kind: str, apply_id: str, within_s: int) -> Callable[[], None]:  # noqa: ARG002 - it reads the record
        """Start one and wait until it is ready. Call what is returned once the record is written, or will not be: the
        dead-man looks from then on. Problem apply_failed. Its end is not waited for: `reap` sees to that.
        """
        self.reap()
        # Ours, by which it can end us when we hold the lock beyond the deadline: no pid can be reused under it.
        us = os.pidfd_open(os.getpid())
        try:
            child = subprocess.Popen(  # noqa: S603 - our own program
                [*self._command, "--dead-man", kind, apply_id, str(us)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                start_new_session=True,
                pass_fds=(us,),
            )
        except OSError as error:
            raise Problem("apply_failed", f"no dead-man could be started: {error}; nothing was touched") from error
        finally:
            os.close(us)
        self._started.append(child)
        # From its first instruction on: most of what it does until it is ready are imports.
        _hurry(child.pid)
        if not _is_ready(child):
            child.kill()
            if child.stdin is not None:
                child.stdin.close()
            raise Problem("apply_failed", "the dead-man did not start; nothing was touched", "see the helper's log")
        assert child.stdin is not None  # noqa: S101 - made with PIPE
        return child.stdin.close

    def reap(self) -> None:
        """Collect those that have ended, so that none stays a zombie. Never waits."""
        self._started = [child for child in self._started if child.poll() is None]


def _is_ready(child: subprocess.Popen[bytes]) -> bool:
    """Whether the child says so in time; its pipe is closed."""
    import select

    assert child.stdout is not None  # noqa: S101 - made with PIPE
    with child.stdout as pipe:
        ready, _, _ = select.select([pipe], [], [], START_S)
        return bool(ready) and os.read(pipe.fileno(), len(_READY)) == _READY


def watch(store: Store, upkeep: Upkeep, kind: str, apply_id: str, helper: int) -> int:
    """Be the dead-man of this change until it is confirmed or undone; the exit code.

    `helper`: a pidfd of the helper that started us. stdin and stdout must be its pipes.
    """
    # In a session of its own no terminal's signals come. A service manager that stops the helper's unit must not end
    # what makes stopping harmless.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    be_favoured()
    _say_ready()
    os.read(0, 1)  # nothing is written: it is the end, when the helper closes the pipe or has ended
    return until_undone(store, upkeep, kind, apply_id, helper)


def until_undone(store: Store, upkeep: Upkeep, kind: str, apply_id: str, helper: int | None) -> int:
    """Wait for the deadline of this change, and undo it; return 0 once it is no longer armed.

    `helper`: a pidfd of the helper, which is killed when it holds the lock beyond the deadline; None: it has ended.
    """
    while (deadline_ns := deadline_of(store, kind, apply_id)) is not None:
        _, now_ns = boot_now()
        if now_ns >= deadline_ns:
            break
        time.sleep(min(LOOK_S, (deadline_ns - now_ns) / 1e9))
    pause_s = LOOK_S
    while deadline_of(store, kind, apply_id) is not None:
        if _undone(store, upkeep, kind, helper):
            return 0
        time.sleep(pause_s)
        pause_s = min(MAX_RETRY_S, pause_s * 2)
    return 0


def deadline_of(store: Store, kind: str, apply_id: str) -> int | None:
    """The deadline of this change on CLOCK_BOOTTIME, 0 when undoing it was begun; None when it is no longer armed. A
    disk that cannot be read is no reason to give up: it counts as due.
    """
    try:
        armed = store.target(kind).armed
    except (OSError, Problem):
        return 0
    if armed is None or armed.apply_id != apply_id:
        return None
    return 0 if armed.undoing else armed.deadline_ns


def _undone(store: Store, upkeep: Upkeep, kind: str, helper: int | None) -> bool:
    """Undo the change, with the lock if it can be had in time; whether that is done."""
    for attempt in range(2):
        try:
            with store.locked(kind, deadline_s=LOCK_S) as lock:
                return upkeep.undo_if_due(kind, lock)
        except (Problem, OSError) as error:
            if not isinstance(error, Problem) or error.code != "busy":
                return False
            if attempt == 0 and helper is not None:
                # Stopped, or stuck in its commit: it had until the deadline. What it began is undone with the rest.
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(helper, signal.SIGKILL)
    # A program of the helper's still runs and holds the lock. It is not waited for any longer.
    with contextlib.suppress(Problem, OSError):
        return upkeep.undo_if_due(kind, None)
    return False


def be_favoured() -> None:
    """Ask the kernel for processor time and memory before others, as far as it grants them."""
    _hurry(0)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
        file.write(_OOM_SCORE)


def _hurry(pid: int) -> None:
    """Have a process served before others; 0: this one."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, min(_PRIORITY, os.getpriority(os.PRIO_PROCESS, pid)))


def _say_ready() -> None:
    """Tell the helper, then let go of its pipe."""
    with contextlib.suppress(OSError):
        os.write(1, _READY)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.close(null)
