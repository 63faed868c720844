"""Files that `latticectl index` changes in place: alone with them, dated, signed, read back as hosts will."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import author_key
from latticed.model import ids
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LABEL: Final = "index"


def add_arguments(parser: Any, *, required: bool) -> None:
    """The options of an action that signs."""
    author_key.add_arguments(parser, required=required)
    parser.add_argument("--label", default=LABEL, help=f"who signs, for people (default: {LABEL})")


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Alone with what is signed in this directory: of two that change it at once, one would be lost. Problem busy,
    io_error.
    """
    from latticed.kit import files

    try:
        opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Problem("io_error", f"cannot open {directory}: {error.strerror}") from error
    with files.closing(opened) as fd:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Problem("busy", f"another latticectl changes the index in {directory}", "try again") from error
        yield


def made(
    raw: dict[str, Any], key: Any, *, signed: Callable[..., dict[str, Any]], label: str, keep: bool = False
) -> bytes:
    """The file of `raw`, dated anew unless `keep`, and signed when there is a key. Problem usage, index_from_future."""
    from latticed.bundle import write
    from latticed.trust import index_edit

    if not ids.is_valid(label):
        raise Problem("usage", f"--label: expected {LABEL}, or 3 to 128 of a-z 0-9 . -, found {label[:80]!r}")
    if not keep:
        raw = index_edit.dated(raw, now_s=int(time.time()))
    return write.render(raw if key is None else signed(raw, publisher=label, key=key))


def put(path: Path, data: bytes) -> None:
    """Replace the file in one step; Problem io_error."""
    from latticed.kit import files

    try:
        files.replace(path, data, mode=0o644)
    except OSError as error:
        raise Problem("io_error", f"cannot write {path}: {error.strerror}") from error
