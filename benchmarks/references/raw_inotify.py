"""inotify(7) with nothing in between: the reference for how soon a change can be heard of."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path

IN_CLOSE_WRITE = 0x8
_LIBC = ctypes.CDLL(None, use_errno=True)


def watch(directory: Path) -> int:
    """A descriptor that becomes readable when a file in `directory` is closed after writing."""
    fd = int(_LIBC.inotify_init1(os.O_CLOEXEC))
    if fd < 0 or _LIBC.inotify_add_watch(fd, os.fsencode(directory), IN_CLOSE_WRITE) < 0:
        raise OSError(ctypes.get_errno(), "inotify")
    return fd


class RawInotify:
    """A thread that waits for IN_CLOSE_WRITE in one directory and notes when it came."""

    def __init__(self, directory: Path) -> None:
        self._fd = watch(directory)
        self._path = directory / ".end"
        self._thread = threading.Thread(target=self._listen, name="raw-inotify", daemon=True)
        self._heard = threading.Event()
        self._ending = False
        self.at_s = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        self._path.write_bytes(b"")
        self._thread.join()
        self._path.unlink()
        os.close(self._fd)

    def wait(self, timeout_s: float = 5.0) -> float:
        """When the next event was read, as perf_counter; TimeoutError when none comes."""
        if not self._heard.wait(timeout_s):
            raise TimeoutError("expected an inotify event, found none")
        self._heard.clear()
        return self.at_s

    def _listen(self) -> None:
        while not self._ending:
            os.read(self._fd, 4096)
            self.at_s = time.perf_counter()
            self._heard.set()
