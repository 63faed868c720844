"""A process that writes files, for benches of the watcher.

`stranger.py rewrite DIR`: rewrite both files of every bundle in DIR; three artifacts of four change their bytes.
`stranger.py touch FILE`: for each byte on stdin write to FILE and answer with the moment just before its close
(8 bytes, a double, CLOCK_MONOTONIC).
"""

from __future__ import annotations

import os
import struct
import sys
import time


def main() -> None:
    mode, path = sys.argv[1:]
    {"rewrite": rewrite, "touch": touch}[mode](path)


def rewrite(root: str) -> None:
    for number, name in enumerate(sorted(os.listdir(root))):
        _append(f"{root}/{name}/manifest.json", b"")
        _append(f"{root}/{name}/artifact", b"" if number % 4 == 0 else b"# tampered\n")


def _append(path: str, addition: bytes) -> None:
    with open(path, "rb+") as file:
        data = file.read()
        file.seek(0)
        file.write(data + addition)


def touch(path: str) -> None:
    while os.read(0, 1):
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, b"#")
        moment = time.perf_counter()
        os.close(fd)
        os.write(1, struct.pack("d", moment))


if __name__ == "__main__":
    main()
