"""Sending log entries to journald in its native protocol: structured fields in datagrams.

Source: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/ and systemd.exec(5), $JOURNAL_STREAM.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import struct
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

SOCKET: Final = "/run/systemd/journal/socket"
_SEND_S: Final = 1.0  # how long the sending thread waits for a stuck journald before it drops an entry
# journald takes a memfd only when it is sealed, since it maps it.
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def is_stream(fd: int, environ: Mapping[str, str]) -> bool:
    """Whether `fd` is the stream to the journal that $JOURNAL_STREAM in `environ` names (`device:inode`)."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def encode(fields: Mapping[str, str]) -> bytes:
    """One entry in journald's native format: `NAME=value` and a newline for each field.

    A value with a newline is sent in the binary form (name, newline, length, value), so that it cannot be read as
    another field. Names are the caller's: ASCII, without `=`.
    """
    parts: list[bytes] = []
    for name, value in fields.items():
        data = value.encode("utf-8", "backslashreplace")
        if b"\n" in data:
            parts += [name.encode("ascii"), b"\n", struct.pack("<Q", len(data)), data, b"\n"]
        else:
            parts += [name.encode("ascii"), b"=", data, b"\n"]
    return b"".join(parts)


class JournalSender:
    """Sends encoded entries to journald at the socket `path`. Blocks for up to a second each: call it in a thread."""

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(_SEND_S)

    def send(self, entry: bytes) -> bool:
        """Whether the entry was handed over; never raises for a journald that is absent, full or stuck."""
        try:
            self._send(entry)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the socket. Nothing is buffered."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, data: bytes) -> None:
        """Send one encoded entry; OSError when journald does not take it within a second."""
        try:
            self._socket.sendto(data, self._path)  # by path each time: journald may have been restarted
        except OSError as error:
            # Larger than a datagram may be: sent as a descriptor instead (JOURNAL_NATIVE_PROTOCOL).
            if error.errno not in {errno.EMSGSIZE, errno.ENOBUFS}:
                raise
            self._send_sealed(data)

    def _send_sealed(self, data: bytes) -> None:
        """Send an entry that is too big for a datagram as a sealed memfd, which journald maps."""
        memory = os.memfd_create("latticed-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with os.fdopen(memory, "wb", closefd=False) as file:
                file.write(data)
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [memory]))
            self._socket.sendmsg([], [rights], 0, self._path)
        finally:
            os.close(memory)
