"""Tar, as little of it as an archive of named regular files needs (POSIX ustar; GNU's binary sizes above 8 GiB).

`tarfile` would follow what an untrusted archive says: links, long names of any length, headers of any size. This
reads one block at a time and refuses everything but regular files.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK: Final = 512
END: Final = bytes(2 * BLOCK)
"""What an archive ends with."""

_CHUNK: Final = 1 << 20  # how much of a file is in memory at a time
_PADDING: Final = 64 * BLOCK
"""Zeros after the end that are tolerated: other tools fill up to their own record size."""


class BadTar(ValueError):
    """These bytes are no archive of regular files; the message says why."""


class TarSource(Protocol):
    """A file open for reading bytes; short reads mean its end."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One file that comes next in an archive; `size` in bytes."""

    name: str
    size: int


def header(name: str, size: int, *, mode: int, mtime_s: int) -> bytes:
    """The block before a file's bytes, for `size` bytes with the permissions `mode`; `mtime_s` since the epoch.

    ValueError for a name of more than 100 ASCII characters, UnicodeError for one that is not ASCII.
    """
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, mode, mtime_s
    block = info.tobuf(tarfile.GNU_FORMAT, encoding="ascii", errors="strict")
    # GNU's format puts a longer name into blocks of their own before the header.
    if len(block) != BLOCK:
        raise ValueError(f"expected a name of at most 100 characters, found {name[:200]!r}")
    return block


def padding(size: int) -> int:
    """How many zeros follow a file of `size` bytes, to fill its last block."""
    return -size % BLOCK


class TarReader:
    """Reads an archive from its beginning to its end: `next`, then all of `chunks`, until `next` gives None. Raises
    BadTar.
    """

    def __init__(self, source: TarSource) -> None:
        self._source = source
        self._left = 0

    def next(self) -> Member | None:
        """The next file, once the one before has been read to its end; None at the archive's end. BadTar for any other
        kind of member, RuntimeError when the caller has not read the last file.
        """
        if self._left:
            raise RuntimeError(f"expected the file before to be read, found {self._left} bytes left")
        block = self._exactly(BLOCK)
        if not any(block):  # the first of the two blocks of zeros
            self._end()
            return None
        try:
            # Of this one block alone, whose checksum it verifies; links and long names are refused below.
            info = tarfile.TarInfo.frombuf(block, encoding="ascii", errors="strict")
        except (tarfile.HeaderError, UnicodeError) as error:
            raise BadTar(f"expected a tar header, found: {error}") from error
        # AREGTYPE is what tar before POSIX wrote. GNU's binary sizes have a sign.
        if info.type not in {tarfile.REGTYPE, tarfile.AREGTYPE} or info.size < 0:
            raise BadTar(f"expected regular files only, found another kind: {info.name[:100]!r}")
        self._left = info.size
        return Member(name=info.name, size=info.size)

    def chunks(self) -> Iterator[bytes]:
        """The bytes of the file that `next` announced, in pieces of at most 1 MiB. BadTar when the archive ends."""
        fill = padding(self._left)
        while self._left:
            chunk = self._exactly(min(self._left, _CHUNK))
            self._left -= len(chunk)
            yield chunk
        if any(self._exactly(fill)):
            raise BadTar("expected zeros after a file, found something else")

    def _end(self) -> None:
        """Check what follows the first block of zeros: one more, then only padding of zeros. BadTar otherwise."""
        rest = self._source.read(BLOCK + _PADDING + 1)  # one byte more than allowed is enough to see that there is more
        if len(rest) < BLOCK or len(rest) > BLOCK + _PADDING or any(rest):
            raise BadTar("expected two blocks of zeros and nothing else at the end")

    def _exactly(self, size: int) -> bytes:
        """The next `size` bytes; BadTar when there are fewer."""
        found = b""
        while len(found) < size and (more := self._source.read(size - len(found))):
            found += more
        if len(found) < size:
            raise BadTar("it ends in the middle")
        return found
