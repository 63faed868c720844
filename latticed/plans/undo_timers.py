"""The dead-man as a timer unit of the service manager: for a helper that runs as a unit itself.

    helper ── systemd-run ──► latticed-undo-<id>.timer      fires a little before the deadline
           writes the record       └─► latticed-undo-<id>.service: latticed-apply --undo KIND ID HELPER
           commits                       none, or gone: confirmed, undone: it ends
                                         deadline on CLOCK_BOOTTIME: takes the lock, puts the snapshot back

Until then nothing of it runs that could be killed, and stopping the helper's unit does not reach it. The timer is made
before the record is written. A helper that was stopped in between and goes on later still has its dead-man: as long as
the snapshot is kept and the helper lives, the service waits for the record.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latticed.kit import logs, text
from latticed.model.errors import Problem
from latticed.plans import dead_man

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from latticed.plans.store import Store
    from latticed.plans.upkeep import Upkeep

LEAD_S: Final = 5
"""Seconds before the deadline that the timer fires: the program takes a while to start on an overloaded machine."""
RUN_S: Final = 10.0
"""How long systemd-run and systemctl may take."""
_RUN: Final = "/usr/bin/systemd-run"
_CONTROL: Final = "/usr/bin/systemctl"
_BOOTED: Final = Path("/run/systemd/system")
# Of the service: as a dead-man that is a process of the helper's asks for itself (`dead_man.be_favoured`).
_PROPERTIES: Final = (
    "SyslogIdentifier=latticed-apply",
    "OOMScoreAdjust=-1000",
    "Nice=-10",
    "UMask=0077",
    # What it starts to put back goes on: nginx, wireguard-go.
    "KillMode=process",
)
log = logs.get_logger()


def usable(environ: Mapping[str, str]) -> bool:
    """Whether this process was started by systemd as a unit of its own (sd_booted(3), sd_notify(3))."""
    return bool(environ.get("NOTIFY_SOCKET")) and _BOOTED.is_dir()


def unit(apply_id: str) -> str:
    """Name of the units of a change, without their suffix."""
    return f"latticed-undo-{apply_id}"


class UndoTimers:
    """Makes timer units. `command`: the words that start this program anew with the same settings and kinds."""

    def __init__(self, command: Sequence[str], store: Store) -> None:
        self._command = tuple(command)
        self._store = store
        self._made: dict[str, str] = {}  # kind by apply id

    def start(self, kind: str, apply_id: str, within_s: int) -> Callable[[], None]:
        """Make the timer of a change that has `within_s` seconds to be confirmed. Problem apply_failed.

        What is returned need not be called.
        """
        words = [
            *(_RUN, "--quiet", "--collect", "--no-ask-password", f"--unit={unit(apply_id)}"),
            f"--description=Undoes an unconfirmed change of kind {kind}",
            *(f"--on-active={max(1, within_s - LEAD_S)}s", "--timer-property=AccuracySec=100ms"),
            *(f"--property={one}" for one in _PROPERTIES),
            *("--", *self._command, "--undo", kind, apply_id, me()),
        ]
        self._made[apply_id] = kind
        if fault := _ran(words):
            raise Problem(
                "apply_failed",
                f"no timer could be made to undo the change: {fault}; nothing was touched",
                "systemctl status: systemd has to answer",
            )
        return lambda: None

    def reap(self) -> None:
        """Stop the timers of changes that are confirmed or undone, so that none fires in vain. One that a killed helper
        left fires, finds nothing to do, and is gone.
        """
        for apply_id, kind in list(self._made.items()):
            if dead_man.deadline_of(self._store, kind, apply_id) is None:
                del self._made[apply_id]
                # Its service may be running by now: it ends by itself.
                if fault := _ran([_CONTROL, "stop", "--quiet", "--no-ask-password", f"{unit(apply_id)}.timer"]):
                    log.info("undo_timer_left", reason=fault)


def undo(store: Store, upkeep: Upkeep, kind: str, apply_id: str, helper: str) -> int:
    """Be the service of a timer: wait for the deadline, undo the change unless it is confirmed; the exit code.

    `helper`: what `me` returned in the helper that made the timer.
    """
    dead_man.be_favoured()
    pidfd = _opened(helper)
    while (
        dead_man.deadline_of(store, kind, apply_id) is None
        and store.is_held(apply_id, "snapshot")
        and pidfd is not None
        and _lives(pidfd)
    ):
        time.sleep(dead_man.LOOK_S)
    return dead_man.until_undone(store, upkeep, kind, apply_id, pidfd)


def me() -> str:
    """This process as PID:START, which no other process of this boot has."""
    return f"{os.getpid()}:{_started(os.getpid())}"


def _opened(helper: str) -> int | None:
    """A pidfd of the process that `me` named, None when it has ended."""
    pid, _, started = helper.partition(":")
    try:
        pidfd = os.pidfd_open(int(pid))
        # Opened first: what is read now is of the process that the descriptor stands for, or the pid is free.
        if _started(int(pid)) == int(started):
            return pidfd
        os.close(pidfd)
    except (OSError, ValueError):
        pass
    return None


def _started(pid: int) -> int:
    """When a process started, in clock ticks since the boot (proc_pid_stat(5), starttime). OSError."""
    # The name before it is in parentheses and may hold anything.
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])


def _lives(pidfd: int) -> bool:
    # Readable once it has ended, also before it is reaped (pidfd_open(2)).
    ended, _, _ = select.select([pidfd], [], [], 0)
    return not ended


def _ran(words: Sequence[str]) -> str:
    """Run a tool of systemd's; what went wrong, empty for nothing."""
    try:
        # It finds PID 1 by a socket of a fixed path, and needs no variable.
        ended = subprocess.run(  # noqa: S603 - fixed programs, our own words
            words, stdin=subprocess.DEVNULL, capture_output=True, check=False, env={}, cwd="/", timeout=RUN_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return text.sanitise(ended.stderr.decode("utf-8", "replace").strip(), 300) if ended.returncode else ""
