"""A directory whose files stop answering when told: a small FUSE file system of this process (needs uid 0).

with hanging_mounts.mounted(place.home / "mount", {"trust.json": data}, uid=place.uid) as there:
    there.stall()    # every system call on it waits from now on, as on a dead network mount
    there.go_on()
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import stat
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_HEADER = struct.Struct("=IIQQIIII")  # len, opcode, unique, nodeid, uid, gid, pid, padding (linux/fuse.h)
_ATTR = struct.Struct("=6Q10I")
_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _RELEASE, _FLUSH, _INIT, _OPENDIR, _RELEASEDIR, _INTERRUPT, _BATCH_FORGET = (
    1,
    2,
    3,
    14,
    15,
    18,
    25,
    26,
    27,
    29,
    36,
    42,
)
_NO_REPLY = {_FORGET, _INTERRUPT, _BATCH_FORGET}
_MNT_DETACH = 2


@dataclass
class Mount:
    """What is mounted at `path`. `files` may be changed; nothing is cached by the kernel."""

    path: Path
    files: dict[str, bytes]
    uid: int
    fd: int
    end: int
    stamps: dict[str, int] = field(default_factory=dict)
    stalled: threading.Event = field(default_factory=threading.Event)
    held: threading.Event = field(default_factory=threading.Event)

    def write(self, name: str, data: bytes) -> None:
        """Replace a file, with a new time of change."""
        self.files[name] = data
        self.stamps[name] = time.time_ns()

    def stall(self) -> None:
        """Answer no request from now on."""
        self.stalled.set()

    def wait_for_somebody(self) -> None:
        """Wait until a system call waits for an answer."""
        assert self.held.wait(20), "nobody asked for anything"

    def go_on(self) -> None:
        """Answer the waiting requests, and later ones."""
        self.stalled.clear()
        self.held.clear()

    def serve(self) -> None:
        """Answer requests until it is unmounted. What is not to be answered is not even read: else who waits could not
        be killed.
        """
        ready = select.poll()
        for fd in (self.fd, self.end):
            ready.register(fd, select.POLLIN)
        over = select.poll()
        over.register(self.end, select.POLLIN)
        while self.end not in dict(ready.poll()):
            if self.stalled.is_set():
                self.held.set()
                over.poll(20)
                continue
            try:
                request = os.read(self.fd, 1 << 20)
            except OSError:  # whoever asked was killed meanwhile
                continue
            self.answer(request)

    def answer(self, request: bytes) -> None:
        _, opcode, unique, node, *_ = _HEADER.unpack_from(request)
        if opcode in _NO_REPLY:
            return
        try:
            error, body = 0, self.reply(opcode, node, request[_HEADER.size :])
        except OSError as failure:
            error, body = -(failure.errno or errno.EIO), b""
        with contextlib.suppress(OSError):  # whoever asked is gone
            os.write(self.fd, struct.pack("=IiQ", 16 + len(body), error, unique) + body)

    def reply(self, opcode: int, node: int, body: bytes) -> bytes:
        names = sorted(self.files)
        if opcode == _INIT:
            return struct.pack("=4IHHIIHHI7I", 7, 31, 1 << 17, 0, 8, 8, 1 << 17, 1, 32, 0, 0, *[0] * 7)
        if opcode == _LOOKUP:
            name = body.rstrip(b"\0").decode()
            if name not in self.files:
                raise FileNotFoundError(errno.ENOENT, name)
            number = names.index(name) + 2
            return struct.pack("=QQQQII", number, 0, 0, 0, 0, 0) + self.attributes(number)
        if opcode == _GETATTR:
            return struct.pack("=QII", 0, 0, 0) + self.attributes(node)
        if opcode in {_OPEN, _OPENDIR}:
            return struct.pack("=QII", 0, 1, 0)  # FOPEN_DIRECT_IO
        if opcode == _READ:
            _, offset, size = struct.unpack_from("=QQI", body)
            return self.files[names[node - 2]][offset : offset + size]
        if opcode in {_RELEASE, _RELEASEDIR, _FLUSH}:
            return b""
        raise OSError(errno.ENOSYS, "not needed here")

    def attributes(self, node: int) -> bytes:
        if node == 1:
            return _ATTR.pack(1, 0, 0, 0, 0, 0, 0, 0, 0, stat.S_IFDIR | 0o755, 2, self.uid, self.uid, 0, 4096, 0)
        name = sorted(self.files)[node - 2]
        size, (seconds, nanoseconds) = len(self.files[name]), divmod(self.stamps.get(name, 0), 10**9)
        times = (seconds, seconds, seconds, nanoseconds, nanoseconds, nanoseconds)
        return _ATTR.pack(node, size, 8, *times, stat.S_IFREG | 0o644, 1, self.uid, self.uid, 0, 4096, 0)


@contextlib.contextmanager
def mounted(path: Path, files: dict[str, bytes], *, uid: int) -> Iterator[Mount]:
    """Mount `files` at `path`, which is made if it is missing. Requests that still wait at the end get an error."""
    if os.getuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("a file system that stops answering needs uid 0 and /dev/fuse")
    made = not path.exists()
    path.mkdir(exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40755,user_id=0,group_id=0,allow_other".encode()
    if libc.mount(b"latticed-test", os.fsencode(path), b"fuse", ctypes.c_ulong(0), options) != 0:
        os.close(fd)
        pytest.skip(f"FUSE cannot be mounted here: {os.strerror(ctypes.get_errno())}")
    end, ended = os.pipe()
    there = Mount(path=path, files=files, uid=uid, fd=fd, end=end)
    server = threading.Thread(target=there.serve, name="fuse", daemon=True)
    server.start()
    try:
        yield there
    finally:
        os.close(ended)
        server.join()
        os.close(end)
        os.close(fd)  # ends the connection: whoever waits gets an error
        libc.umount2(os.fsencode(path), _MNT_DETACH)
        if made:
            path.rmdir()
