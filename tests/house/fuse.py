"""An untrusted file system: a tiny read-only FUSE server over /dev/fuse that hangs on chosen requests.

with fuse.mounted(place, {"demo/manifest.json": b"…"}) as server:
    server.hangs.add(fuse.READDIR)

See linux/include/uapi/linux/fuse.h for the protocol. Mounting needs root.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

LOOKUP, GETATTR, OPEN, READ, FLUSH, OPENDIR, READDIR = 1, 3, 14, 15, 25, 27, 28
_FORGET, _RELEASE, _INIT, _RELEASEDIR, _INTERRUPT, _BATCH_FORGET = 2, 18, 26, 29, 36, 42
EVERYTHING: Final = frozenset({LOOKUP, GETATTR, OPEN, READ, OPENDIR, READDIR})
NOBODY: Final = 65534
_HEADER: Final = struct.Struct("=IIQQIIII")
_ATTR: Final = struct.Struct("=6Q10I")
_MNT_FORCE, _MNT_DETACH = 1, 2
_BUFFER_BYTES: Final = 1 << 20

_libc: Final = ctypes.CDLL(None, use_errno=True)

needed: Final = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs uid 0 and /dev/fuse to mount"
)


class Server:
    """Answers the kernel until it is unmounted. `hangs` are the operations that are never answered, `fails` those that
    are answered with EIO.
    """

    def __init__(self, fd: int, tree: Mapping[str, bytes], hangs: set[int], fails: Collection[int]) -> None:
        self.hangs = hangs
        self._fails = fails
        self._fd = fd
        self._nodes: list[tuple[int, str, bytes | None]] = [(0, "", None)]  # parent, name, content; None: a directory
        for path, content in tree.items():
            at = 1
            *parents, name = path.split("/")
            for parent in parents:
                at = self._find(at, parent) or self._add(at, parent, None)
            self._add(at, name, content)

    def run(self) -> None:
        """Serve until the file system is unmounted."""
        while True:
            try:
                request = os.read(self._fd, _BUFFER_BYTES + 4096)
            except OSError as error:
                if error.errno in {errno.ENODEV, errno.EBADF}:
                    return
                if error.errno in {errno.EINTR, errno.ENOENT}:
                    continue
                raise
            _, operation, unique, node, *_ = _HEADER.unpack_from(request)
            if operation in self.hangs or operation in {_FORGET, _BATCH_FORGET, _INTERRUPT}:
                continue
            failed = operation in self._fails
            answer = errno.EIO if failed else self._answer(operation, node, request[_HEADER.size :])
            code, data = (-answer, b"") if isinstance(answer, int) else (0, answer)
            with contextlib.suppress(OSError):  # whoever asked has been killed meanwhile
                os.write(self._fd, struct.pack("=IiQ", 16 + len(data), code, unique) + data)

    def _answer(self, operation: int, node: int, rest: bytes) -> bytes | int:
        match operation:
            case 26:
                return struct.pack("=4I2H2I2H8I", 7, 31, 65536, 0, 0, 0, _BUFFER_BYTES // 8, 1, 0, 0, *[0] * 8)
            case 1:
                found = self._find(node, rest.rstrip(b"\0").decode())
                return struct.pack("=4Q2I", found, 0, 0, 0, 0, 0) + self._attr(found) if found else errno.ENOENT
            case 3:
                return struct.pack("=Q2I", 0, 0, 0) + self._attr(node)
            case 14 | 27:
                return struct.pack("=Q2I", 0, 0, 0)
            case 15:
                _, offset, size = struct.unpack_from("=2QI", rest)
                return (self._nodes[node - 1][2] or b"")[offset : offset + size]
            case 28:
                return self._listing(node, struct.unpack_from("=2Q", rest)[1])
            case 18 | 29:
                return b""
            case _:
                return errno.ENOSYS

    def _listing(self, node: int, offset: int) -> bytes:
        children = [(i + 1, name, content) for i, (up, name, content) in enumerate(self._nodes) if up == node]
        data = b""
        for place, (number, name, content) in enumerate(children[offset:], offset + 1):
            kind = (stat.S_IFDIR if content is None else stat.S_IFREG) >> 12
            entry = struct.pack("=2Q2I", number, place, len(name), kind) + name.encode()
            data += entry + bytes(-len(entry) % 8)
        return data

    def _attr(self, node: int) -> bytes:
        content = self._nodes[node - 1][2]
        mode = stat.S_IFDIR | 0o755 if content is None else stat.S_IFREG | 0o644
        return _ATTR.pack(node, len(content or b""), 1, 1, 1, 1, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _find(self, parent: int, name: str) -> int:
        wanted = (parent, name)
        return next((i + 1 for i, (up, called, _) in enumerate(self._nodes) if (up, called) == wanted), 0)

    def _add(self, parent: int, name: str, content: bytes | None) -> int:
        self._nodes.append((parent, name, content))
        return len(self._nodes)


@contextlib.contextmanager
def mounted(
    place: Path,
    tree: Mapping[str, bytes] | None = None,
    *,
    uid: int = 0,
    shared: bool = True,
    hangs: set[int] | None = None,
    fails: Collection[int] = (),
) -> Iterator[Server]:
    """Mount it on `place` for the user `uid`; unless `shared`, no other user can read it, root neither."""
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    server = Server(fd, tree or {}, hangs if hangs is not None else set(), fails)
    options = f"fd={fd},rootmode=40755,user_id={uid},group_id=0" + ",allow_other" * shared
    if _libc.mount(b"stranger", os.fsencode(place), b"fuse", 0, options.encode()):
        number = ctypes.get_errno()
        os.close(fd)
        raise OSError(number, os.strerror(number))
    thread = threading.Thread(target=server.run, name="fuse server")
    thread.start()
    try:
        yield server
    finally:
        _libc.umount2(os.fsencode(place), _MNT_FORCE | _MNT_DETACH)
        thread.join(10)
        os.close(fd)
        assert not thread.is_alive()
