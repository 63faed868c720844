"""A listening unix socket whose mode is right before anybody can connect, without touching the umask of all threads."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def listen(
    path: Path, *, mode: int = 0o660, gid: int = -1, backlog: int = 64, fresh: Path | None = None
) -> socket.socket:
    """A non-blocking stream socket that listens at `path`; a left-over socket there is replaced. OSError,
    FileExistsError for anything else at `path`.

    It is made under another name (`fresh`, in the same directory), given `mode` and `gid` (-1: as it is), and renamed.
    The caller has made sure that nobody else listens there. The file is not removed when the socket is closed.
    """
    fresh = fresh or path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(False)
        sock.bind(str(fresh))
        # Before listen: until then connect(2) is refused, so nobody gets in under the mode that the umask left.
        fresh.chmod(mode)
        os.chown(fresh, -1, gid)
        sock.listen(backlog)
        # rename(2) would silently replace it.
        if os.path.lexists(path) and not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "something that is no socket is in its place")
        fresh.rename(path)
    except BaseException:
        sock.close()
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise
    return sock
