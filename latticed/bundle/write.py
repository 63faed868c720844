"""Writes bundles: for authors (`latticectl new|sign|pack`), and to take in a verified bundle."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from latticed.bundle.refusal import ARTIFACT, MANIFEST
from latticed.kit import files

if TYPE_CHECKING:
    from pathlib import Path


def render(raw: dict[str, Any]) -> bytes:
    """A manifest's object as JSON for people: indented by two, UTF-8, ending in a newline."""
    return json.dumps(raw, indent=2, ensure_ascii=False).encode() + b"\n"


def write_bundle(directory: Path, manifest: bytes, artifact: bytes, *, mode: int = 0o644) -> None:
    """Make the new directory `directory` hold the two files, all there or not at all; FileExistsError if it exists.

    They are written under a name that starts with a dot, which scans ignore, and renamed. `mode` is that of both files.
    OSError otherwise; nothing is left then.
    """
    if directory.exists() or directory.is_symlink():
        # 17 is EEXIST.
        raise FileExistsError(17, os.strerror(17), str(directory))
    # In the same parent: rename(2) works within one file system only.
    temporary = directory.with_name(f".{directory.name}.new.{os.getpid()}")
    # 0755: the daemon usually runs as another user than the one who drops the bundle.
    temporary.mkdir(mode=0o755)
    try:
        files.replace(temporary / ARTIFACT, artifact, mode=mode)
        files.replace(temporary / MANIFEST, manifest, mode=mode)
        temporary.rename(directory)
    # Also on Ctrl-C: an interrupted `latticectl pack` leaves nothing behind.
    except BaseException:
        _remove(temporary)
        raise
    # A rename survives a power cut only once the parent directory is synced (fsync(2)).
    files.sync_directory(directory.parent)


def write_manifest(directory: Path, manifest: bytes, *, mode: int = 0o644) -> None:
    """Replace the manifest of an existing bundle in one step; a scan sees the old or the new one, whole. OSError."""
    files.replace(directory / MANIFEST, manifest, mode=mode)


def _remove(directory: Path) -> None:
    """Remove a directory that has no directories in it."""
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
