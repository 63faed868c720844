"""Whether something was mounted or unmounted: a mount over a directory is a change that inotify does not report."""

from __future__ import annotations

import contextlib
import os
import select

from latticed.kit import files


def mount_of(fd: int) -> int:
    """The id of the mount that the descriptor `fd` is on (proc(5), fdinfo), without asking its file system.

    -1 without /proc: then all descriptors count as being on the same mount.
    """
    try:
        # Not by `open`, whose buffer takes longer than the rest; its few lines come in one read.
        info = os.open(f"/proc/self/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1  # no /proc: all lie on the same
    with files.closing(info):
        _, _, rest = os.read(info, 4096).partition(b"mnt_id:")
    return int(rest.split(maxsplit=1)[0]) if rest else -1


class MountTable:
    """Notices, without waiting, that the mount table changed since it was last asked (proc(5), mountinfo)."""

    def __init__(self) -> None:
        self._fd = -1
        self._poll = select.poll()
        with contextlib.suppress(OSError):  # no /proc: timed scans are left
            self._fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
            # Only POLLPRI: the file is always readable, and a change shows as POLLPRI and POLLERR, once per descriptor.
            self._poll.register(self._fd, select.POLLPRI)

    def changed(self) -> bool:
        """Whether anything was mounted or unmounted since the last call; always False without /proc."""
        return self._fd >= 0 and bool(self._poll.poll(0))

    def close(self) -> None:
        """Close the descriptor; harmless when it was closed already, or never opened."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
