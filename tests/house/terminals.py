"""What a program has shown on a pseudo-terminal.

master, slave = os.openpty()
subprocess.run(command, stdout=slave)
shown = terminals.shown(master, slave)
"""

from __future__ import annotations

import contextlib
import os


def shown(master: int, slave: int) -> bytes:
    """All that was written to `slave`, which is closed, once its other users have ended; closes `master` too.

    One read may have less: the kernel hands on what was written by and by.
    """
    os.close(slave)
    found = b""
    try:
        with contextlib.suppress(OSError):  # EIO: nobody has the other end open, and all was read
            while chunk := os.read(master, 65536):
                found += chunk
    finally:
        os.close(master)
    return found
