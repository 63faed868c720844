"""Asks a running cloudflared whether it is connected: only its `/ready` page says so."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Final

ADDRESS: Final = "127.0.0.1"
"""Where cloudflared's metrics server listens."""
ASK_S: Final = 2.0
"""Seconds for one question: the server is on this host."""
MAX_BYTES: Final = 64 << 10
"""How much of an answer is read; /config has all rules."""
OK: Final = 200


def free_port() -> int:
    """A port of loopback that is free at this moment. If another process takes it first, cloudflared ends and is
    restarted with another.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind((ADDRESS, 0))
        # Port 0 has the kernel choose (ip(7)); it is free again once the socket is closed here.
        return int(sock.getsockname()[1])


async def is_ready(port: int) -> bool:
    """Whether the cloudflared with this metrics port is connected to the provider's edge; False when it does not
    answer.
    """
    return (await _get(port, "/ready"))[0] == OK


async def is_managed_elsewhere(port: int) -> bool:
    """Whether its rules came from the provider instead of our file: only those have a version (0 and up). False when it
    does not answer.
    """
    status, body = await _get(port, "/config")
    with contextlib.suppress(ValueError):
        plain = json.loads(body) if status == OK else None
        version = plain.get("version") if isinstance(plain, dict) else None
        return isinstance(version, int) and version >= 0
    return False


async def _get(port: int, path: str) -> tuple[int, bytes]:
    """(status, body) of one GET; (0, b"") when there is no HTTP answer within ASK_S. It raises no error."""
    try:
        async with asyncio.timeout(ASK_S):
            reader, writer = await asyncio.open_connection(ADDRESS, port)
            try:
                # HTTP/1.0: no chunked answer (RFC 9112, section 7.1), so the body simply ends with the connection.
                writer.write(f"GET {path} HTTP/1.0\r\nHost: {ADDRESS}:{port}\r\nConnection: close\r\n\r\n".encode())
                answer = await _read_all(reader)
            finally:
                writer.close()
                # The peer may have reset the connection; the answer is complete by then, or is judged as it is.
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    # It has not opened its port yet, or hangs: both are "not ready", and it is asked again.
    except (OSError, TimeoutError):
        return 0, b""
    head, _, body = answer.partition(b"\r\n\r\n")
    fields = head.split(b"\r\n", 1)[0].split(b" ")
    known = len(fields) > 1 and fields[0].startswith(b"HTTP/") and fields[1].isdigit()
    return (int(fields[1]), body) if known else (0, b"")


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    """What comes until the connection ends, at most about twice MAX_BYTES."""
    data = b""
    while len(data) <= MAX_BYTES and (chunk := await reader.read(MAX_BYTES)):
        # Bounded: another process may have taken the port and answer without end.
        data += chunk
    return data
