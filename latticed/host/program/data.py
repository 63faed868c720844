"""The directories that services keep (`data` of service.put), and the watch over their quotas.

No file system gives an unprivileged daemon a quota for a directory, so what is there is measured: at each start, and
while the program runs as often as the free space of the disk says that it may have grown (`quota.scan_due`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from latticed.host.program import data_tree, quota
from latticed.host.program.data_tree import DataUse
from latticed.host.program.quota import FreeSpace, Looked
from latticed.host.program.rules import ProgramRefused
from latticed.kit import files
from latticed.model.errors import Problem
from latticed.processes import tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from latticed.host.program.rules import ProgramEnded
    from latticed.processes.child import Child
    from latticed.sandbox.spec import Ids

UNSIGNED: Final = "-"
"""The publisher's name in paths for unsigned plugins; no publisher can have it."""
POLL_S: Final = 0.2
"""Seconds between looks at the free space."""
DATA: Final = "data"
"""The name of the directory itself, in the one of its service; beside it is room for copies of it."""
# What the paths of open files begin with, as a process in its own root has them, and what deleted ones end with.
_INSIDE: Final = "/data/"
_DELETED: Final = " (deleted)"
_EXITING: Final = 0x4  # PF_EXITING of the flags in proc_pid_stat(5), from linux/sched.h


class ServiceData:
    """The directories of all services beneath `directory`, which is made when the first one is needed.

    An owner is `publisher/id`: another publisher of the id must not get what this one's services have kept.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def place(self, owner: str, name: str) -> Path:
        """The directory of one service, which need not exist."""
        return self._directory / owner / name / DATA

    async def made(self, owner: str, name: str, most: DataUse) -> KeptDirectory:
        """The directory of a service that is about to start, made where it is missing.

        ProgramRefused (`data_full`, `disk_full`) when the program may not start with it; Problem service_unavailable
        for a disk that fails.
        """
        kept = KeptDirectory(self.place(owner, name), most)
        await asyncio.to_thread(_make, kept.path, self._directory)
        if (refused := await kept.look()) is not None:
            raise ProgramRefused(refused)
        return kept

    async def remove(self, owner: str, name: str) -> bool:
        """Remove what a service has kept, which does not run; False: nothing is there. Problem service_unavailable."""
        return await asyncio.to_thread(_removed, self.place(owner, name).parent)

    async def kept(self, owner: str) -> set[str]:
        """The names of an owner's services that have kept something."""
        return await asyncio.to_thread(lambda: {one.parent.name for one in (self._directory / owner).glob(f"*/{DATA}")})

    async def count(self, plugin_id: str) -> int:
        """How many services of an id have kept something, those of earlier publishers included."""
        return len(await asyncio.to_thread(self._of, plugin_id))

    async def purge(self, plugin_id: str) -> int:
        """Remove all that services of an id have kept; how many they were. Problem service_unavailable."""

        def removed() -> int:
            return sum(_removed(service) for service in self._of(plugin_id))

        return await asyncio.to_thread(removed)

    def services(self) -> list[tuple[str, str, str]]:
        """(publisher, id, name) of each service that has kept something. Blocks."""
        found = []
        for service in sorted(self._directory.glob(f"*/*/*/{DATA}")):
            publisher, plugin_id, name = service.relative_to(self._directory).parts[:3]
            found.append((publisher, plugin_id, name))
        return found

    def _of(self, plugin_id: str) -> list[Path]:
        """The directories of an id's services, one for each publisher and name. Blocks."""
        return [self.place(f"{one}/{found}", name).parent for one, found, name in self.services() if found == plugin_id]


class KeptDirectory:
    """One service's directory while it runs: `path`, its quota `most`, and `use`, what the last measurement found."""

    def __init__(self, path: Path, most: DataUse) -> None:
        self.path = path
        self.most = most
        self.use = DataUse()
        self._last: Looked | None = None

    async def hand_over(self, ids: Ids | None) -> None:
        """Give it to the user that the program runs as; None: the daemon's own, and nothing is changed. OSError."""
        if ids is not None:
            await asyncio.to_thread(data_tree.hand_over, self.path, ids.uid, ids.gid)

    async def watch(self, child: Child) -> ProgramEnded:
        """Return once the program may not go on: over its quota, or the disk is nearly full. Runs until cancelled."""
        while (ended := await self.look(child)) is None:  # noqa: ASYNC110 - a disk has no event for this
            await asyncio.sleep(POLL_S)
        return ended

    async def look(self, child: Child | None = None) -> ProgramEnded | None:
        """Measure it if that is due; why the program may not go on, or None. `child`: what runs, if anything does."""
        return await asyncio.to_thread(self._look, child.roots if child is not None else ())

    def _look(self, roots: tuple[int, ...]) -> ProgramEnded | None:
        """As `look`; Problem service_unavailable when it cannot be measured."""
        try:
            free = _free(self.path)
            if (ended := quota.no_space(free)) is not None:
                return ended
            began_s = time.monotonic()
            if self._last is not None and not quota.scan_due(self._last, free, self.most, now_s=began_s):
                return None
            use = data_tree.measure(self.path, self.most)
            self.use = DataUse(bytes=use.bytes + _deleted_bytes(roots), files=use.files)
        except data_tree.TooDeep:
            return quota.too_deep(data_tree.MAX_LEVELS)
        except _Hidden:
            return quota.hidden()
        except OSError as error:
            _failed(error)
        now_s = time.monotonic()
        self._last = Looked(use=self.use, free=free, at_s=now_s, took_s=now_s - began_s)
        return quota.ended(self.use, self.most)


def _make(path: Path, top: Path) -> None:
    """Make a service's directory and those above it, up to and with `top`, durably. Problem service_unavailable."""
    try:
        missing = [one for one in (path, *path.parents) if one.is_relative_to(top) and not one.exists()]
        for one in reversed(missing):
            one.mkdir(mode=0o700)
            files.sync_directory(one.parent)
    except OSError as error:
        _failed(error)


def _removed(service: Path) -> bool:
    """Remove the directory of one service, and those above it that become empty. Problem service_unavailable."""
    try:
        there = data_tree.remove(service)
        for above in service.parents[:2] if there else ():
            with contextlib.suppress(OSError):  # not empty, as a rule
                above.rmdir()
    except OSError as error:
        _failed(error)
    return there


def _failed(error: OSError) -> NoReturn:
    """Raise Problem service_unavailable for an error of the disk, without a path."""
    reason = os.strerror(error.errno) if error.errno else "the disk refused"
    raise Problem("service_unavailable", f"what a service keeps cannot be reached: {reason}") from error


def _free(path: Path) -> FreeSpace:
    """The free space where `path` is. OSError."""
    found = os.statvfs(path)
    return FreeSpace(bytes=found.f_bavail * found.f_frsize, files=found.f_favail)


class _Hidden(Exception):
    """A process does not let the daemon see which files it has, though others do."""


class _Deleted:
    """Files of the directory that were deleted, and that processes still have open or mapped: `found`, bytes by inode.

    They take space until the last one closes them, and are in no directory. `seen`: whether a thread could be looked
    at; `hidden`: whether one could not.
    """

    def __init__(self) -> None:
        self.found: dict[int, int] = {}
        self.seen = self.hidden = False

    def look(self, pid: int) -> None:
        """Add those of a process."""
        try:
            threads = [f"/proc/{pid}/task/{tid}" for tid in os.listdir(f"/proc/{pid}/task")]
        except OSError:  # it has ended meanwhile
            return
        # Of every thread: the first has none once it has ended, and each may have descriptors of its own.
        for thread in threads:
            self._read(_open_files, thread)
        # Memory is the same for all that have not ended.
        for thread in threads:
            if self._read(_mapped_files, thread):
                return

    def _read(self, read: Callable[[str, dict[int, int]], bool], thread: str) -> bool:
        """What `read` returns; False for a thread that cannot be looked at."""
        try:
            there = read(thread, self.found)
        except PermissionError:
            self.hidden = self.hidden or not _is_ending(thread)
            return False
        except OSError:  # it has ended meanwhile
            return False
        self.seen = self.seen or there
        return there


def _deleted_bytes(roots: Iterable[int]) -> int:
    """Bytes of the `_Deleted` files that the processes of a tree have; _Hidden when one hides what it has."""
    deleted = _Deleted()
    for pid in tree.pids(roots):
        deleted.look(pid)
    # Where even process 1, which is ours, cannot be looked at, the host does not let the daemon.
    if deleted.hidden and deleted.seen:
        raise _Hidden
    return sum(deleted.found.values())


def _is_ending(thread: str) -> bool:
    """Whether a thread, `/proc/PID/task/TID`, is ending or has ended: what it has in /proc is root's then."""
    try:
        row = Path(thread, "stat").read_bytes().rpartition(b")")[2].split()  # the program chooses the name
    except OSError:
        return True
    return row[0] in {b"Z", b"X"} or bool(int(row[6]) & _EXITING)


def _open_files(thread: str, found: dict[int, int]) -> bool:
    """Add the deleted files that a thread has open to `found`; whether it has any file open. OSError."""
    names = os.listdir(f"{thread}/fd")
    for fd in names:
        link = f"{thread}/fd/{fd}"
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            name = os.readlink(link)
            if name.startswith(_INSIDE) and name.endswith(_DELETED) and (one := os.stat(link)).st_nlink == 0:
                found[one.st_ino] = data_tree.taken(one)
    return bool(names)


def _mapped_files(thread: str, found: dict[int, int]) -> bool:
    """Add the deleted files that a thread has mapped; of those it has closed only the mapped part is known. Whether it
    has any memory. OSError.
    """
    line = ""
    # Of white space in a name the kernel escapes newlines alone: other ends of lines are parts of it.
    with open(f"{thread}/maps", encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        for line in lines:
            # address perms offset dev inode path (proc_pid_maps(5))
            parts = line.rstrip("\n").split(maxsplit=5)
            if len(parts) == 6 and parts[5].startswith(_INSIDE) and parts[5].endswith(_DELETED):
                first, last = (int(one, 16) for one in parts[0].split("-"))
                inode, end = int(parts[4]), int(parts[2], 16) + last - first
                found[inode] = max(found.get(inode, 0), end)
    return bool(line)
