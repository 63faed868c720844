"""A disk that hangs when told: a directory behind a FUSE file system of this process, which passes everything on to
another directory until chosen requests are held (needs uid 0).

with hanging_disk.mounted(place.state) as disk:
    disk.hold(hanging_disk.WRITES)   # no write or fsync of anybody returns from now on; reads do
    disk.wait_for_somebody()
    disk.let_go()

Whoever is killed while he waits gets EINTR, so that he can end: on most real disks he could not. Files are not mapped
from it, and nobody's permissions are checked. See linux/include/uapi/linux/fuse.h for the protocol.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

SETATTR, READ, WRITE, FSYNC, FALLOCATE = 4, 15, 16, 20, 43  # of the operations, FUSE_*
WRITES: Final = frozenset({SETATTR, WRITE, FSYNC, FALLOCATE})
_FORGET, _INTERRUPT, _DESTROY, _BATCH_FORGET = 2, 36, 38, 42
_HEADER: Final = struct.Struct("=IIQQIIII")  # len, opcode, unique, nodeid, uid, gid, pid, padding
_ATTR: Final = struct.Struct("=6Q10I")
_VALID_S: Final = 3600  # the kernel need not ask for names and sizes again, as with a disk
_MODE, _UID, _GID, _SIZE = 1, 2, 4, 8  # FATTR_*
_MNT_FORCE, _MNT_DETACH = 1, 2
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Disk:
    """Answers the kernel until it is unmounted. `waiting` are the requests that are held, by their numbers."""

    def __init__(self, fd: int, behind: Path) -> None:
        self._fd = fd
        self._behind = behind
        self._paths = {1: ""}
        self._numbers = {"": 1}
        self._held: frozenset[int] = frozenset()
        self._changed = threading.Condition()
        self.waiting: dict[int, bytes] = {}

    def hold(self, operations: frozenset[int]) -> None:
        """Answer no such request from now on."""
        with self._changed:
            self._held = operations

    def wait_for_somebody(self) -> None:
        """Wait until a system call waits for an answer."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.waiting, 60), "nobody asked for anything that is held"

    def let_go(self) -> None:
        """Carry out what waits, and whatever comes."""
        with self._changed:
            self._held = frozenset()
            waiting, self.waiting = self.waiting, {}
        for request in waiting.values():
            self._carry_out(request)

    def serve(self) -> None:
        while True:
            try:
                request = os.read(self._fd, (1 << 17) + 4096)
            except OSError as error:
                if error.errno in {errno.ENODEV, errno.EBADF}:
                    return
                if error.errno in {errno.EINTR, errno.ENOENT}:  # whoever asked was killed before it was read
                    continue
                raise
            _, operation, unique, *_ = _HEADER.unpack_from(request)
            with self._changed:
                if operation in self._held:
                    self.waiting[unique] = request
                    self._changed.notify_all()
                    continue
                if operation == _INTERRUPT:
                    (killed,) = struct.unpack_from("=Q", request, _HEADER.size)
                    if self.waiting.pop(killed, None):
                        self._answer(killed, -errno.EINTR, b"")
                    continue
            if operation not in {_FORGET, _BATCH_FORGET, _DESTROY}:
                self._carry_out(request)

    def _carry_out(self, request: bytes) -> None:
        _, operation, unique, node, uid, gid, *_ = _HEADER.unpack_from(request)
        try:
            code, data = 0, self._done(operation, node, request[_HEADER.size :], (uid, gid))
        except OSError as error:
            code, data = -(error.errno or errno.EIO), b""
        self._answer(unique, code, data)

    def _answer(self, unique: int, code: int, data: bytes) -> None:
        with contextlib.suppress(OSError):  # whoever asked is gone
            os.write(self._fd, struct.pack("=IiQ", 16 + len(data), code, unique) + data)

    def _done(self, operation: int, node: int, body: bytes, ids: tuple[int, int]) -> bytes:
        """What one operation (FUSE_*) gives; OSError as the directory behind does."""
        works: dict[int, Callable[[], bytes]] = {
            1: lambda: self._entry(node, _name(body)),  # LOOKUP
            3: lambda: self._looked_at(node),  # GETATTR
            SETATTR: lambda: self._set(node, body),
            9: lambda: self._make_directory(node, body, ids),  # MKDIR
            10: lambda: self._remove(os.unlink, node, body),  # UNLINK
            11: lambda: self._remove(os.rmdir, node, body),  # RMDIR
            12: lambda: self._rename(node, body, 8),  # RENAME
            14: lambda: _opened(os.open(self._place(node), os.O_RDWR | struct.unpack_from("=I", body)[0] & os.O_TRUNC)),
            READ: lambda: _read(body),
            WRITE: lambda: _written(body),
            17: lambda: _statistics(self._behind),  # STATFS
            18: lambda: _closed(body),  # RELEASE
            26: lambda: struct.pack("=4I2H2I2H8I", 7, 31, 1 << 17, 0, 16, 12, 1 << 17, 1, 0, 0, *[0] * 8),  # INIT
            27: lambda: struct.pack("=Q2I", 0, 0, 0),  # OPENDIR
            28: lambda: self._listing(node, *struct.unpack_from("=QI", body, 8)),  # READDIR
            35: lambda: self._create(node, body, ids),  # CREATE
            FALLOCATE: lambda: _allocated(body),
            45: lambda: self._rename(node, body, 16),  # RENAME2
            # FSYNC, FLUSH, RELEASEDIR, FSYNCDIR: no power is cut here
            **dict.fromkeys((FSYNC, 25, 29, 30), lambda: b""),
        }
        if operation not in works:
            raise OSError(errno.ENOSYS, "not needed here")
        return works[operation]()

    def _place(self, node: int, name: str = "") -> Path:
        return self._behind / self._paths[node] / name

    def _entry(self, node: int, name: str) -> bytes:
        path = self._place(node, name)
        inode = path.lstat().st_ino
        relative = str(path.relative_to(self._behind))
        if (number := self._numbers.get(relative)) is None:
            number = self._numbers[relative] = len(self._paths) + 1
            self._paths[number] = relative
        return struct.pack("=4Q2I", number, inode, _VALID_S, _VALID_S, 0, 0) + self._attributes(number)

    def _looked_at(self, node: int) -> bytes:
        return struct.pack("=Q2I", _VALID_S, 0, 0) + self._attributes(node)

    def _set(self, node: int, body: bytes) -> bytes:
        path = self._place(node)
        valid, _, _, size = struct.unpack_from("=2I2Q", body)
        mode, _, uid, gid = struct.unpack_from("=4I", body, 68)
        if valid & _MODE:
            path.chmod(mode & 0o7777)
        if valid & (_UID | _GID):
            os.chown(path, uid if valid & _UID else -1, gid if valid & _GID else -1)
        if valid & _SIZE:
            os.truncate(path, size)
        return self._looked_at(node)

    def _make_directory(self, node: int, body: bytes, ids: tuple[int, int]) -> bytes:
        path = self._place(node, name := _name(body[8:]))
        path.mkdir(struct.unpack_from("=I", body)[0])
        os.chown(path, *ids)
        return self._entry(node, name)

    def _create(self, node: int, body: bytes, ids: tuple[int, int]) -> bytes:
        flags, mode = struct.unpack_from("=2I", body)
        path = self._place(node, name := _name(body[16:]))
        fd = os.open(path, os.O_RDWR | os.O_CREAT | flags & (os.O_EXCL | os.O_TRUNC), mode & 0o7777)
        os.chown(path, *ids)
        return self._entry(node, name) + _opened(fd)

    def _remove(self, how: Callable[[Path], None], node: int, body: bytes) -> bytes:
        path = self._place(node, _name(body))
        how(path)
        self._numbers.pop(str(path.relative_to(self._behind)), None)
        return b""

    def _rename(self, node: int, body: bytes, skip: int) -> bytes:
        (target,) = struct.unpack_from("=Q", body)
        old, new, _ = body[skip:].split(b"\0", 2)
        before, after = self._place(node, old.decode()), self._place(target, new.decode())
        before.rename(after)
        was, now = (str(one.relative_to(self._behind)) for one in (before, after))
        for path in [one for one in self._numbers if one == was or one.startswith(f"{was}/")]:
            number = self._numbers.pop(path)
            self._paths[number] = now + path[len(was) :]
            self._numbers[self._paths[number]] = number
        return b""

    def _attributes(self, node: int) -> bytes:
        found = os.lstat(self._place(node))
        times = [divmod(one, 10**9) for one in (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)]
        return _ATTR.pack(
            found.st_ino, found.st_size, found.st_blocks, *(one[0] for one in times), *(one[1] for one in times),
            found.st_mode, found.st_nlink, found.st_uid, found.st_gid, 0, 4096, 0,
        )  # fmt: skip

    def _listing(self, node: int, offset: int, size: int) -> bytes:
        data = b""
        for place, entry in enumerate(sorted(os.listdir(self._place(node)))[offset:], offset + 1):
            name = entry.encode()
            record = struct.pack("=2Q2I", 1, place, len(name), 0) + name
            record += bytes(-len(record) % 8)
            if len(data) + len(record) > size:
                break
            data += record
        return data


def _opened(fd: int) -> bytes:
    return struct.pack("=Q2I", fd, 0, 0)


def _read(body: bytes) -> bytes:
    handle, offset, size = struct.unpack_from("=2QI", body)
    return os.pread(handle, size, offset)


def _written(body: bytes) -> bytes:
    handle, offset, size = struct.unpack_from("=2QI", body)
    return struct.pack("=2I", os.pwrite(handle, body[40 : 40 + size], offset), 0)


def _allocated(body: bytes) -> bytes:
    os.posix_fallocate(*struct.unpack_from("=3Q", body))
    return b""


def _closed(body: bytes) -> bytes:
    os.close(struct.unpack_from("=Q", body)[0])
    return b""


def _statistics(place: Path) -> bytes:
    found = os.statvfs(place)
    counts = (found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree)
    return struct.pack("=5Q4I24x", *counts, found.f_bsize, found.f_namemax, found.f_frsize, 0)


def _name(body: bytes) -> str:
    return body.split(b"\0", 1)[0].decode()


@contextlib.contextmanager
def mounted(place: Path) -> Iterator[Disk]:
    """Mount it over the directory `place`, with what is and comes in there. At its end nobody waits any more."""
    if os.getuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("a file system that stops answering needs uid 0 and /dev/fuse")
    behind = place.with_name(f"{place.name}.behind")
    place.rename(behind)
    place.mkdir()
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40755,user_id=0,group_id=0,allow_other".encode()
    if _libc.mount(b"latticed-disk", os.fsencode(place), b"fuse", ctypes.c_ulong(0), options) != 0:
        os.close(fd)
        pytest.skip(f"FUSE cannot be mounted here: {os.strerror(ctypes.get_errno())}")
    disk = Disk(fd, behind)
    server = threading.Thread(target=disk.serve, name="disk", daemon=True)
    server.start()
    try:
        yield disk
    finally:
        disk.let_go()
        _libc.umount2(os.fsencode(place), _MNT_FORCE | _MNT_DETACH)
        server.join(10)
        os.close(fd)
        place.rmdir()
        behind.rename(place)
        assert not server.is_alive()
