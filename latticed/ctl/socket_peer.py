"""Who serves the control socket, as the kernel says (unix(7), SO_PEERCRED): latticectl talks to nobody else.

Trusted are root, the caller itself, the user that `access.socket_owner` names, and whoever root (or the caller) gave
the socket's directory, or one above it, to: /run/latticed, a home. One that anybody could have made, as in /tmp, says
nothing about its owner.
"""

from __future__ import annotations

import os
import pwd
import socket
import stat
import struct
from typing import TYPE_CHECKING, Final

from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

_NOBODY: Final = 65534  # the overflow uid: a peer of another user namespace, which may be anybody
_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred: pid, uid, gid


def check(sock: socket.socket, path: str, owner: Callable[[], str]) -> None:
    """Problem("socket_foreign") unless the connected `sock` is served by one who is trusted; nothing is sent before.

    `owner` tells the configured owner (a name or a uid), and is asked only when it matters.
    """
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid = _CREDENTIALS.unpack(raw)[1]
    if uid in {0, os.geteuid()}:
        return
    named = owner()
    if uid != _NOBODY and (uid == _uid(named) or uid == given_to(path)):
        return
    expected = f"root, yourself (uid {os.geteuid()}) or {named}" if named else f"root or yourself (uid {os.geteuid()})"
    raise Problem(
        "socket_foreign",
        f"{path} is served by uid {uid}{_called(uid)}, expected {expected}; nothing was sent",
        "if that is the daemon's user, name it in the settings: [access] socket_owner",
    )


def given_to(path: str) -> int | None:
    """The one user besides root and the caller to whom the directories that lead to `path` belong; else None.

    The uppermost of theirs must lie where only root or the caller can have put it, and none may be writable by others.
    """
    mine = {0, os.geteuid()}
    owner: int | None = None
    anybody_makes = False  # directories in the one above, as in /tmp
    here = "/"
    try:
        for part in ["", *os.path.dirname(os.path.realpath(path)).split("/")[1:]]:
            here = os.path.join(here, part)
            found = os.stat(here)
            is_open = bool(found.st_mode & 0o022)
            if found.st_uid in mine:
                sticky = found.st_uid == 0 and found.st_mode & stat.S_ISVTX
                if is_open and (owner is not None or not sticky):
                    return None
            elif is_open or anybody_makes or owner not in {None, found.st_uid}:
                return None
            else:
                owner = found.st_uid
            anybody_makes = is_open
    except OSError:
        return None
    return owner


def _uid(name: str) -> int | None:
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid if name else None
    except KeyError:
        return None


def _called(uid: int) -> str:
    try:
        return f" ({pwd.getpwuid(uid).pw_name})"
    except KeyError:
        return ""
