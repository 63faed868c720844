"""A listening unix socket whose mode is right before anybody can connect, without touching the umask of all threads."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

SERVER_OPTIONS: Final[dict[str, Any]] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
"""For asyncio's servers on a socket that is handed to them: from Python 3.13 on they remove its path when they close,
also where it belongs to the service manager, whose clients wait there for the next start.
"""


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
