"""Copies of plugins' published files, root's own, that nginx serves: each set under the name of its contents.

    /var/lib/latticed-nginx/published/9f86d0…/index.html      copied from /var/lib/latticed/static/acme/acme.site

The files that the daemon keeps may change at any moment, and the daemon may lie: nothing of theirs is opened through a
link, and a set is there whole, with the contents that the operator approved, or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latticed.kit import files
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from latticed.system.nginx.file_sets import Listed

MAX_FILE_BYTES: Final = 64 << 20
"""The most that a file which a plugin publishes may have (`static.file_bytes`)."""
_NEW: Final = ".new-"
_CHUNK: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class Copies:
    """`directory`: ours, below one that root alone can change. `source`: where the daemon keeps published files."""

    directory: Path
    source: Path

    def has(self, digest: str) -> bool:
        return (self.directory / digest).is_dir()

    def look(self, listed: Listed) -> None:
        """Problem apply_failed unless this set is copied already, or its files are as they are listed."""
        if not self.has(listed.digest):
            for path, digest in listed.files:
                for _ in self._read(listed.owner, path, digest):
                    pass

    def put(self, listed: Listed) -> None:
        """Copy a set, unless it is there. Problem apply_failed: nothing of it is there; OSError: of our own disk."""
        if self.has(listed.digest):
            return
        self.directory.mkdir(exist_ok=True)
        self.directory.chmod(0o755)  # whatever the umask: workers, which are not root, pass through
        for remains in self.directory.glob(f"{_NEW}*"):
            shutil.rmtree(remains)
        made = self.directory / f"{_NEW}{secrets.token_hex(8)}"
        made.mkdir()
        try:
            for path, digest in listed.files:
                with files.closing(_created(made / path)) as fd:
                    for chunk in self._read(listed.owner, path, digest):
                        files.write_all(fd, chunk)
                    os.fsync(fd)
            for directory, _, _ in os.walk(made):
                Path(directory).chmod(0o755)
                files.sync_directory(Path(directory))
            made.rename(self.directory / listed.digest)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        files.sync_directory(self.directory)

    def keep(self, digests: Collection[str]) -> None:
        """Remove all other sets."""
        with contextlib.suppress(FileNotFoundError):
            for one in os.listdir(self.directory):
                if one not in digests:
                    shutil.rmtree(self.directory / one, ignore_errors=True)

    def _read(self, owner: tuple[str, str], path: str, digest: str) -> Iterator[bytes]:
        """The chunks of a file, opened without following a link (`kit.files`). Problem apply_failed, at the end too:
        it cannot be read, or is not the one of this SHA-256.
        """
        *parents, name = path.split("/")
        found, size = hashlib.sha256(), 0
        try:
            with contextlib.ExitStack() as stack:
                beneath = stack.enter_context(files.closing(files.open_directory(self.source)))
                for part in (*owner, *parents):
                    beneath = stack.enter_context(files.closing(files.open_directory(part, beneath=beneath)))
                fd = stack.enter_context(files.closing(files.open_file(name, beneath=beneath)))
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise _differs(owner, path, "it is no regular file")
                while chunk := os.read(fd, _CHUNK):
                    size += len(chunk)
                    if size > MAX_FILE_BYTES:
                        raise _differs(owner, path, f"it has more than {MAX_FILE_BYTES >> 20} MiB")
                    found.update(chunk)
                    yield chunk
        except OSError as error:
            raise _differs(owner, path, error.strerror or str(error)) from error
        if found.hexdigest() != digest:
            raise _differs(owner, path, "it has changed since")


def _created(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    os.fchmod(fd, 0o644)
    return fd


def _differs(owner: tuple[str, str], path: str, why: str) -> Problem:
    reason = f"the published file {path} of {owner[1]} is not as it was planned: {why}"
    return Problem("apply_failed", reason, "plan it anew: latticectl apply latticed.nginx")
