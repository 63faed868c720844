"""A second process that judges the bundles of a large directory ahead of its first scan, from the other end.

The scan takes 350 µs for a bundle of 64 KiB, most of it with the interpreter's lock: a second thread makes it slower.
The process tells which files it has hashed, to what, and which signatures hold. The scan judges every bundle itself and
saves the hashing where the files are still the same ones, and the verification of a signature that is known to hold.
So the process may be slow, end or hang at any moment: what it has not told is done as always. docs/adr/0040
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import msgspec

from latticed.catalog import root as roots
from latticed.catalog.ahead_process import Frame, order
from latticed.catalog.scanner import KnownFiles
from latticed.kit import logs
from latticed.kit.threads import UnawaitedThread
from latticed.model.errors import Problem
from latticed.trust import keys

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from latticed.catalog.scanner import Judge

MANY: Final = 1_000
"""Bundles above which the process is started: it takes 0.2 s until it judges the first one."""
_MOST_BYTES: Final = 1 << 20
"""Of a frame; one of 64 bundles has 10 KiB."""

# Not -m: the package imports that module itself, for the form of a frame.
_PROGRAM: Final = "from latticed.catalog import ahead_process; ahead_process.main()"

log = logs.get_logger()


class Ahead:
    """The process, from `start` to `stop`. `known` is asked from the scan's threads."""

    def __init__(self, path: Path, judge: Judge) -> None:
        self._path = path
        self._judge = judge
        self._found: dict[str, KnownFiles] = {}
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def start(self, names: Sequence[str]) -> None:
        """Have `names` judged, the last first, if they are many and there is a processor for it. Returns at once."""
        if len(names) > MANY and len(os.sched_getaffinity(0)) > 1:
            UnawaitedThread(target=self._run, args=(names[::-1],), name="latticed-ahead", daemon=True).start()

    def known(self, name: str) -> KnownFiles | None:
        """What was found out about a bundle's files so far."""
        return self._found.get(name)

    def stop(self) -> None:
        """End the process and forget what it found out; waits for nothing."""
        self._stopped = True
        if self._child is not None:
            self._child.kill()
        self._found = {}

    def _run(self, names: Sequence[str]) -> None:
        """On a thread of its own: the process from its beginning to its end."""
        try:
            root = roots.open_root(self._path)
        except Problem:
            return  # the scan says so
        try:
            command = [sys.executable, "-I", "-B", "-c", _PROGRAM, str(root.fd)]
            pipe = subprocess.PIPE
            self._child = subprocess.Popen(command, stdin=pipe, stdout=pipe, pass_fds=[root.fd], env={})  # noqa: S603
        except OSError as error:
            log.warning("scan_ahead_failed", reason=str(error))  # all is judged by the daemon
            return
        finally:
            root.close()
        with self._child as child:
            try:
                self._converse(child, order(self._judge, names))
            except (OSError, ValueError) as error:
                if not self._stopped:
                    log.warning("scan_ahead_failed", reason=str(error))
            finally:
                child.kill()

    def _converse(self, child: subprocess.Popen[bytes], asked: bytes) -> None:
        """Send the order and take frames until there are no more. OSError, and ValueError for what is no frame."""
        stdin, stdout = child.stdin, child.stdout
        if stdin is None or stdout is None or self._stopped:  # stopped before there was a process to kill
            return
        with stdin:
            stdin.write(asked)
        while len(head := stdout.read(4)) == 4:
            size = int.from_bytes(head, "big")
            if size > _MOST_BYTES:
                raise ValueError(f"expected a frame of at most {_MOST_BYTES} bytes, found {size}")
            frame = msgspec.msgpack.decode(stdout.read(size), type=Frame)
            keys.hold(frame.held)
            for one in frame.files:
                self._found[os.fsdecode(one.name)] = KnownFiles(
                    fingerprint=one.fingerprint, hashed=(one.sha256, one.size), interpreter=sys.intern(one.interpreter)
                )
