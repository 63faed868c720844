"""The control socket's file and its runtime directory, which is locked against a second daemon.

Both are identified by (device, inode), so that a path that was removed or replaced is noticed. All functions block on
file system calls: run them on a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from latticed.kit import trusted_files, unix_listener
from latticed.model.errors import Problem

if TYPE_CHECKING:
    import socket

LOCK: Final = ".lock"
"""Name of the lock file in the runtime directory."""
# Connections that wait for accept(2); beyond it connect(2) of a non-blocking client fails with EAGAIN. The kernel
# lowers it to net.core.somaxconn (listen(2)).
BACKLOG: Final = 1024
# To connect takes write permission for the socket's file (unix(7)).
MODE: Final = 0o660

Identity = tuple[int, int]


class RuntimeDirectory:
    """Locked while the context is open: flock(2) on a file in it that no other user may open.

    A lock on the directory itself could be held by any user who may enter it. Entering raises Problem
    `runtime_unusable` when others own the directory or may write to it, `runtime_in_use` when another daemon holds it,
    `socket_unusable` when it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def __enter__(self) -> Self:
        self.lock()
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            # Removed while it is still locked, and only if it is ours: the path may lead to another daemon's file by
            # now.
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(self._fd), os.lstat(self.path / LOCK)):
                    os.unlink(self.path / LOCK)
            os.close(self._fd)
            self._fd = -1

    def lock(self) -> None:
        """Create the directory if it is missing and lock it; a no-op when `path` is still the locked directory."""
        try:
            self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
            trusted_files.check_directory(self.path)
            fd = self._locked()
        except OSError as error:
            raise unusable(self.path, error) from error
        except trusted_files.ForeignFile as fault:
            hint = f"chown and chmod go-w {self.path}, or name another one: runtime_dir in the settings"
            raise Problem("runtime_unusable", f"the runtime directory {self.path}: {fault}", hint) from fault
        # The old lock is kept until the new directory is locked.
        if fd != self._fd:
            self.__exit__()
            self._fd = fd

    def _locked(self) -> int:
        """A descriptor of the locked lock file: the present one if `path` still leads to it, else a new one.

        Another daemon removes the file when it ends, so a lock counts only if the path still leads to the locked file.
        """
        while True:
            # Without O_EXCL: a killed daemon leaves the file, but not its lock (flock(2)).
            fd = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                # flock(2) locks belong to an open file description: this descriptor would conflict with our own lock.
                if self._fd >= 0 and os.path.sameopenfile(fd, self._fd):
                    os.close(fd)
                    return self._fd
                # open(2) sets the mode of a new file only; who can open the file can lock it.
                os.fchmod(fd, 0o600)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(fd), os.lstat(self.path / LOCK)):
                    with contextlib.suppress(OSError):  # only for the message below; a full disk prevents no start
                        os.ftruncate(fd, 0)
                        os.pwrite(fd, f"{os.getpid()}\n".encode("ascii"), 0)
                    return fd
            except BlockingIOError as error:
                pid = os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
                os.close(fd)
                raise Problem(
                    "runtime_in_use",
                    f"another latticed (pid {pid}) holds {self.path}",
                    "stop it first, or give this one a runtime directory of its own",
                ) from error
            except FileNotFoundError:  # its holder has just ended and removed it: try again
                pass
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)


class ControlSocket:
    """The listening socket and its file; `gid` is the file's group, -1 for the daemon's own.

    A socket passed by the service manager (`inherited`) belongs to it: its file is never created, changed or removed.
    """

    def __init__(self, path: Path, *, gid: int, inherited: socket.socket | None = None) -> None:
        self.path = path
        self.inherited = inherited
        self._gid = gid
        self._made: Identity | None = None

    def open(self) -> socket.socket:
        """A socket to listen at: the inherited one, or a new one at `path`; Problem socket_unusable."""
        if self.inherited is not None:
            self._made = identity(self._file())
            return self.inherited
        sock = bind(self.path, gid=self._gid)
        # After the rename: from now on `is_there` compares with this.
        self._made = identity(self.path)
        return sock

    def is_there(self) -> bool:
        """Whether the path still leads to our socket. True for an inherited one that never was at a path (unix(7):
        abstract), or where this process does not see it.
        """
        if self._made is None:
            return self.inherited is not None
        return identity(self._file()) == self._made

    def _file(self) -> Path:
        """Where clients find the socket: that of an inherited one is its maker's choice."""
        name = self.inherited.getsockname() if self.inherited is not None else ""
        return Path(name) if isinstance(name, str) and name.startswith("/") else self.path

    def remove(self) -> None:
        """Remove the file if it is still our socket's; another daemon may have replaced it."""
        if self.inherited is None and self.is_there():
            self.path.unlink(missing_ok=True)

    def set_group(self, gid: int) -> None:
        """Change the file's group, now and for later `open`s; Problem `socket_unusable` when that is not permitted."""
        if gid != self._gid and self.inherited is None:
            try:
                # chown(2) takes -1 as "leave it", so the daemon's own group has to be named.
                os.chown(self.path, -1, gid if gid >= 0 else os.getegid())
            except FileNotFoundError:
                pass  # the next `open` creates it with the new group
            except OSError as error:
                raise unusable(self.path, error) from error
        self._gid = gid

    def foreign_group(self) -> tuple[int, int] | None:
        """(expected gid, found gid) when an inherited socket's group is not the one in the settings, else None."""
        if self.inherited is None or self._gid < 0:
            return None
        try:
            found = os.stat(self.inherited.getsockname()).st_gid
        except (OSError, ValueError):  # an abstract address, or the file was removed
            return None
        return (self._gid, found) if found != self._gid else None


def identity(path: Path) -> Identity | None:
    """(device, inode) of `path` itself, links not followed; None when there is nothing."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def bind(path: Path, *, gid: int = -1) -> socket.socket:
    """A listening socket at `path`, mode 0660 before anybody can connect; a left-over socket there is replaced.

    The caller must hold the runtime directory's lock: an existing socket is replaced without a check for a listener.
    It is created under the short name `.new` and renamed, so that the temporary path fits where `path` does (unix(7):
    at most 107 bytes).
    """
    try:
        return unix_listener.listen(path, mode=MODE, gid=gid, backlog=BACKLOG, fresh=path.with_name(".new"))
    except OSError as error:
        raise unusable(path, error) from error


def unusable(path: Path, error: OSError) -> Problem:
    """Problem("socket_unusable") for an OSError at `path`."""
    return Problem("socket_unusable", f"cannot listen at {path}: {error.strerror or error}")
