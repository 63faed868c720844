"""The part of the launch stub that gives the daemon sockets of the child's own network; executed in `stub`'s namespace.

A socket belongs for good to the network namespace that it was made in (network_namespaces(7)). So the daemon, which is
in another one, can accept and connect in the child's once it has a socket from there: it gets the listening ones at the
start, and any other from a process that makes one for each byte it is sent, and can do nothing else.
"""

from __future__ import annotations

import ctypes
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from latticed.sandbox.stub_calls import (  # noqa: TC004 - executed before this, in the same names
        DOOR,
        Plan,
        begin,
        check,
        libc,
    )

# From linux/socket.h: the modules socket and array would cost time at each spawn.
AF_INET, AF_INET6, SOCK_STREAM, SOL_SOCKET, SCM_RIGHTS, MSG_NOSIGNAL = 2, 10, 1, 1, 1, 0x4000
BACKLOG = 128
FAMILIES = {b"4": AF_INET, b"6": AF_INET6}


def open_listeners(addresses: list[tuple[str, int]]) -> list[int]:
    """Listening TCP sockets at these IPv4 addresses and ports, in the network of this process."""
    made = []
    for address, port in addresses:
        begin(f"listen({address}:{port})")
        fd = check(libc.socket(AF_INET, SOCK_STREAM, 0))
        packed = bytes(int(part) for part in address.split("."))
        name = struct.pack("=H", AF_INET) + struct.pack(">H", port) + packed + bytes(8)  # struct sockaddr_in
        check(libc.bind(fd, name, len(name)))
        check(libc.listen(fd, BACKLOG))
        made.append(fd)
    return made


def send_sockets(word: bytes, fds: list[int]) -> None:
    """Send one message, with copies of these descriptors (SCM_RIGHTS in unix(7)), to the daemon."""
    data = ctypes.create_string_buffer(word, len(word))
    vector = struct.pack("PN", ctypes.addressof(data), len(word))
    vectors = ctypes.create_string_buffer(vector, len(vector))
    # struct cmsghdr: a length, which counts the header of 16 bytes, level and kind; then the descriptors, padded to 8.
    rights = struct.pack(f"Nii{len(fds)}i", 16 + 4 * len(fds), SOL_SOCKET, SCM_RIGHTS, *fds)
    control = ctypes.create_string_buffer(rights, (len(rights) + 7) & ~7)
    space = (ctypes.addressof(control), len(control)) if fds else (0, 0)
    # struct msghdr: no name, one vector, the control message, no flags.
    check(libc.sendmsg(DOOR, struct.pack("PIxxxxPNPNi4x", 0, 0, ctypes.addressof(vectors), 1, *space, 0), MSG_NOSIGNAL))


def hand_out_listeners(plan: Plan) -> None:
    """Make the plan's listening sockets, while this process may bind every port, and give them to the daemon."""
    fds = open_listeners(plan["listen"])
    begin("door")
    send_sockets(b"L", fds)
    for fd in fds:
        os.close(fd)


def make_sockets() -> None:
    """Answer each byte of the daemon with one socket of that family, until the daemon closes its end."""
    asked = ctypes.create_string_buffer(1)
    while libc.recv(DOOR, asked, 1, 0) == 1:
        fd = libc.socket(FAMILIES.get(asked.raw, AF_INET), SOCK_STREAM, 0)
        # Without a descriptor: none is free, or no memory. The next one may be there again.
        send_sockets(b"S" if fd >= 0 else b"F", [fd] if fd >= 0 else [])
        if fd >= 0:
            libc.close(fd)
