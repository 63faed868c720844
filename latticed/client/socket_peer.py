"""Checks who serves the control socket (unix(7), SO_PEERCRED) before anything is sent.

Trusted are root, the caller, the user in `access.socket_owner`, and the owner of the socket's directory or of one above
it, if only root or the caller can have created that: /run/latticed, a home. In a directory where anybody may create
one, such as /tmp, an owner proves nothing.
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
    """Raise Problem("socket_foreign") unless a trusted user serves the connected `sock`.

    `owner` returns the configured owner, a name or a uid. It is not called when root or the caller serves the socket.
    """
    # Those of the server at the time of its listen(2) (unix(7)).
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid = _CREDENTIALS.unpack(raw)[1]
    if uid in {0, os.geteuid()}:
        return
    # Asked for only now, as it reads the settings file.
    named = owner()
    # Excluded even if it is named: any process of another user namespace has this uid.
    if uid != _NOBODY and (uid == _uid(named) or uid == given_to(path)):
        return
    expected = f"root, yourself (uid {os.geteuid()}) or {named}" if named else f"root or yourself (uid {os.geteuid()})"
    raise Problem(
        "socket_foreign",
        f"{path} is served by uid {uid}{_called(uid)}, expected {expected}; nothing was sent",
        "if that is the daemon's user, name it in the settings: [access] socket_owner",
    )


def given_to(path: str) -> int | None:
    """The uid, other than root and the caller, that owns directories on the way to `path`; None if not exactly one.

    Also None when others may write to one of these directories, or could have created the uppermost.
    """
    mine = {0, os.geteuid()}
    owner: int | None = None
    anybody_makes = False  # the parent is writable by all, such as /tmp
    here = "/"
    try:
        # From the root down: a user who may write to a directory can replace everything below it.
        for part in ["", *os.path.dirname(os.path.realpath(path)).split("/")[1:]]:
            here = os.path.join(here, part)
            found = os.stat(here)
            is_open = bool(found.st_mode & 0o022)
            if found.st_uid in mine:
                # In a sticky directory others cannot rename or remove what is not theirs, but can create (inode(7)).
                sticky = found.st_uid == 0 and found.st_mode & stat.S_ISVTX
                if is_open and (owner is not None or not sticky):
                    return None
            elif is_open or anybody_makes or owner not in {None, found.st_uid}:
                return None
            else:
                owner = found.st_uid
            anybody_makes = is_open
    # A directory that cannot be looked at proves nothing.
    except OSError:
        return None
    return owner


def _uid(name: str) -> int | None:
    """The uid of a user name or number; None for an empty or unknown one."""
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid if name else None
    except KeyError:
        return None


def _called(uid: int) -> str:
    """The user's name in brackets; empty for a uid without one."""
    try:
        return f" ({pwd.getpwuid(uid).pw_name})"
    except KeyError:
        return ""
