"""One ICMP echo. Needs CAP_NET_RAW, or a group within net.ipv4.ping_group_range (icmp(7)): else `unsupported`.

The range applies to IPv6 as well, in spite of its name.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import socket
from typing import TYPE_CHECKING, Final

from latticed.host.monitor import icmp
from latticed.host.monitor.rules import PingUnsupported

if TYPE_CHECKING:
    from latticed.model.addresses import Address

_PACKET_BYTES: Final = 1_500
"""Longer packets are cut by recv, which is harmless: a reply to our request is far shorter."""
_SEQUENCE: Final = 1
# Not permitted, or no IPv6 (or no ping sockets) in this kernel. Other errors, as EMFILE, are no lack of permission.
_NOT_ALLOWED: Final = frozenset(
    {errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT}
)
# By IP version: family and protocol of the socket.
_FAMILIES: Final = {4: (socket.AF_INET, socket.IPPROTO_ICMP), 6: (socket.AF_INET6, socket.IPPROTO_ICMPV6)}


async def check(address: Address) -> None:
    """Return once an address that the guard has allowed answers one echo request. It waits without end: the caller sets
    the deadline. Raises PingUnsupported when no socket may be opened, OSError (unreachable, refused by a firewall).
    """
    opened = _open(address.version)
    if opened is None:
        raise PingUnsupported("expected CAP_NET_RAW, or a group of the daemon's in net.ipv4.ping_group_range")
    # Closed on cancellation too, which is how a check without an answer ends.
    with contextlib.closing(opened):
        await _exchange(opened, address)


async def _exchange(opened: socket.socket, address: Address) -> None:
    """Send one request to `address` over an open socket, and return once it is answered. OSError."""
    loop = asyncio.get_running_loop()
    # Random: a raw socket receives the replies to other processes' requests to this address as well.
    token = secrets.token_bytes(16)
    # Not loop.sock_connect, which would resolve the address; a datagram socket's connect sends nothing and does not
    # block. From here on only what this address sends is received.
    opened.connect((str(address), 0))
    await loop.sock_sendall(opened, icmp.request(address.version, os.getpid() & 0xFFFF, _SEQUENCE, token))
    # Other packets are skipped; on loopback a raw socket even receives its own request.
    while not icmp.is_reply(address.version, await loop.sock_recv(opened, _PACKET_BYTES), _SEQUENCE, token):
        pass


def _open(version: int) -> socket.socket | None:
    """A socket for echoes, unprivileged where the kernel allows it; None when it allows neither."""
    family, protocol = _FAMILIES[version]
    # DGRAM first: it needs no capability, and receives only the replies to its own requests.
    for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
        try:
            opened = socket.socket(family, kind, protocol)
        except OSError as error:
            # EMFILE and the like: `rules` reports them as errors of this host.
            if error.errno not in _NOT_ALLOWED:
                raise
        else:
            opened.setblocking(False)
            return opened
    return None
