"""Failures around a real daemon: system calls that fail on chosen paths, a wall clock that jumps, a full disk.

    with faults.attached(place, shim) as sick, place.running() as daemon:
        with sick.failing(errno.ENOSPC, faults.WRITES, below=place.state / "store"):
            ...

The calls are made to fail by faults.c, preloaded into whatever `place` starts; `compiled` makes the library.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house import daemons, long, raw_http

OPEN_WRITE, OPEN_READ, WRITE, SYNC, RENAME, MKDIR, TRUNCATE, SOCKET, ACCEPT, BIND, UNLINK = (1 << n for n in range(11))
WRITES = OPEN_WRITE | WRITE | SYNC | RENAME | MKDIR | TRUNCATE
"""Everything that changes a disk, except taking files away: that frees space."""

DISK_ERRORS = [errno.ENOSPC, *long.only(errno.EIO, errno.EROFS)]
"""What a disk may say, for `parametrize`: full; broken and read-only are for the long run."""

_ERROR, _CALLS, _HALVES, _HITS, _OFFSET, _HALT_AT, _SIGNAL, _PREFIX = 0, 4, 8, 16, 24, 32, 40, 44
_NEVER = 1 << 62
_PREFIX_BYTES = 1024
_BYTES = _PREFIX + _PREFIX_BYTES


def compiled(directory: Path) -> Path:
    """The shared library, made in `directory`; skips the test without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("making calls fail needs a C compiler (cc)")
    library = directory / "faults.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(
        [compiler, "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True
    )
    return library


class Faults:
    """The faults of the machine; none at first."""

    def __init__(self, page: mmap.mmap) -> None:
        self._page = page

    @contextlib.contextmanager
    def failing(self, error: int, calls: int, *, below: Path | str, halves: bool = False) -> Iterator[None]:
        """Within the block `calls` fail with `error` on paths that begin with `below`; it must have come to that.

        `halves`: every other write takes half of its bytes before the next one fails.
        """
        before = self.hits
        self._aim(calls, below)
        self._put("<i", _HALVES, int(halves))
        self._put("<i", _ERROR, error)
        try:
            yield
        finally:
            self.mend()
        assert self.hits > before, f"no call was made that could fail below {below}"

    @contextlib.contextmanager
    def halting(self, at: int | None, *, below: Path | str, by: signal.Signals = signal.SIGKILL) -> Iterator[None]:
        """Within the block the process that makes write number `at` on paths that begin with `below` gets a signal
        before it writes; None: they are counted alone. `hits` begins at 0.
        """
        self._put("<Q", _HITS, 0)
        self._aim(WRITE, below)
        self._put("<i", _SIGNAL, by)
        self._put("<Q", _HALT_AT, _NEVER if at is None else at)
        self._put("<i", _ERROR, errno.EIO)
        try:
            yield
        finally:
            self._put("<Q", _HALT_AT, 0)
            self.mend()

    def _aim(self, calls: int, below: Path | str) -> None:
        prefix = os.fsencode(below)
        assert len(prefix) < _PREFIX_BYTES
        self._page[_PREFIX : _PREFIX + len(prefix) + 1] = prefix + b"\0"
        self._put("<I", _CALLS, calls)

    def mend(self) -> None:
        """Let no call fail from now on."""
        self._put("<i", _ERROR, 0)

    def shift_clock(self, seconds: int) -> None:
        """Let the wall clock differ from the true time by so many seconds from now on."""
        self._put("<q", _OFFSET, seconds)

    @property
    def hits(self) -> int:
        """How many calls have failed."""
        return int(struct.unpack_from("<Q", self._page, _HITS)[0])

    def _put(self, form: str, offset: int, value: int) -> None:
        struct.pack_into(form, self._page, offset, value)


@contextlib.contextmanager
def attached(place: daemons.Place, shim: Path) -> Iterator[Faults]:
    """Give the faults of the block's value to all that `place` starts from now on."""
    library, control = place.home / "faults.so", place.home / "faults.page"
    library.write_bytes(shim.read_bytes())
    control.write_bytes(bytes(_BYTES))
    place.own(control)
    place.env |= {"LD_PRELOAD": str(library), "LATTICED_TEST_FAULTS": str(control)}
    with control.open("r+b") as file, mmap.mmap(file.fileno(), _BYTES) as page:
        yield Faults(page)


@contextlib.contextmanager
def small_disk(path: Path, *, kib: int, uid: int) -> Iterator[None]:
    """A file system of `kib` KiB at `path`; needs uid 0 and a machine where that may mount, or the test skips."""
    if os.getuid() != 0:
        pytest.skip("mounting a small file system needs uid 0")
    options = f"size={kib}k,mode=0700,uid={uid},gid={uid}"
    ran = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, check=False)
    if ran.returncode != 0:
        pytest.skip(f"this machine does not let root mount a tmpfs: {ran.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def fill(path: Path) -> None:
    """Use up every byte that the file system of `path` has left."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def cpu_s(pid: int) -> float:
    """Processor time that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kv(daemon: daemons.Daemon, key: str, value: bytes | None = None) -> raw_http.Answer:
    """Read one value, or write it."""
    path = f"/api/kv/default/{key}"
    return daemon.get(path) if value is None else daemon.ask("PUT", path, value)


def chain_holds(daemon: daemons.Daemon) -> None:
    report = daemon.get("/api/audit/verify").json()
    assert report["ok"] is True, report


def health_with(daemon: daemons.Daemon, code: str) -> raw_http.Answer | None:
    """Health, once `code` is among its problems."""
    answer = daemon.get("/api/health")
    return answer if code in [one["code"] for one in answer.json()["problems"]] else None
