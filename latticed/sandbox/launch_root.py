"""The child's root directory as a list of system calls: what `stub_root` does."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from latticed.sandbox import stub_calls
from latticed.sandbox.call_program import ANY

if TYPE_CHECKING:
    from latticed.sandbox.call_program import Argument, Calls, Cell

O_CLOEXEC: Final = os.O_CLOEXEC
_AT: Final = stub_calls.AT_FDCWD
_CREATE: Final = os.O_WRONLY | os.O_CREAT | O_CLOEXEC
# From linux/mount.h, linux/fcntl.h and sys/mount.h.
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REC, _PRIVATE, _DETACH = 1, 2, 4, 8, 0x4000, 0x40000, 2
_CLONE, _RECURSIVE, _FROM_FD = 1, 0x8000, 4
_SLASH: Final = PurePosixPath("/")
_NOT_YET: Final = struct.pack("<II", 0xFFFFFFFF, 0)  # the word -1, until a descriptor is in it


def write_to(calls: Calls, path: bytes, text: Argument = b"", size: int = 0) -> None:
    """Write a text of `size` bytes to a file, which is created if it is not there."""
    file = calls.room(b"")
    calls.call("openat", _AT, path, _CREATE | os.O_TRUNC, 0o666, into=file)
    if size:
        calls.call("write", file, text, size)
    calls.call("close", file)


def build_root(calls: Calls, tree: dict[str, Any], *, scratch: bool) -> None:
    """Build the root, as `stub_root.build_tree`. Parameters: `root` and `scratch`, the options of the two tmpfs."""
    calls.begin("propagation")
    calls.call("mount", 0, b"/", 0, _REC | _PRIVATE, 0)
    clones = [
        (path, *_clone(calls, path, device=device, needed=path in tree["needed"])) for path, device in tree["binds"]
    ]
    data = calls.room(b"")
    if tree["data"]:
        calls.begin("data")
        calls.call("open_tree", _AT, b".", _CLONE | O_CLOEXEC, into=data)
        _set(calls, data, _NOSUID | _NODEV | _NOEXEC)
    calls.begin("root")
    top = next(place for place in tree["mountpoints"] if os.path.isdir(place))
    calls.call("mount", b"tmpfs", top.encode(), b"tmpfs", _NOSUID | _NODEV, calls.parameter("root"))
    for path, target in tree["links"]:
        calls.call("symlinkat", target.encode(), _AT, (top + path).encode())
    for path, directory, file in clones:
        _attach(calls, top, path, directory, file)
    calls.begin("zero")
    zero, size = tree["zero"]
    write_to(calls, (top + zero).encode())
    calls.call("truncate", (top + zero).encode(), size)
    if scratch:
        calls.begin("scratch")
        calls.call("mkdirat", _AT, f"{top}/scratch".encode(), 0o777)
        kind = _NOSUID | _NODEV | _NOEXEC
        calls.call("mount", b"tmpfs", f"{top}/scratch".encode(), b"tmpfs", kind, calls.parameter("scratch"))
    if tree["data"]:
        calls.begin("data")
        calls.call("mkdirat", _AT, f"{top}/data".encode(), 0o777)
        _move(calls, data, f"{top}/data")
    if tree["artifact"]:
        calls.begin("artifact")
        _copy_artifact(calls, top + tree["artifact"], tree["artifact_mode"])
    if tree["init"]:
        calls.begin("init")
        _open_init(calls, f"{top}/init".encode(), tree["init"])
    calls.begin("pivot_root")
    calls.call("chdir", top.encode())
    calls.call("pivot_root", b".", b".")
    calls.call("umount2", b".", _DETACH)
    calls.call("chdir", b"/")
    root = calls.room(b"")
    calls.call("openat", _AT, b"/", os.O_PATH | O_CLOEXEC, into=root)
    _set(calls, root, _RDONLY | _NOSUID | _NODEV)
    calls.call("close", root)


def _set(calls: Calls, fd: Cell, attributes: int, *, recursive: bool = False, then: int | None = None) -> None:
    """Set these of a mount (mount_setattr(2)), and go on at the label `then`."""
    flags = stub_calls.AT_EMPTY_PATH | recursive * _RECURSIVE
    calls.call("mount_setattr", fd, b"", flags, struct.pack("<4Q", attributes, 0, 0, 0), 32, on_zero=then)


def _clone(calls: Calls, path: str, *, device: bool, needed: bool) -> tuple[Cell, Cell]:
    """Clone what is at `path`. Two cells, for a directory and for a file: one has its descriptor then, or -1."""
    calls.begin(f"bind({path})")
    name, looked, directory, file = os.fsencode(path), calls.room(b""), calls.room(_NOT_YET), calls.room(_NOT_YET)
    other, done = calls.label(), calls.label()
    for cell, kind, missing in ((directory, os.O_DIRECTORY, other), (file, 0, done)):
        # Whatever the first try fails for, the second one finds out.
        may_be = ANY if kind or not needed else ()
        flags = os.O_PATH | O_CLOEXEC | kind
        calls.call("openat", _AT, name, flags, into=looked, errors=may_be, on_error=missing)
        calls.call("close", looked)
        calls.call("open_tree", _AT, name, _CLONE | _RECURSIVE | O_CLOEXEC, into=cell)
        _set(calls, cell, _RDONLY | _NOSUID | (_NOEXEC if device else _NODEV), recursive=True, then=done)
        if kind:
            calls.place(other)
    calls.place(done)
    return directory, file


def _attach(calls: Calls, top: str, path: str, directory: Cell, file: Cell) -> None:
    """Attach the clone of `path` at its place in the new root, if there is one."""
    calls.begin(f"bind({path})")
    as_file, done = calls.label(), calls.label()
    calls.look(directory, on_error=as_file)
    _make_directories(calls, top, path)
    _move(calls, directory, top + path, then=done)
    calls.place(as_file)
    calls.look(file, on_error=done)
    _make_directories(calls, top, os.path.dirname(path))
    write_to(calls, os.fsencode(top + path))
    _move(calls, file, top + path)
    calls.place(done)


def _make_directories(calls: Calls, top: str, path: str) -> None:
    """As os.makedirs, for a path below `top`."""
    ways = [way for way in (*reversed(PurePosixPath(path).parents), PurePosixPath(path)) if way != _SLASH]
    for way in ways:
        calls.call("mkdirat", _AT, os.fsencode(f"{top}{way}"), 0o755, errors={errno.EEXIST})


def _move(calls: Calls, clone: Cell, place: str, *, then: int | None = None) -> None:
    """Attach a clone, close its descriptor, and go on at the label `then`."""
    calls.call("move_mount", clone, b"", _AT, os.fsencode(place), _FROM_FD)
    calls.call("close", clone, on_zero=then)


def _copy_artifact(calls: Calls, path: str, mode: int) -> None:
    """Copy the sealed artifact to the new file `path` with the given mode."""
    out, offset, again = calls.room(b""), calls.room(b""), calls.label()
    calls.call("openat", _AT, os.fsencode(path), _CREATE | os.O_EXCL, 0o666, into=out)
    calls.place(again)
    calls.call("sendfile", out, stub_calls.ARTIFACT, calls.constant(offset.address), 1 << 30, on_more=again)
    calls.call("fchmod", out, mode)
    calls.call("close", out)


def _open_init(calls: Calls, path: bytes, program: bytes) -> None:
    """Write process 1's program to a file, keep only its descriptor."""
    out = calls.room(b"")
    calls.call("openat", _AT, path, _CREATE | os.O_EXCL, 0o666, into=out)
    calls.call("write", out, calls.constant(calls.room(program).address), len(program))
    calls.call("fchmod", out, 0o555)
    calls.call("close", out)
    calls.call("openat", _AT, path, os.O_PATH | O_CLOEXEC, into=out)
    calls.call("dup3", out, stub_calls.INIT, O_CLOEXEC)
    calls.call("close", out)
    calls.call("unlinkat", _AT, path, 0)
