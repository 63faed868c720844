"""The part of the launch stub that builds the child's root directory; executed in `stub`'s namespace."""

from __future__ import annotations

import ctypes
import os
import stat
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from latticed.sandbox.stub_calls import (  # noqa: TC004 - executed before this, in the same names
        ARTIFACT,
        AT_EMPTY_PATH,
        AT_FDCWD,
        INIT,
        Plan,
        begin,
        call,
        check,
        libc,
        write_to,
    )

# From linux/mount.h, linux/fcntl.h and sys/mount.h.
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE, MNT_DETACH = 1, 2, 4, 8, 0x4000, 0x40000, 2
OPEN_TREE_CLONE, AT_RECURSIVE, MOVE_MOUNT_F_EMPTY_PATH = 1, 0x8000, 4


def mount(source: bytes | None, target: str, kind: bytes | None, flags: int, data: str) -> None:
    """Mount `source` on `target`, with `data` as the file system's options; StageError when it fails."""
    check(libc.mount(source, target.encode(), kind, ctypes.c_ulong(flags), data.encode()))


def writable_clone(path: str) -> int:
    """A descriptor of a clone of the mount at the directory `path`, on which nothing can be executed."""
    fd = call("open_tree", AT_FDCWD, path.encode(), OPEN_TREE_CLONE | os.O_CLOEXEC)
    attributes = MS_NOSUID | MS_NODEV | MS_NOEXEC
    call("mount_setattr", fd, b"", AT_EMPTY_PATH, struct.pack("4Q", attributes, 0, 0, 0), 32)
    return fd


def set_readonly(fd: int, *, device: bool, recursive: bool = True) -> None:
    """Make the mount at `fd` read-only and nosuid; everything below it too when `recursive` (mount_setattr(2)).

    `device`: it is a device file, which may be opened and not executed; otherwise no device on it may be opened.
    """
    # On a device file MS_NODEV would forbid opening it. 32: the size of struct mount_attr (MOUNT_ATTR_SIZE_VER0).
    attributes = MS_RDONLY | MS_NOSUID | (MS_NOEXEC if device else MS_NODEV)  # MOUNT_ATTR_* have the same values
    call("mount_setattr", fd, b"", AT_EMPTY_PATH | recursive * AT_RECURSIVE, struct.pack("4Q", attributes, 0, 0, 0), 32)


def build_tree(tree: Plan) -> None:
    """Build the child's root: read-only clones of the plan's paths, /scratch, /data, script; detach the old root."""
    # Else what root mounts here would appear on the host, whose mounts are shared (mount_namespaces(7)).
    begin("propagation")
    mount(None, "/", None, MS_REC | MS_PRIVATE, "")
    clones = list(cloned(tree))  # before the new root hides some of them
    begin("data")
    data = writable_clone(".") if tree["data"] else -1  # `carry_out` has gone there
    begin("root")
    # An existing directory to mount over: in a read-only root none could be made.
    top = next(place for place in tree["mountpoints"] if os.path.isdir(place))
    mount(b"tmpfs", top, b"tmpfs", MS_NOSUID | MS_NODEV, f"mode=0755,size={tree['bytes']},nr_inodes={tree['inodes']}")
    for path, target in tree["links"]:
        os.symlink(target, top + path)
    for path, fd, directory in clones:
        begin(f"bind({path})")
        os.makedirs(top + (path if directory else os.path.dirname(path)), 0o755, exist_ok=True)
        if not directory:
            write_to(top + path, "")
        call("move_mount", fd, b"", AT_FDCWD, (top + path).encode(), MOVE_MOUNT_F_EMPTY_PATH)
        os.close(fd)  # RLIMIT_NOFILE bounds descriptor numbers: free the low ones
    begin("zero")
    zero, size = tree["zero"]
    write_to(top + zero, "")  # the other devices were bound into the same directory
    os.truncate(top + zero, size)
    if tree["scratch"]:
        begin("scratch")
        os.mkdir(top + "/scratch")
        mount(b"tmpfs", top + "/scratch", b"tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, tree["scratch"])
    if tree["data"]:
        begin("data")
        os.mkdir(top + "/data")
        call("move_mount", data, b"", AT_FDCWD, (top + "/data").encode(), MOVE_MOUNT_F_EMPTY_PATH)
        os.close(data)
    begin("files")
    for path, text in tree["files"]:
        os.makedirs(os.path.dirname(top + path), 0o755, exist_ok=True)
        write_to(top + path, text)
    if tree["artifact"]:
        begin("artifact")
        copy_artifact(top + tree["artifact"], tree["artifact_mode"])
    if tree["init"]:
        begin("init")
        open_init(top + "/init", tree["init"])
    begin("pivot_root")
    os.chdir(top)
    # With the same directory twice the old root is stacked on the new one, and "." is what to detach (pivot_root(2)).
    call("pivot_root", b".", b".")
    check(libc.umount2(b".", MNT_DETACH))
    os.chdir("/")
    # Only now that it is filled, and not recursively: /scratch and /data stay writable. The clones are read-only.
    set_readonly(os.open("/", os.O_PATH | os.O_CLOEXEC), device=False, recursive=False)


def cloned(tree: Plan) -> Iterator[tuple[str, int, bool]]:
    """Yield (path, descriptor of its read-only clone, whether it is a directory) of each listed path that exists."""
    for path, device in tree["binds"]:
        begin(f"bind({path})")
        # A needed path that is missing fails at stat, under this step's name; an optional one is left out.
        if path in tree["needed"] or os.path.exists(path):
            directory = stat.S_ISDIR(os.stat(path).st_mode)
            fd = call("open_tree", AT_FDCWD, path.encode(), OPEN_TREE_CLONE | AT_RECURSIVE | os.O_CLOEXEC)
            set_readonly(fd, device=device)
            yield path, fd, directory


def copy_artifact(path: str, mode: int) -> None:
    """Copy the sealed artifact to the new file `path` with the given mode."""
    with open(path, "xb", buffering=0) as out:
        offset = 0  # given explicitly: the descriptor's own offset is shared with the daemon and other children
        while count := os.sendfile(out.fileno(), ARTIFACT, offset, 1 << 30):
            offset += count
        os.fchmod(out.fileno(), mode)


def open_init(path: str, program: bytes) -> None:
    """Write process 1's program to a file, keep only its descriptor. No memfd: vm.memfd_noexec may forbid it."""
    with open(path, "xb", buffering=0) as out:
        out.write(program)
        os.fchmod(out.fileno(), 0o555)
    # After closing: a file that is open for writing cannot be executed (ETXTBSY in execve(2)).
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    os.dup2(fd, INIT, inheritable=False)
    os.close(fd)
    os.unlink(path)  # the descriptor is enough; the child sees no such file
