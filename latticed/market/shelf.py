"""What the market has on disk: indexes as they were fetched, and the directory that its bundles go into.

`<state>/market/<source>/plugins.json`, and files under names that begin with a dot while they are fetched. A bundle is
made whole beside the place it goes to, and put there by one rename; a kill at any moment leaves the old or the new one.
All functions block.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from typing import TYPE_CHECKING, Final

from latticed.bundle import decode
from latticed.bundle.refusal import ARTIFACT, MANIFEST, BundleRefused
from latticed.kit import files
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INDEX: Final = "plugins.json"
METADATA: Final = "metadata.json"
"""Of a TUF repository: its verified metadata, each file as a text by its name."""
_REPOSITORY: Final = "repository"
_MANIFEST_BYTES: Final = 1 << 20
"""Above it a manifest is never taken in (`limits.manifest_bytes`)."""
_STAGED: Final = re.compile(r"\.(?:taking|gone)\.[0-9a-f]{16}")
_PARTIAL: Final = re.compile(r"\.fetch\.[0-9a-f]{16}")


class MarketShelf:
    """The market's files beneath the state directory `state_dir`."""

    def __init__(self, state_dir: Path) -> None:
        self.bundles = state_dir / "bundles"
        self._sources = state_dir / "market"

    def clear(self) -> None:
        """Remove what killed fetches and installs have left. None may be going on. OSError is not raised: the next
        start tries again.
        """
        with contextlib.suppress(OSError):
            for name in os.listdir(self.bundles):
                if _STAGED.fullmatch(name):
                    shutil.rmtree(self.bundles / name, ignore_errors=True)
        with contextlib.suppress(OSError):
            for source in os.listdir(self._sources):
                for name in os.listdir(self._sources / source):
                    if _PARTIAL.fullmatch(name):
                        left = self._sources / source / name
                        if left.is_dir():
                            shutil.rmtree(left, ignore_errors=True)
                        else:
                            left.unlink(missing_ok=True)

    def source(self, name: str) -> Path:
        """The directory of a source, made when it is not there; Problem store_unavailable."""
        place = self._sources / name
        with _written():
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        return place

    def partial(self, source: str) -> Path:
        """A new name for a file of a source that is being fetched."""
        return self.source(source) / f".fetch.{secrets.token_hex(8)}"

    def put_index(self, fetched: Path) -> None:
        """Have a fetched file be the index of the source beside which it is. Problem store_unavailable."""
        with _written():
            os.replace(fetched, fetched.with_name(INDEX))
            files.sync_directory(fetched.parent)

    def repository(self, source: str) -> Path:
        """Where the index and the metadata of a TUF repository are, together."""
        return self._sources / source / _REPOSITORY

    def stage_repository(self, source: str) -> Path:
        """A new directory beside `repository`; `unstage` removes it."""
        place = self.partial(source)
        with _written():
            place.mkdir(mode=0o700)
        return place

    def put_repository(self, staged: Path, metadata: bytes) -> None:
        """Have the index in `staged` and this metadata be those of the source, in one step. Problem
        store_unavailable.
        """
        with _written():
            files.replace(staged / METADATA, metadata, mode=0o600)
            _put(staged, staged.with_name(_REPOSITORY))

    def stage(self) -> Path:
        """A new directory for a bundle, beside where it goes; `unstage` removes it."""
        place = self.bundles / f".taking.{secrets.token_hex(8)}"
        with _written():
            place.mkdir(mode=0o755)
        return place

    def unstage(self, place: Path) -> None:
        """Remove what is left of a directory that was staged: all, or what its own was put in place of."""
        shutil.rmtree(place, ignore_errors=True)

    def place(self, staged: Path, name: str) -> None:
        """Have the bundle in `staged` be the one called `name` beside it, in one step. Problem store_unavailable."""
        target = staged.with_name(name)
        with _written():
            for one in (MANIFEST, ARTIFACT):
                (staged / one).chmod(0o644)
            _put(staged, target)

    def digest(self, name: str) -> str:
        """The SHA-256 of the artifact that the manifest of this bundle names; empty when it has none that is valid."""
        try:
            data = files.read_at_most(self.bundles / name / MANIFEST, _MANIFEST_BYTES)
            return decode.decode(data)[1].digest_sha256.lower()
        except (OSError, ValueError, BundleRefused):
            return ""

    def remove(self, name: str) -> None:
        """Remove the bundle of this name, in one step as far as a scan can see. Problem store_unavailable."""
        gone = self.bundles / f".gone.{secrets.token_hex(8)}"
        with _written(), contextlib.suppress(FileNotFoundError):
            (self.bundles / name).rename(gone)
            shutil.rmtree(gone)


def _put(staged: Path, target: Path) -> None:
    """Have `target` name the directory `staged`, in one step; what it named before is then in `staged`. OSError."""
    files.sync_directory(staged)
    try:
        # Also over a directory that is empty; any other is ENOTEMPTY.
        staged.rename(target)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        files.exchange(staged, target)
    files.sync_directory(target.parent)


@contextlib.contextmanager
def _written() -> Iterator[None]:
    """Raise Problem store_unavailable for an OSError."""
    try:
        yield
    except OSError as error:
        detail = f"expected to write into the market's directory, found: {error.strerror or error}"
        raise Problem("store_unavailable", detail, "free some space in the state directory") from error


def stamp_of(*paths: Path) -> tuple[int, ...]:
    """What tells these files from others, without reading them; empty when one is missing. Blocks."""
    try:
        found = [path.stat() for path in paths]
    except OSError:
        return ()
    return tuple(number for one in found for number in (one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns))
