"""latticectl backup: writes the daemon's whole state to one file, atomically."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import sys
from typing import TYPE_CHECKING, Final

from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl backup /var/backups/latticed-$(date +%F).tar",
    "latticectl backup - | age -r age1… > latticed.tar.age",
    "latticed --restore /var/backups/latticed-2026-01-31.tar   # with the daemon stopped",
)
STDOUT: Final = "-"
"""The file name that stands for stdout."""
_NOT_IN_IT: Final = ("trust policy", "key of secrets", "settings")
"""What a restore elsewhere needs besides the backup (docs/operate/recovery.md)."""


def arguments(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", type=str, help="where to write it (must not exist), or - for stdout")
    parser.description = (
        "Write ledger, floors, host key and the plugins in use to FILE, mode 0600. It holds the host's private key: "
        "keep it as you would keep that. It takes every scope."
    )


def run(session: CtlSession) -> int:
    """Write the backup; nothing is left under its name unless it is complete."""
    name = session.args.file
    # A generator: nothing is asked of the daemon before the checks of the target have passed.
    chunks = session.client().chunks("backup")
    if name == STDOUT:
        return _to_stdout(chunks)
    size, digest = _to_file(os.fspath(name), chunks)
    if session.screen.json_wanted:
        session.screen.json({"file": name, "bytes": size, "sha256": digest, "not_in_it": list(_NOT_IN_IT)})
    else:
        session.screen.line(f"{name}: {size} bytes, SHA-256 {digest}")
        session.screen.note("it holds the host's private key: keep it where only root reads")
        session.screen.note(
            f"not in it, and needed elsewhere: {', '.join(_NOT_IN_IT)}; --restore says which is missing"
        )
    return ExitCode.OK


def _to_stdout(chunks: Iterator[bytes]) -> int:
    """Write the backup to stdout; Problem usage on a terminal. A reader notices a break by the exit code only."""
    if sys.stdout.isatty():
        raise Problem("usage", "a backup is no text for a terminal", "name a file, or redirect stdout")
    for chunk in chunks:
        sys.stdout.buffer.write(chunk)
    return ExitCode.OK


def _to_file(name: str, chunks: Iterator[bytes]) -> tuple[int, str]:
    """Write a temporary file beside `name` and link it there when complete; an existing file is never replaced."""
    # Before the daemon is asked; `_name` checks again when the file is complete.
    if os.path.lexists(name):
        raise _exists(name)
    directory, base = os.path.split(name)
    # Beside it, for link(2) and rename(2) do not work across file systems.
    temporary = os.path.join(directory, f".{base}.{secrets.token_hex(6)}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            size, digest = _write(fd, chunks)
            _name(temporary, name)
        finally:
            # Where the file system has no hard links, `_name` has renamed it, and there is nothing left to remove.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
    # A file of this name was made since the check above.
    except FileExistsError as error:
        raise _exists(name) from error
    except OSError as error:
        raise Problem("io_error", f"cannot write {name}: {error.strerror or error}") from error
    return size, digest


def _write(fd: int, chunks: Iterator[bytes]) -> tuple[int, str]:
    """Write all chunks and fsync; (bytes, SHA-256 in hex)."""
    size, digest = 0, hashlib.sha256()
    with open(fd, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        file.flush()
        # On disk before it gets its name, which says that the backup is complete.
        os.fsync(file.fileno())
    return size, digest.hexdigest()


def _name(temporary: str, name: str) -> None:
    """Move the complete file to `name`; FileExistsError when that exists by now."""
    try:
        # link(2), unlike rename(2), fails when the name exists.
        os.link(temporary, name)
    except PermissionError:  # a file system without hard links, such as FAT
        # O_EXCL takes the name, so that rename(2) replaces nothing but this empty file.
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        os.rename(temporary, name)
    # A new name is durable only once its directory is synced (fsync(2)).
    fd = os.open(os.path.dirname(name) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _exists(name: str) -> Problem:
    """The Problem when a file of this name exists already."""
    return Problem("exists", f"expected {name} not to exist, found it", "a backup never replaces a file")
