"""Whether something was mounted or unmounted: a mount over a directory is the one change that inotify never tells."""

from __future__ import annotations

import contextlib
import os
import select


class MountTable:
    """Tells, without waiting, whether the mount table changed since it was last asked (proc(5), mountinfo)."""

    def __init__(self) -> None:
        self._fd = -1
        self._poll = select.poll()
        with contextlib.suppress(OSError):  # no /proc: timed scans are left
            self._fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
            self._poll.register(self._fd, select.POLLPRI)

    def changed(self) -> bool:
        return self._fd >= 0 and bool(self._poll.poll(0))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
