"""Writes bundles: for authors (`latticectl new|sign|pack`), and to take in a verified bundle."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

from latticed.bundle import refusal
from latticed.bundle.read import ReadLimits
from latticed.bundle.refusal import ARTIFACT, MANIFEST
from latticed.kit import files

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def render(raw: dict[str, Any]) -> bytes:
    """A JSON object for people: indented by two, UTF-8, ending in a newline."""
    return json.dumps(raw, indent=2, ensure_ascii=False).encode() + b"\n"


def render_manifest(raw: dict[str, Any]) -> bytes:
    """A manifest's object as `render` writes it; without white space where that is more than hosts read.

    BundleRefused manifest_too_large for what is too large without it, too.
    """
    limit = ReadLimits().manifest_bytes
    data = render(raw)
    if len(data) > limit:
        data = json.dumps(raw, separators=(",", ":"), ensure_ascii=False).encode()
    if len(data) > limit:
        raise refusal.too_large(MANIFEST, limit, len(data))
    return data


def write_bundle(directory: Path, manifest: bytes, artifact: bytes, *, mode: int = 0o644) -> None:
    """Make the new directory `directory` hold the two files; see `write_tree`."""
    write_tree(directory, {ARTIFACT: artifact, MANIFEST: manifest}, mode=mode)


def write_tree(directory: Path, tree: Mapping[str, bytes], *, mode: int = 0o644) -> None:
    """Make the new directory `directory` hold the files of `tree`, by their path in it, all or none.

    FileExistsError if it exists. They are written under a name that starts with a dot, which scans ignore, and renamed.
    `mode` is that of all files. OSError otherwise; nothing is left then.
    """
    if directory.exists() or directory.is_symlink():
        # 17 is EEXIST.
        raise FileExistsError(17, os.strerror(17), str(directory))
    # In the same parent: rename(2) works within one file system only.
    temporary = directory.with_name(f".{directory.name}.new.{os.getpid()}")
    # 0755: the daemon usually runs as another user than the one who drops the bundle.
    temporary.mkdir(mode=0o755)
    try:
        for path, data in tree.items():
            (temporary / path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            files.replace(temporary / path, data, mode=mode)
        temporary.rename(directory)
    # Also on Ctrl-C: an interrupted `latticectl pack` leaves nothing behind.
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    # A rename survives a power cut only once the parent directory is synced (fsync(2)).
    files.sync_directory(directory.parent)


def write_manifest(directory: Path, manifest: bytes, *, mode: int = 0o644) -> None:
    """Replace the manifest of an existing bundle in one step; a scan sees the old or the new one, whole. OSError."""
    files.replace(directory / MANIFEST, manifest, mode=mode)
