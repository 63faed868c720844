"""Packs a tree of Python modules into one artifact: a zipapp (PEP 441) that has the same bytes for the same tree.

`src/__main__.py` and `src/shop/cart.py` become `#!/usr/bin/env python3`, a line end, and a ZIP file of the two. What
differs between two checkouts of one tree is left out: times, owners, modes, empty directories. Entries are sorted and
not compressed, as what deflate makes of the same bytes differs between versions of zlib.
"""

from __future__ import annotations

import io
import os
import stat
import zipfile
from typing import TYPE_CHECKING, Final

from latticed.kit import files, text
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

MAX_BYTES: Final = 64 << 20
"""The artifact that hosts take by default (`limits.artifact_bytes`)."""
MAX_ENTRIES: Final = 10_000
MAX_DEPTH: Final = 32
MAIN: Final = "__main__.py"
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
"""The earliest time of a ZIP entry."""
_MODE: Final = (stat.S_IFREG | 0o644) << 16
"""The mode in a ZIP entry's external attributes."""
_DIRECTORY: Final = ((stat.S_IFDIR | 0o755) << 16) | 0x10
_UNIX: Final = 3
INTERPRETER: Final = "/usr/bin/env python3"
_MAX_INTERPRETER: Final = 254
"""Of the line's 256 bytes (`model.accepted.HEAD_BYTES`) without `#!`."""


def tree(source: Path) -> dict[str, bytes]:
    """The files of a tree by their path in it, sorted; links are refused.

    Left out: names that begin with a dot, `__pycache__`, `*.pyc`. Problem not_found, not_regular, too_large, io_error,
    or name_invalid for a name that is not UTF-8 or has control characters.
    """
    found: dict[str, bytes] = {}
    left = MAX_BYTES
    try:
        with files.closing(files.open_directory(source)) as fd:
            for path, data in _walk(fd, "", left=MAX_DEPTH):
                found[path] = data
                left -= len(data)
                if left < 0 or len(found) > MAX_ENTRIES:
                    limit = f"{MAX_BYTES >> 20} MiB" if left < 0 else f"{MAX_ENTRIES} files"
                    raise Problem("too_large", f"expected at most {limit} in {source}, found more")
    except FileNotFoundError as error:
        raise Problem("not_found", f"expected a directory at {source}, found nothing") from error
    except OSError as error:
        raise Problem("io_error", f"cannot read {source}: {error.strerror}") from error
    return dict(sorted(found.items()))


def zipapp(tree_files: dict[str, bytes], *, interpreter: str, main: str | None = None) -> bytes:
    """The artifact of these files, begun by a line that names the interpreter.

    `main`, such as `shop.cart:run`, is the function to call instead of a `__main__.py`. Problem usage when there is
    neither or both, or for an interpreter that no first line can name; too_large.
    """
    packed = dict(tree_files)
    if (main is None) != (MAIN in packed):
        found = "both" if main is not None else "neither"
        raise Problem(
            "usage",
            f"expected {MAIN} in the directory or --main MODULE:FUNCTION, found {found}",
            "--main says which function is called when there is no such file",
        )
    if main is not None:
        packed[MAIN] = _caller(main)
    if not interpreter.startswith("/") or not interpreter.isascii() or not interpreter.isprintable():
        raise Problem("usage", f"expected an interpreter such as /usr/bin/env python3, found {interpreter[:80]!r}")
    if len(interpreter) > _MAX_INTERPRETER:
        raise Problem("usage", f"expected an interpreter of at most {_MAX_INTERPRETER} bytes, found {len(interpreter)}")
    artifact = io.BytesIO()
    artifact.write(f"#!{interpreter}\n".encode("ascii"))
    with zipfile.ZipFile(artifact, "w", zipfile.ZIP_STORED) as archive:
        for path, data in sorted({**dict.fromkeys(_namespaces(packed), b""), **packed}.items()):
            entry = zipfile.ZipInfo(path, _EPOCH)
            # By default it is that of the system that packs.
            entry.create_system, entry.external_attr = _UNIX, _DIRECTORY if path.endswith("/") else _MODE
            archive.writestr(entry, data)
    if artifact.tell() > MAX_BYTES:
        raise Problem(
            "too_large", f"expected an artifact of at most {MAX_BYTES >> 20} MiB, found {artifact.tell()} bytes"
        )
    return artifact.getvalue()


def _namespaces(packed: Mapping[str, bytes]) -> set[str]:
    """The directories that are packages without an `__init__.py` (PEP 420), as `name/`.

    Python imports such a package from a ZIP file only when its directory has an entry of its own (zipimport).
    """
    above = {
        "/".join(parts[:depth])
        for path in packed
        if path.endswith(".py")
        for parts in [path.split("/")]
        for depth in range(1, len(parts))
    }
    return {f"{directory}/" for directory in above if f"{directory}/__init__.py" not in packed}


def _caller(main: str) -> bytes:
    """A `__main__.py` that calls `MODULE:FUNCTION`; Problem usage."""
    module, colon, function = main.partition(":")
    if not colon or not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise Problem("usage", f"expected --main MODULE:FUNCTION, such as shop.cart:run, found {main[:80]!r}")
    return f"import {module}\n\n{module}.{function}()\n".encode()


def _walk(fd: int, above: str, *, left: int) -> Iterator[tuple[str, bytes]]:
    """(path, bytes) of the files in the directory `fd` and below; `above` is its path, `left` how deep it may go."""
    if left < 0:
        raise Problem(
            "too_large", f"expected at most {MAX_DEPTH} directories in each other, found more in {above[:80]}"
        )
    # A list: the directory's descriptor is also read for each file.
    for name in sorted(os.listdir(fd)):
        if name.startswith(".") or name == "__pycache__" or name.endswith(".pyc"):
            continue
        path = f"{above}{name}"
        if any(text.is_control(char) or "\ud800" <= char <= "\udfff" for char in name):
            raise Problem("name_invalid", f"expected names in UTF-8 without control characters, found {path[:80]!r}")
        mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            with files.closing(files.open_directory(name, beneath=fd)) as below:
                yield from _walk(below, f"{path}/", left=left - 1)
        elif stat.S_ISREG(mode):
            with files.closing(files.open_file(name, beneath=fd)) as file:
                yield path, _read(file, path)
        else:
            what = "a link" if stat.S_ISLNK(mode) else "another kind of file"
            hint = "copy what it leads to: a link would lead elsewhere on another host"
            raise Problem("not_regular", f"expected files and directories, found {what}: {path[:80]}", hint)


def _read(fd: int, path: str) -> bytes:
    """All bytes of an open file; Problem too_large, not_regular."""
    try:
        return files.read_open(fd, MAX_BYTES)
    except ValueError as error:
        raise Problem("too_large", f"{path[:80]}: {error}") from error
