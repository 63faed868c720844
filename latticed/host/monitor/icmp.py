"""ICMP echo, as bytes (RFC 792, RFC 4443)."""

from __future__ import annotations

import struct
from typing import Final

_ECHO: Final = {4: (8, 0), 6: (128, 129)}
_HEADER: Final = struct.Struct("!BBHHH")
_TOKEN_BYTES: Final = 16


def request(version: int, identifier: int, sequence: int, token: bytes) -> bytes:
    """An echo request that carries `token`, 16 bytes.

    The checksum is computed for IPv4 only: over IPv6 it covers addresses, and the kernel fills it in.
    """
    kind = _ECHO[version][0]
    plain = _HEADER.pack(kind, 0, 0, identifier, sequence) + token
    return _HEADER.pack(kind, 0, checksum(plain), identifier, sequence) + token if version == 4 else plain


def is_reply(version: int, packet: bytes, sequence: int, token: bytes) -> bool:
    """Whether `packet` answers that request. The identifier is not compared: ping sockets set their own.

    A raw IPv4 socket gives the IP header too (raw(7)).
    """
    if version == 4 and packet and packet[0] >> 4 == 4:
        packet = packet[(packet[0] & 0x0F) * 4 :]
    if len(packet) < _HEADER.size + _TOKEN_BYTES:
        return False
    kind, code, _, _, found = _HEADER.unpack_from(packet)
    return (kind, code, found) == (_ECHO[version][1], 0, sequence) and packet[_HEADER.size :] == token


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(word for (word,) in struct.iter_unpack("!H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
