"""Who is at the other end of a unix socket, by the kernel's word (unix(7), SO_PEERCRED; socket(7), SO_PEERGROUPS)."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import Final, Protocol

NOBODY: Final = 65534
"""The overflow uid: a peer from another user namespace has it, so it identifies no user."""

_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_SO_PEERGROUPS: Final = 59  # asm-generic/socket.h since Linux 4.13; Python's socket module has no name for it
_INLINE_BYTES: Final = 1024  # the largest answer socket.getsockopt takes
_MOST_BYTES: Final = 65536 * 4  # NGROUPS_MAX gids


class Connected(Protocol):
    """A socket, or what asyncio's transports show of one."""

    def fileno(self) -> int: ...
    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The process that connected, with its supplementary `groups`: as it was at that moment, not as it may be now.

    `pid` may have been reused since.
    """

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]


def of(sock: Connected) -> Peer:
    """The peer of a connected unix stream socket; OSError when the kernel does not know (ENOTCONN)."""
    pid, uid, gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    # The uid -1, which the kernel gives for a socket without a peer.
    if uid == 0xFFFFFFFF:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
    return Peer(pid=pid, uid=uid, gid=gid, groups=frozenset(_groups(sock)))


def _groups(sock: Connected) -> tuple[int, ...]:
    """The supplementary groups of the peer."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _INLINE_BYTES)
    except OSError as error:
        if error.errno != errno.ERANGE:  # the answer does not fit the buffer
            raise
        raw = _many_groups(sock.fileno())
    return struct.unpack(f"={len(raw) // 4}I", raw)


def _many_groups(fd: int) -> bytes:
    """More than 256 groups: the same call with a buffer that Python's wrapper does not allow."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer, size = ctypes.create_string_buffer(_MOST_BYTES), ctypes.c_uint32(_MOST_BYTES)
    if libc.getsockopt(fd, socket.SOL_SOCKET, _SO_PEERGROUPS, buffer, ctypes.byref(size)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return buffer.raw[: size.value]
