"""ICMP echo, as bytes: requests and replies of IPv4 (RFC 792) and IPv6 (RFC 4443). No sockets here."""

from __future__ import annotations

import struct
from typing import Final

# IP version: types of (request, reply).
_ECHO: Final = {4: (8, 0), 6: (128, 129)}
# Type, code, checksum, identifier, sequence number, in network order; the same for both versions.
_HEADER: Final = struct.Struct("!BBHHH")
_TOKEN_BYTES: Final = 16


def request(version: int, identifier: int, sequence: int, token: bytes) -> bytes:
    """The bytes of an echo request for IP `version` 4 or 6 that carries `token`, 16 bytes.

    `identifier` and `sequence` are numbers of 16 bits. The checksum is computed for IPv4 only: over IPv6 it covers
    addresses, and the kernel fills it in.
    """
    kind = _ECHO[version][0]
    plain = _HEADER.pack(kind, 0, 0, identifier, sequence) + token
    return _HEADER.pack(kind, 0, checksum(plain), identifier, sequence) + token if version == 4 else plain


def is_reply(version: int, packet: bytes, sequence: int, token: bytes) -> bool:
    """Whether `packet`, as received, answers the request with this sequence number and token; False for anything else.

    The identifier is not compared: for ping sockets the kernel sets it (icmp(7)). A raw IPv4 socket gives the IP
    header, too (raw(7)), which is skipped here.
    """
    if version == 4 and packet and packet[0] >> 4 == 4:
        # The header's length in 32-bit words is in the low four bits of its first byte (RFC 791, section 3.1). An ICMP
        # message without IP header begins with its type, and 0x40 to 0x4F are none of ours.
        packet = packet[(packet[0] & 0x0F) * 4 :]
    if len(packet) < _HEADER.size + _TOKEN_BYTES:
        return False
    kind, code, _, _, found = _HEADER.unpack_from(packet)
    return (kind, code, found) == (_ECHO[version][1], 0, sequence) and packet[_HEADER.size :] == token


def checksum(data: bytes) -> int:
    """The Internet checksum of `data` (RFC 1071): over data that contain their own checksum it is 0."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(word for (word,) in struct.iter_unpack("!H", padded))
    # Carries are added back in (one's complement sum).
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
