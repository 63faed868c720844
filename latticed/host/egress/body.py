"""Decodes the bodies of responses, with a limit on the decoded size."""

from __future__ import annotations

import zlib
from typing import Final

from latticed.host.call import HostError
from latticed.model.hostcall import Denial

# `wbits` of zlib.decompressobj: + 16 expects a gzip header (RFC 1952), negative none at all (RFC 1951).
_GZIP: Final = zlib.MAX_WBITS | 16
_ZLIB: Final = zlib.MAX_WBITS
_RAW: Final = -zlib.MAX_WBITS
MAX_MEMBERS: Final = 64
"""Members of one gzip body. An empty one is 20 bytes, and zlib copies what follows a member."""


def decoded(data: bytes, encoding: str, *, limit: int) -> bytes:
    """The content of a body with this Content-Encoding, at most `limit` bytes; HostError `too_large`, or
    `service_unavailable` for another encoding or a damaged body.

    Requests ask for identity only; gzip and deflate, applied once, are decoded all the same.
    """
    match encoding.strip().lower():
        case "" | "identity":
            return data
        case _ if not data:
            return data  # an answer to HEAD, or a 304, names an encoding and has no body
        case "gzip" | "x-gzip":
            return _inflated(data, _GZIP, limit)
        case "deflate":
            # Named after zlib's format, often sent without its header (RFC 9110, section 8.4.1.2).
            # 8 in the low four bits of the first byte is zlib's compression method (RFC 1950, section 2.2).
            return _inflated(data, _ZLIB if data[0] & 0x0F == 8 else _RAW, limit)
        case _:
            raise HostError(Denial.SERVICE_UNAVAILABLE, "the answer has a Content-Encoding that was not asked for")


def too_large(limit: int) -> HostError:
    """The HostError for a body of an answer over `limit` bytes, encoded or decoded."""
    return HostError(Denial.TOO_LARGE, f"the answer's body is over {limit} bytes")


def _inflated(data: bytes, window: int, limit: int) -> bytes:
    """`data` decompressed; never holds more than `limit` + 1 bytes, however much a small body expands to."""
    content = bytearray()
    members = 0
    while data:  # gzip may be of several members (RFC 1952, section 2.2)
        members += 1
        if members > MAX_MEMBERS:
            expected = f"expected at most {MAX_MEMBERS} members in the answer's gzip body, found more"
            raise HostError(Denial.SERVICE_UNAVAILABLE, expected)
        member = zlib.decompressobj(window)
        try:
            # One byte more than allowed says that there is more. It is never 0, which would mean no limit.
            content += member.decompress(data, limit + 1 - len(content))
        except zlib.error as error:
            raise HostError(Denial.SERVICE_UNAVAILABLE, "the answer's body is not what it says it is") from error
        if len(content) > limit:
            raise too_large(limit)
        if not member.eof:
            raise HostError(Denial.SERVICE_UNAVAILABLE, "the answer's body ends too early")
        # What follows the only stream of zlib or raw deflate is ignored.
        data = member.unused_data if window == _GZIP else b""
    return bytes(content)
