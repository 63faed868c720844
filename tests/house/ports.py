"""Ports for programs and servers that must be told theirs.

A port that the kernel chose (`bind` to port 0) and that was closed again may be given to another process before it is
bound a second time. These lie below the kernel's own range, and no other process of tests on this machine takes them.
"""

import contextlib
import itertools
import socket

LOWEST = 20_000
KERNELS = 32_768  # net.ipv4.ip_local_port_range begins here (Linux's default)
BLOCK = 64


def _block() -> int:
    """The lowest of `BLOCK` ports that this process alone has, until it ends."""
    for first in range(LOWEST, KERNELS - BLOCK, BLOCK):
        with socket.socket(socket.AF_UNIX) as lease:
            try:
                lease.bind(f"\0latticed-tests-ports-{first}")  # an abstract name goes with its process
            except OSError:
                continue
            lease.detach()  # stays open
            return first
    raise AssertionError(f"other tests have all ports between {LOWEST} and {KERNELS}")


_ports = itertools.cycle(range(first := _block(), first + BLOCK))


def free() -> int:
    """A port on which nothing listens, of TCP and of UDP, at any IPv4 address."""
    for port in itertools.islice(_ports, BLOCK):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:  # in use, or was lately (TIME_WAIT)
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                stack.enter_context(socket.socket(type=kind)).bind(("", port))
            return port
    raise AssertionError("all ports of these tests are in use")
