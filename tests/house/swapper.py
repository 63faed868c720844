"""A process that may write into the store and replaces an artifact's bytes, in every way there is.

`python swapper.py PAIR ASIDE NUDGES SEED` swaps the artifact of the pair PAIR and puts it back again and again, each
time in another way, until it is ended; at moments of its own, and at once for a byte in the pipe NUDGES. ASIDE, on the
same file system, holds `evil` (bytes) and `other` (a whole pair).
"""

from __future__ import annotations

import mmap
import os
import random
import select
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

GOOD_S = 0.010
EVIL_S = 0.001
HUGE_BYTES = 65 << 20


class Swapper:
    """`ways` maps names to functions that put something else in place; `back` undoes any of them."""

    def __init__(self, pair: Path, aside: Path) -> None:
        self._pair = pair
        self._artifact = pair / "artifact"
        self._aside = aside
        self._evil = (aside / "evil").read_bytes()
        self._good = self._artifact.read_bytes()
        self._times = self._artifact.stat()
        self._artifact.chmod(0o600)
        self._undo: Callable[[], None] = self._replace_good
        self.ways: dict[str, Callable[[], None]] = {
            "rename": self._rename,
            "in_place": self._in_place,
            "mapped": self._mapped,
            "rewrite": self._rewrite,
            "append": self._append,
            "empty": lambda: os.truncate(self._artifact, 0),
            "huge": lambda: os.truncate(self._artifact, HUGE_BYTES),
            "link": lambda: self._special(lambda path: path.symlink_to(aside / "evil")),
            "hard_link": lambda: self._special(lambda path: path.hardlink_to(aside / "evil")),
            "fifo": lambda: self._special(os.mkfifo),
            "unlink": self._artifact.unlink,
            "directory": lambda: self._instead(lambda: shutil.copytree(aside / "other", self._fresh())),
            "directory_link": lambda: self._instead(lambda: self._fresh().symlink_to(aside / "other")),
            "no_directory": lambda: self._instead(lambda: None),
        }

    def back(self) -> None:
        """Restore the pair."""
        undo, self._undo = self._undo, self._replace_good
        undo()

    def _fresh(self) -> Path:
        return self._aside / "fresh"

    def _put(self, data: bytes) -> None:
        """A new file with `data` in one step, with the times of the old one."""
        self._fresh().write_bytes(data)
        self._keep_times(self._fresh())
        self._fresh().replace(self._artifact)

    def _replace_good(self) -> None:
        self._put(self._good)

    def _rename(self) -> None:
        self._put(self._evil)

    def _keep_times(self, path: Path) -> None:
        os.utime(path, ns=(self._times.st_atime_ns, self._times.st_mtime_ns))

    def _in_place(self) -> None:
        self._overwrite(self._evil)
        self._undo = lambda: self._overwrite(self._good)

    def _overwrite(self, data: bytes) -> None:
        """The same file, the same size, the same time of its last change."""
        fd = os.open(self._artifact, os.O_WRONLY)
        os.pwrite(fd, data, 0)
        os.close(fd)
        self._keep_times(self._artifact)

    def _mapped(self) -> None:
        self._over_memory(self._evil)
        self._undo = lambda: self._over_memory(self._good)

    def _over_memory(self, data: bytes) -> None:
        with self._artifact.open("rb+") as file, mmap.mmap(file.fileno(), 0) as memory:
            memory[: len(data)] = data
        self._keep_times(self._artifact)

    def _rewrite(self) -> None:
        self._write_anew(self._evil)
        self._undo = lambda: self._write_anew(self._good)

    def _write_anew(self, data: bytes) -> None:
        """The same file, cut and written again, as a shell's `>` does."""
        self._artifact.write_bytes(data)

    def _append(self) -> None:
        with self._artifact.open("ab") as file:
            file.write(self._evil)

    def _special(self, make: Callable[[Path], object]) -> None:
        make(self._fresh())
        self._fresh().replace(self._artifact)

    def _instead(self, make: Callable[[], object]) -> None:
        """Another directory, or none, in place of the pair."""
        away = self._aside / "away"
        make()
        self._pair.rename(away)
        if self._fresh().exists():
            self._fresh().rename(self._pair)

        def undo() -> None:
            if self._pair.is_symlink():
                self._pair.unlink()
            elif self._pair.exists():
                shutil.rmtree(self._pair)
            away.rename(self._pair)

        self._undo = undo


def main() -> None:
    pair, aside, nudges, seed = sys.argv[1:]
    swapper, dice = Swapper(Path(pair), Path(aside)), random.Random(int(seed))
    ways = list(swapper.ways.values())
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        dice.choice(ways)()
        time.sleep(dice.random() * EVIL_S)
        swapper.back()
        while select.select([int(nudges)], [], [], 0)[0]:  # meant for what is over
            os.read(int(nudges), 1)
        select.select([int(nudges)], [], [], dice.random() * GOOD_S)


if __name__ == "__main__":
    main()
