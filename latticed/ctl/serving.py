"""Who serves the control socket, by the kernel's word (unix(7), SO_PEERCRED): latticectl talks to nobody else.

Trusted are root, the caller itself, the user that `access.socket_owner` names, and whoever root (or the caller) gave
the socket's directory to. A directory that anybody could have made, as in /tmp, says nothing about its owner.
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

_NOBODY: Final = 65534  # the overflow uid: a peer of another user namespace, whoever that is
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
    """The owner of the directory of `path`, if only root or the caller can have given it to them; else None."""
    mine = {0, os.geteuid()}
    directory = os.path.dirname(os.path.realpath(path))
    try:
        found = os.stat(directory)
        if found.st_mode & 0o022:
            return None
        above, below_uid = os.path.dirname(directory), found.st_uid
        while True:
            here = os.stat(above)
            open_to_all = here.st_mode & 0o022
            sticky = here.st_uid == 0 and here.st_mode & stat.S_ISVTX
            if here.st_uid not in mine or (open_to_all and not (sticky and below_uid in mine)):
                return None
            if above == "/":
                return found.st_uid
            above, below_uid = os.path.dirname(above), here.st_uid
    except OSError:
        return None


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
