"""The launch stub's system calls, its messages to the daemon, and the descriptors that it finds open.

The stub is `stub_calls`, `stub_root`, `stub_door` and `stub`. It imports
nothing of latticed, and little of the standard library, since a spawn pays for each import (no json, no signal, no re).
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Plan = dict[str, Any]

# Above what a child may be given (3 to 9, and 10 for a script), below the number that the program is executed from (128
# or more, see `spec`).
PLAN, STATUS, DAEMON, ARTIFACT, CGROUP, INIT, DOOR = range(100, 107)
AT_EMPTY_PATH, AT_FDCWD = 0x1000, -100

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long  # not int, the default of ctypes
stage = "plan"  # the step under way, for the report if it fails; `begin` sets it
numbers: dict[str, int] = {}  # system call numbers of this machine by name; `main` fills it from the plan


class StageError(Exception):
    """A step of the stub failed; args: the step's name, errno (0: none)."""


def begin(name: str) -> None:
    """Name the step that follows: a failure is reported with this name."""
    global stage  # noqa: PLW0603 - one process, one purpose: the step it is at
    stage = name


def check(result: int) -> int:
    """Return the result of a C call; raise StageError with errno if it is -1."""
    if result == -1:
        raise StageError(stage, ctypes.get_errno())
    return result


def call(name: str, *arguments: Any) -> int:
    """Make a system call by its number; arguments are 64-bit words or pointers. StageError when it fails.

    By number, since the C library may be older than the call.
    """
    # ctypes passes a bare int as 32 bits, which leaves the upper half of a register undefined.
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    words += [ctypes.c_long(0)] * (6 - len(words))
    return check(libc.syscall(ctypes.c_long(numbers[name]), *words))


def prctl(option: int, *arguments: Any) -> int:
    """Set an option of this process by the C library; StageError when it fails. Unused arguments are passed as 0, which
    some options require.
    """
    words = [ctypes.c_ulong(word) if isinstance(word, int) else word for word in (*arguments, 0, 0, 0, 0)[:4]]
    return check(libc.prctl(option, *words))


def tell(message: str) -> None:
    """Report one line to the daemon."""
    os.write(STATUS, message.encode() + b"\n")


def write_to(path: str, text: str) -> None:
    """Write `text` to a file, which is created if it is not there."""
    with open(path, "w") as file:
        file.write(text)
