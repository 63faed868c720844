"""WASI preview 1 for a plugin: its three standard streams, monotonic time, randomness, arguments; nothing else.

All of preview 1 can be imported, since a C library imports more than its program uses. What is not offered (files,
directories, sockets, the environment, the time of day) fails, or answers as empty or zero.
Source: the witx description of wasi_snapshot_preview1.
"""

from __future__ import annotations

import functools
import os
import struct
import time
from typing import TYPE_CHECKING, Any, Final

from wasmtime import FuncType, ValType

from latticed.runners.wasm_inside import polling
from latticed.runners.wasm_inside.guest import WORD, Guest, GuestFault
from latticed.runners.wasm_inside.status import Exited

if TYPE_CHECKING:
    from collections.abc import Callable

    from wasmtime import Caller, Linker, Module

    from latticed.runners.wasm_inside.streams import Streams

MODULE: Final = "wasi_snapshot_preview1"
# Errno and clock numbers of preview 1, which are not those of Linux.
OK, BADF, FAULT, INVAL, NOSYS, NOTSUP, SPIPE, NOTCAPABLE = 0, 8, 21, 28, 52, 58, 70, 76
REALTIME, MONOTONIC = 0, 1
_RESOLUTION_NS: Final = 1_000  # of the monotonic clock, which is rounded down to it
_MOST_VECTORS: Final = 1024  # of one read or write; the rest is left to the module's next call (IOV_MAX of Linux)
_RIGHT_READ, _RIGHT_WRITE, _RIGHT_POLL = 1 << 1, 1 << 6, 1 << 27
_RANDOM_BYTES: Final = 1 << 16  # at a time, so that no copy of a large buffer is made

# name: parameters (i: i32, I: i64), and the errno of calls that are not offered.
_CALLS: Final = {
    "args_get": "ii",
    "args_sizes_get": "ii",
    "environ_get": "ii",
    "environ_sizes_get": "ii",
    "clock_res_get": "ii",
    "clock_time_get": "iIi",
    "fd_close": "i",
    "fd_fdstat_get": "ii",
    "fd_fdstat_set_flags": "ii",
    "fd_filestat_get": "ii",
    "fd_read": "iiii",
    "fd_seek": "iIii",
    "fd_tell": "ii",
    "fd_write": "iiii",
    "poll_oneoff": "iiii",
    "proc_exit": "i",
    "random_get": "ii",
    "sched_yield": "",
}
_ABSENT: Final = {
    **dict.fromkeys(("fd_datasync", "fd_sync"), ("i", INVAL)),
    "fd_advise": ("iIIi", SPIPE),
    "fd_allocate": ("iII", NOTSUP),
    "fd_fdstat_set_rights": ("iII", NOTSUP),
    "fd_filestat_set_size": ("iI", INVAL),
    "fd_filestat_set_times": ("iIIi", NOTSUP),
    **dict.fromkeys(("fd_pread", "fd_pwrite"), ("iiiIi", SPIPE)),
    "fd_prestat_get": ("ii", BADF),  # the end of the list of directories, which is empty
    "fd_prestat_dir_name": ("iii", BADF),
    "fd_readdir": ("iiiIi", BADF),
    "fd_renumber": ("ii", BADF),
    **dict.fromkeys(("path_create_directory", "path_remove_directory", "path_unlink_file"), ("iii", NOTCAPABLE)),
    "path_filestat_get": ("iiiii", NOTCAPABLE),
    "path_filestat_set_times": ("iiiiIIi", NOTCAPABLE),
    "path_link": ("iiiiiii", NOTCAPABLE),
    "path_open": ("iiiiiIIii", NOTCAPABLE),
    **dict.fromkeys(("path_readlink", "path_rename"), ("iiiiii", NOTCAPABLE)),
    "path_symlink": ("iiiii", NOTCAPABLE),
    "proc_raise": ("i", NOSYS),
    "sock_accept": ("iii", NOTCAPABLE),
    "sock_recv": ("iiiiii", NOTCAPABLE),
    "sock_send": ("iiiii", NOTCAPABLE),
    "sock_shutdown": ("ii", NOTCAPABLE),
}


def _words(letters: str) -> str:
    return " ".join({"i": "i32", "I": "i64"}[letter] for letter in letters)


SIGNATURES: Final = {
    name: (_words(letters), "" if name == "proc_exit" else "i32")
    for name, letters in {**_CALLS, **{name: letters for name, (letters, _) in _ABSENT.items()}}.items()
}
"""(parameters, results) of every function of preview 1, as `engine.signature` names them."""


class Wasi:
    """The functions of preview 1 for one module at a time. `arguments` are its own, the first being its name.

    Each method is one function and is named like it; it returns its errno. Addresses outside the module's memory raise
    GuestFault, which `_guarded` turns into `fault`.
    """

    def __init__(self, guest: Guest, streams: Streams, arguments: tuple[str, ...]) -> None:
        self._guest = guest
        self._streams = streams
        self._arguments = [argument.encode() + b"\0" for argument in arguments]
        self._began_ns = time.monotonic_ns()

    def define(self, linker: Linker, module: Module) -> None:
        """Give `module` what it imports of preview 1; all of it must be in SIGNATURES."""
        for name in sorted({one.name or "" for one in module.imports if one.module == MODULE}):
            parameters, results = SIGNATURES[name]
            kind = FuncType([_kind(word) for word in parameters.split()], [_kind(word) for word in results.split()])
            linker.define_func(MODULE, name, kind, self._function(name), access_caller=True)

    def _function(self, name: str) -> Callable[..., int | None]:
        """What the module calls under this name: a method, or a function that only answers with an errno."""
        if name in _ABSENT:
            answer = _ABSENT[name][1]
            return lambda *_: answer
        # `define` lets only names in SIGNATURES come here, so no other attribute can be reached.
        return functools.partial(_guarded, getattr(self, name))

    # Arguments, environment.

    def args_sizes_get(self, caller: Caller, count: int, size: int) -> int:
        """Write the number of arguments to `count` and the bytes of all together to `size`."""
        return self._sizes(caller, count, size, self._arguments)

    def args_get(self, caller: Caller, pointers: int, at: int) -> int:
        """Write the arguments to `at`, each ending with a zero byte, and their addresses to `pointers`."""
        for argument in self._arguments:
            self._guest.write_u32(caller, pointers, at & WORD)
            self._guest.write(caller, at, argument)
            pointers, at = pointers + 4, at + len(argument)
        return OK

    def environ_sizes_get(self, caller: Caller, count: int, size: int) -> int:
        """Write that there is no environment: 0 and 0."""
        return self._sizes(caller, count, size, [])

    def environ_get(self, caller: Caller, pointers: int, at: int) -> int:
        """Write nothing: the environment is empty."""
        del caller, pointers, at
        return OK

    def _sizes(self, caller: Caller, count: int, size: int, words: list[bytes]) -> int:
        """Write the number of `words` to the address `count` and the sum of their bytes to `size`."""
        self._guest.write_u32(caller, count, len(words))
        self._guest.write_u32(caller, size, sum(map(len, words)))
        return OK

    # Time, randomness, exit.

    def now_ns(self) -> int:
        """Nanoseconds since the child started, so that the host's uptime stays hidden."""
        return (time.monotonic_ns() - self._began_ns) // _RESOLUTION_NS * _RESOLUTION_NS

    def clock_res_get(self, caller: Caller, clock: int, at: int) -> int:
        """Write the resolution in nanoseconds; `notsup` for clocks of processor time."""
        if clock not in {REALTIME, MONOTONIC}:
            return NOTSUP
        self._guest.write_u64(caller, at, _RESOLUTION_NS)
        return OK

    def clock_time_get(self, caller: Caller, clock: int, precision: int, at: int) -> int:
        """The time of day is always zero: with an error programs in some languages would not even start."""
        del precision
        if clock not in {REALTIME, MONOTONIC}:
            return NOTSUP
        self._guest.write_u64(caller, at, self.now_ns() if clock == MONOTONIC else 0)
        return OK

    def random_get(self, caller: Caller, at: int, size: int) -> int:
        """Fill the `size` bytes at the address `at` from the kernel's random number generator."""
        view = self._guest.view(caller, at, size)  # before anything is written: all of it is within memory, or nothing
        for start in range(0, len(view), _RANDOM_BYTES):
            piece = view[start : start + _RANDOM_BYTES]
            piece[:] = os.urandom(len(piece))
        return OK

    def sched_yield(self, caller: Caller) -> int:
        """Do nothing: there is no other thread of the module."""
        del caller
        return OK

    def proc_exit(self, caller: Caller, status: int) -> None:
        """End the module with `status`; raises Exited."""
        del caller
        raise Exited(status & WORD)

    # The three streams.

    def fd_close(self, caller: Caller, fd: int) -> int:
        """Close one of the streams for the module."""
        del caller
        return OK if self._streams.close(fd) else BADF

    def fd_fdstat_get(self, caller: Caller, fd: int, at: int) -> int:
        """Write type (unknown, 0), flags (none) and rights of a stream, 24 bytes."""
        if not self._streams.has(fd):
            return BADF
        rights = (_RIGHT_READ if fd == 0 else _RIGHT_WRITE) | _RIGHT_POLL
        self._guest.write(caller, at, struct.pack("<BxHxxxxQQ", 0, 0, rights, 0))
        return OK

    def fd_fdstat_set_flags(self, caller: Caller, fd: int, flags: int) -> int:
        """`notsup` for any flag: the streams stay blocking. `badf` for what is not open."""
        del caller
        return (NOTSUP if flags else OK) if self._streams.has(fd) else BADF

    def fd_filestat_get(self, caller: Caller, fd: int, at: int) -> int:
        """Write zeros, 64 bytes: a stream has no size, times or inode."""
        if not self._streams.has(fd):
            return BADF
        self._guest.write(caller, at, bytes(64))
        return OK

    def fd_seek(self, caller: Caller, fd: int, offset: int, whence: int, at: int) -> int:
        """`spipe`: a stream has no position. `badf` for what is not open."""
        del caller, offset, whence, at
        return SPIPE if self._streams.has(fd) else BADF

    def fd_tell(self, caller: Caller, fd: int, at: int) -> int:
        """`spipe`: a stream has no position. `badf` for what is not open."""
        del caller, at
        return SPIPE if self._streams.has(fd) else BADF

    def fd_read(self, caller: Caller, fd: int, vectors: int, count: int, at: int) -> int:
        """Read from stdin into the vectors, as much as is there; blocks only while there is nothing. 0 bytes at end of
        file.
        """
        if fd != 0 or not self._streams.has(fd):
            return BADF
        given = 0
        for start, size in self._vectors(caller, vectors, count):
            view = self._guest.view(caller, start, size)
            # Nothing is buffered and the pipe may be empty: another read could block although there is an answer.
            if not size or (given and not self._streams.buffered):
                continue  # something was read already: do not block for more
            data = self._streams.read(size)
            view[: len(data)] = data
            given += len(data)
            if len(data) < size:
                break
        self._guest.write_u32(caller, at, given)
        return OK

    def fd_write(self, caller: Caller, fd: int, vectors: int, count: int, at: int) -> int:
        """Write all vectors to stdout or stderr; blocks while the pipe is full."""
        if fd not in {1, 2} or not self._streams.has(fd):
            return BADF
        written = 0
        for start, size in self._vectors(caller, vectors, count):
            self._streams.write(fd, self._guest.view(caller, start, size))
            written += size
        self._guest.write_u32(caller, at, written)
        return OK

    def poll_oneoff(self, caller: Caller, subscriptions: int, events: int, count: int, at: int) -> int:
        """Wait for one of `count` subscriptions, at most polling.MOST; see `polling`."""
        count &= WORD
        if not 0 < count <= polling.MOST:
            return INVAL
        asked = [polling.read(self._guest.read(caller, subscriptions + 48 * index, 48)) for index in range(count)]
        # All subscriptions were copied out before any event is written: the two buffers may overlap.
        found = polling.wait(asked, self._streams, self.now_ns)
        for index, event in enumerate(found):
            self._guest.write(caller, events + 32 * index, event)
        self._guest.write_u32(caller, at, len(found))
        return OK

    def _vectors(self, caller: Caller, at: int, count: int) -> list[tuple[int, int]]:
        """The (address, size) pairs that a read or write is given."""
        count = min(count & WORD, _MOST_VECTORS)
        return list(struct.iter_unpack("<II", self._guest.read(caller, at, 8 * count)))


def _kind(word: str) -> ValType:
    """The type called `word`, as in SIGNATURES."""
    return ValType.i32() if word == "i32" else ValType.i64()


def _guarded(function: Callable[..., int | None], *arguments: Any) -> int | None:
    """The result of `function`, or `fault` when an address was outside of the module's memory."""
    try:
        return function(*arguments)
    except GuestFault:
        return FAULT
