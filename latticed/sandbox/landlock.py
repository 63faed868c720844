"""Landlock rules for a child (a plan for the stub; Documentation/userspace-api/landlock.rst).

All rights that the kernel's version knows are handled, so whatever no rule allows is denied: contents of files,
listings, execution, TCP, abstract unix sockets, signals to others. What Landlock cannot deny (stat, chmod, utime,
xattrs) is left to seccomp and the mount namespace.
"""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING, Any, Final

from latticed.sandbox import namespaces
from latticed.sandbox import visible_paths as view

if TYPE_CHECKING:
    from latticed.sandbox.syscalls import Machine
    from latticed.sandbox.visible_paths import VisiblePaths

# LANDLOCK_ACCESS_FS_* in linux/landlock.h. REFER came with version 2 (Linux 5.19), TRUNCATE with 3 (6.2), IOCTL_DEV
# with 5 (6.10).
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE, MAKE_CHAR, MAKE_DIR, MAKE_REG = 1 << 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8
MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM, REFER, TRUNCATE, IOCTL_DEV = (1 << bit for bit in range(9, 16))
# The rights that a rule for a file, not a directory, may have.
_OF_FILES: Final = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
_READ: Final = READ_FILE | READ_DIR
_WORK: Final = (
    _READ | WRITE_FILE | TRUNCATE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_FIFO | MAKE_SYM | REFER
)
_FIRST_VERSION: Final = (1 << 13) - 1  # EXECUTE to MAKE_SYM
_NET_BOTH, _SCOPE_BOTH = 3, 3  # bind and connect over TCP; abstract unix sockets and signals
_VERSION_FLAG: Final = 1  # LANDLOCK_CREATE_RULESET_VERSION: ask, make nothing


def version(machine: Machine) -> tuple[int, int]:
    """(ABI version, 0) of this kernel's Landlock, or (0, errno) when it has none."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = machine.numbers["landlock_create_ruleset"]
    found = libc.syscall(ctypes.c_long(number), None, ctypes.c_size_t(0), ctypes.c_uint(_VERSION_FLAG))
    return (0, ctypes.get_errno()) if found < 0 else (found, 0)


def handled(abi: int) -> int:
    """The bit mask of all file accesses that version `abi` knows; the kernel refuses a ruleset with others (EINVAL)."""
    return _FIRST_VERSION | (REFER if abi >= 2 else 0) | (TRUNCATE if abi >= 3 else 0) | (IOCTL_DEV if abi >= 5 else 0)


def plan(seen: VisiblePaths, *, abi: int, own_root: bool, workdir: bool, data: bool, network: bool) -> dict[str, Any]:
    """The ruleset for a child with the paths `seen`, as `stub.restrict_paths` reads it.

    `abi`: the kernel's version; what it does not know is left out. In its own root (`own_root`) everything may be read:
    nothing is there but those paths. `workdir`: /scratch may be written, `data`: /data too. `network`: TCP is not
    denied.
    """
    # struct landlock_ruleset_attr grew with the versions: file accesses, then network (4, Linux 6.7), scopes (6, 6.12).
    attributes = struct.pack("<Q", handled(abi))
    if abi >= 4:
        attributes += struct.pack("<Q", 0 if network else _NET_BOTH)
    if abi >= 6:
        attributes += struct.pack("<Q", _SCOPE_BOTH)
    grants: list[tuple[str, int]] = [(path, _READ) for path in (["/"] if own_root else [*seen.read, *view.DEVICES])]
    grants += [(path, READ_DIR) for path in seen.lists]
    grants += [(path, _READ | EXECUTE) for path in seen.execute]
    grants.append((view.NULL, READ_FILE | WRITE_FILE))
    if own_root:
        grants.append((namespaces.ARTIFACT, READ_FILE | EXECUTE))  # a program that may not be executed in memory
    if own_root and workdir:
        grants.append((namespaces.SCRATCH, _WORK))
    if own_root and data:
        grants.append((namespaces.DATA, _WORK))
    known = handled(abi)
    return {
        "attributes": attributes.hex(),
        "rules": [(path, access & known, access & known & _OF_FILES) for path, access in grants],
    }
