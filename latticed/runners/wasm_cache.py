"""Compiled wasm modules, kept on disk under a MAC: only what the daemon's own compiler wrote is loaded.

Loading compiled code is executing it, so an entry that does not verify is deleted and compiled again. The MAC's key
is created once in the state directory, outside of the cache: write access to the cache alone gains nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
import threading
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Final

from latticed.kit import files, logs
from latticed.sandbox import artifact

if TYPE_CHECKING:
    from pathlib import Path

MOST_BYTES: Final = 256 << 20
"""The most bytes that all entries may take; the least recently used are deleted first."""
_KEY_BYTES: Final = 32
_MAC_BYTES: Final = 32  # HMAC-SHA256; an entry is its MAC, then the code
_CHUNK_BYTES: Final = 1 << 20
_TEMPORARY: Final = ".tmp-"  # begins the names of entries that are being written

log = logs.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What an entry was compiled from, and for which engine and processor; all of it is under the MAC.

    `sha256`: the module's digest; `engine`: name and version; `flags`: its configuration; `target`: the processor.
    """

    sha256: str
    engine: str
    flags: str
    target: str

    def bytes(self) -> bytes:
        """The fields as MAC input, each with its length, so that no two subjects encode alike."""
        fields = [field.encode() for field in astuple(self)]
        return b"latticed wasm code 1" + b"".join(len(field).to_bytes(4, "big") + field for field in fields)

    @property
    def name(self) -> str:
        """The entry's file name: a SHA-256 in lowercase hex."""
        return hashlib.sha256(self.bytes()).hexdigest()


class Cache:
    """Entries beneath `directory`, the key in `key_file`, both made when they are first needed; `most_bytes` for all
    entries.

    All methods block, and may run in several threads.
    """

    def __init__(self, directory: Path, key_file: Path, *, most_bytes: int = MOST_BYTES) -> None:
        self._directory = directory
        self._key_file = key_file
        self._most_bytes = most_bytes
        self._key = b""
        self._lock = threading.Lock()  # one key is made, and entries are deleted by one thread at a time

    def find(self, subject: Subject) -> int | None:
        """The code as a sealed memfd, which the caller closes; None when there is none that verifies. An entry that
        does not verify is deleted.
        """
        path = self._directory / subject.name
        # O_NONBLOCK: opening a FIFO would wait for a writer.
        try:
            with files.closing(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)) as source:
                fd = self._verified(source, subject)
        except OSError:
            return None
        # Damaged, or not written by this daemon: it would never verify, so it is removed and compiled again.
        if fd is None:
            log.warning("wasm_cache_entry_refused", entry=subject.name[:16])
            self.discard(subject)
            return None
        with contextlib.suppress(OSError):
            # The time of last use, by which `_make_room` chooses what to delete.
            os.utime(path)
        return fd

    def keep(self, subject: Subject, code: int) -> None:
        """Store the sealed memfd `code`; OSError when that fails: then it is compiled again next time."""
        mac = self._mac(subject, code)  # before taking the lock, which `_the_key` takes too
        with self._lock:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = self._directory / f"{_TEMPORARY}{secrets.token_hex(8)}"
            try:
                with files.closing(
                    os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                ) as out:
                    files.write_all(out, mac)
                    _copy(code, out)
                # Renamed when complete. No fsync: an entry that a crash tore does not verify, and is compiled again.
                temporary.rename(self._directory / subject.name)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    temporary.unlink()
            self._make_room(subject.name)

    def discard(self, subject: Subject) -> None:
        """Delete the entry, if there is one."""
        with contextlib.suppress(OSError):
            (self._directory / subject.name).unlink()

    def _verified(self, source: int, subject: Subject) -> int | None:
        """A sealed copy of the code in the entry `source`, or None when it is no file or its MAC is another."""
        if not stat.S_ISREG(os.fstat(source).st_mode):
            return None
        mac = os.read(source, _MAC_BYTES)
        fd = artifact.memory()
        try:
            _copy(source, fd)
            artifact.close_for_good(fd)
            if hmac.compare_digest(mac, self._mac(subject, fd)):  # of the sealed copy, which is what is loaded
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    def _mac(self, subject: Subject, code: int) -> bytes:
        """The MAC over `subject` and all bytes of the descriptor `code`, whose offset stays as it is."""
        mac = hmac.new(self._the_key(), subject.bytes(), hashlib.sha256)
        offset = 0
        while chunk := os.pread(code, _CHUNK_BYTES, offset):
            mac.update(chunk)
            offset += len(chunk)
        return mac.digest()

    def _the_key(self) -> bytes:
        """The key; a new one unless the file is the daemon's alone. Entries under another key do not verify."""
        with self._lock:
            if not self._key:
                self._key = self._read_key() or self._new_key()
            return self._key

    def _read_key(self) -> bytes | None:
        """The key in the file; None when it is missing, too short, or another user's to read or write."""
        try:
            fd = os.open(self._key_file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        with files.closing(fd), contextlib.suppress(OSError, ValueError):
            found = os.fstat(fd)
            key = files.read_open(fd, _KEY_BYTES)
            if found.st_uid == os.geteuid() and not found.st_mode & 0o077 and len(key) == _KEY_BYTES:
                return key
        return None

    def _new_key(self) -> bytes:
        """Make a key and return it; its file replaces what is there."""
        key = secrets.token_bytes(_KEY_BYTES)
        with contextlib.suppress(FileNotFoundError):
            self._key_file.unlink()  # its mode may be what is wrong with it
        files.replace(self._key_file, key, mode=0o600)
        return key

    def _make_room(self, newest: str) -> None:
        """Delete leftovers of interrupted writes, and the oldest entries beyond the limit."""
        entries = []
        for entry in os.scandir(self._directory):
            if entry.name.startswith(_TEMPORARY):  # ours has been renamed, and no other thread writes now
                os.unlink(entry.path)
            elif entry.name != newest:
                found = entry.stat(follow_symlinks=False)
                entries.append((found.st_mtime_ns, found.st_size, entry.path))
        room = self._most_bytes - (self._directory / newest).stat().st_size
        for _, size, path in sorted(entries, reverse=True):  # the most recently used first
            room -= size
            if room < 0:
                os.unlink(path)


def _copy(source: int, target: int) -> None:
    """Copy to the end: a file from its current offset, a memfd that was written from its beginning."""
    while chunk := os.read(source, _CHUNK_BYTES):
        files.write_all(target, chunk)
