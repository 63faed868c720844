"""What is in a directory, for comparisons."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def tree(top: Path) -> dict[str, tuple[int, bytes]]:
    """Each path below `top`: its mode, and the bytes of a file or the target of a link."""
    found = {}
    for directory, names, files in os.walk(os.fsencode(top)):
        for name in [*names, *files]:
            path = os.path.join(directory, name)
            mode = os.lstat(path).st_mode
            data = b""
            if stat.S_ISLNK(mode):
                data = os.readlink(path)
            elif stat.S_ISREG(mode):
                data = Path(os.fsdecode(path)).read_bytes()
            found[os.fsdecode(os.path.relpath(path, os.fsencode(top)))] = (mode, data)
    return found
