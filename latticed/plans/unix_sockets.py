"""The unix sockets that listen in this network namespace, as the kernel lists them for itself: sock_diag(7).

/proc/net/unix has names as they are, newlines included, and anybody may bind an abstract name: a row can be forged.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING, Final

from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

# linux/netlink.h, linux/sock_diag.h, linux/unix_diag.h.
_SOCK_DIAG: Final = 4
_BY_FAMILY: Final = 20
_ERROR: Final = 2
_DONE: Final = 3
_REQUEST: Final = 0x1
_DUMP: Final = 0x300
_SHOW_NAME: Final = 0x1
_SHOW_UID: Final = 0x40
_NAME: Final = 0
_UID: Final = 7
_LISTEN: Final = 10  # TCP_LISTEN
_HEADER: Final = struct.Struct("=IHHII")
_ASKED: Final = struct.Struct("=BBHIIIII")
_SOCKET: Final = struct.Struct("=BBBBIII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_BUFFER_BYTES: Final = 1 << 17
"""More than the kernel puts into one part of its answer."""


def listening(path: str) -> frozenset[int]:
    """The inodes of sockets that were bound to this file by a process of our user; of those that were unlinked, too.

    Another user can have the same name, in a mount namespace of its own. Problem tool_failed.
    """
    wanted = {_NAME: os.fsencode(path) + b"\0", _UID: struct.pack("=I", os.geteuid())}
    try:
        return frozenset(inode for inode, found in _listed() if found.items() >= wanted.items())
    except OSError as error:
        why = f"the kernel does not list unix sockets: {error.strerror}"
        raise Problem("tool_failed", why, "modprobe unix_diag") from error


def _listed() -> Iterator[tuple[int, dict[int, bytes]]]:
    """Inode and attributes of each; a file's name ends with a NUL (unix(7)). OSError."""
    question = _ASKED.pack(socket.AF_UNIX, 0, 0, 1 << _LISTEN, 0, _SHOW_NAME | _SHOW_UID, 0, 0)
    header = _HEADER.pack(_HEADER.size + len(question), _BY_FAMILY, _REQUEST | _DUMP, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG) as kernel:
        kernel.sendto(header + question, (0, 0))
        while True:
            for kind, body in _parts(kernel.recv(_BUFFER_BYTES), _HEADER):
                if kind in {_ERROR, _DONE}:
                    code = -struct.unpack_from("=i", body)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    return
                _, _, _, _, inode, _, _ = _SOCKET.unpack_from(body)
                yield inode, dict(_parts(body[_SOCKET.size :], _ATTRIBUTE))


def _parts(data: bytes, head: struct.Struct) -> Iterator[tuple[int, bytes]]:
    """Type and content of each message, or attribute; they begin at multiples of four (netlink(7), NLMSG_ALIGN)."""
    while len(data) >= head.size:
        length, kind, *_ = head.unpack_from(data)
        if length < head.size:
            raise OSError(0, "its answer is not understood")
        yield kind, data[head.size : length]
        data = data[(length + 3) & ~3 :]
