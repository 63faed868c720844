"""Where the control socket is: the runtime directory, held against another daemon, and the socket's name in it.

Both are known by (device, inode), so that a name that was removed or given to something else is noticed. Everything
here blocks, briefly.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING, Final, Self

from latticed.kit import trusted_files, unix_listener
from latticed.model.errors import Problem

if TYPE_CHECKING:
    import socket
    from pathlib import Path

LOCK: Final = ".lock"
BACKLOG: Final = 1024
MODE: Final = 0o660

Identity = tuple[int, int]


class RuntimeDirectory:
    """Locked while the context is open: flock(2) on a file in it that no other user may open.

    A lock on the directory itself could be held by whoever may enter it. Entering raises Problem `runtime_unusable`
    when others own the directory or may write to it, `runtime_in_use` when another daemon holds it, `socket_unusable`
    when it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def __enter__(self) -> Self:
        self.hold()
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(self._fd), os.lstat(self.path / LOCK)):
                    os.unlink(self.path / LOCK)
            os.close(self._fd)
            self._fd = -1

    def hold(self) -> None:
        """Hold the directory that has our name now; made when there is none, the same one as before stays held."""
        try:
            self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
            trusted_files.check_directory(self.path)
            fd = self._locked()
        except OSError as error:
            raise unusable(self.path, error) from error
        except trusted_files.ForeignFile as fault:
            hint = f"chown and chmod go-w {self.path}, or name another one: runtime_dir in the settings"
            raise Problem("runtime_unusable", f"the runtime directory {self.path}: {fault}", hint) from fault
        if fd != self._fd:
            self.__exit__()
            self._fd = fd

    def _locked(self) -> int:
        """The lock file, locked; the one we hold if it is still in its place."""
        while True:
            fd = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                if self._fd >= 0 and os.path.sameopenfile(fd, self._fd):
                    os.close(fd)
                    return self._fd
                os.fchmod(fd, 0o600)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(fd), os.lstat(self.path / LOCK)):
                    return fd
            except BlockingIOError as error:
                os.close(fd)
                raise Problem(
                    "runtime_in_use",
                    f"another latticed holds {self.path}",
                    "stop it first, or give this one a runtime directory of its own",
                ) from error
            except FileNotFoundError:  # its holder has just ended
                pass
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)


class ControlSocket:
    """The socket's place in the file system; `gid` is its group, -1 for our own.

    A socket that the service manager passed (`inherited`) is its business: it is looked at, never made or removed.
    """

    def __init__(self, path: Path, *, gid: int, inherited: socket.socket | None = None) -> None:
        self.path = path
        self.inherited = inherited
        self._gid = gid
        self._made: Identity | None = None

    def open(self) -> socket.socket:
        """A listening socket; Problem `socket_unusable`."""
        if self.inherited is not None:
            return self.inherited
        sock = bind(self.path, gid=self._gid)
        self._made = identity(self.path)
        return sock

    def is_there(self) -> bool:
        """Whether the name still leads to what we listen on; always for a socket of the service manager's."""
        return self.inherited is not None or (self._made is not None and identity(self.path) == self._made)

    def remove(self) -> None:
        """Take the name away, if it is ours."""
        if self.inherited is None and self.is_there():
            self.path.unlink(missing_ok=True)

    def set_group(self, gid: int) -> None:
        """Give the socket to another group from now on; Problem `socket_unusable` when we may not."""
        if gid != self._gid and self.inherited is None:
            try:
                os.chown(self.path, -1, gid if gid >= 0 else os.getegid())
            except FileNotFoundError:
                pass  # it is made anew with the right group
            except OSError as error:
                raise unusable(self.path, error) from error
        self._gid = gid

    def foreign_group(self) -> tuple[int, int] | None:
        """(wanted, found) when the service manager's socket has another group than the settings name."""
        if self.inherited is None or self._gid < 0:
            return None
        try:
            found = os.stat(self.inherited.getsockname()).st_gid
        except (OSError, ValueError):  # an abstract name, or none any more
            return None
        return (self._gid, found) if found != self._gid else None


def identity(path: Path) -> Identity | None:
    """What has this name, by (device, inode); None when nothing has."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def bind(path: Path, *, gid: int = -1) -> socket.socket:
    """A listening socket at `path`, mode 0660 before anybody can connect; a left-over socket there is replaced.

    The caller holds the runtime directory, so nobody else can be listening. The short name that it is made under leaves
    the directory's path as many bytes as the socket's own does (unix(7): 107 in all).
    """
    try:
        return unix_listener.listen(path, mode=MODE, gid=gid, backlog=BACKLOG, fresh=path.with_name(".new"))
    except OSError as error:
        raise unusable(path, error) from error


def unusable(path: Path, error: OSError) -> Problem:
    """The problem of a control socket that cannot be."""
    return Problem("socket_unusable", f"cannot listen at {path}: {error.strerror or error}")
