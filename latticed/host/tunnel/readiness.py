"""Asking a running cloudflared how it is: `/ready` says whether it is connected, and no other page does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Final

ADDRESS: Final = "127.0.0.1"
ASK_S: Final = 2.0
MAX_BYTES: Final = 64 << 10
OK: Final = 200


def free_port() -> int:
    """A port of loopback that nobody has just now; who takes it first has it, and a program that lost ends."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind((ADDRESS, 0))
        return int(sock.getsockname()[1])


async def is_ready(port: int) -> bool:
    """Whether it is connected to the provider's edge."""
    return (await _get(port, "/ready"))[0] == OK


async def is_managed_elsewhere(port: int) -> bool:
    """Whether its rules have come from the provider instead of us: those have a version from 0 on."""
    status, body = await _get(port, "/config")
    with contextlib.suppress(ValueError):
        plain = json.loads(body) if status == OK else None
        version = plain.get("version") if isinstance(plain, dict) else None
        return isinstance(version, int) and version >= 0
    return False


async def _get(port: int, path: str) -> tuple[int, bytes]:
    """(status, body); (0, b"") when there is no answer in time."""
    try:
        async with asyncio.timeout(ASK_S):
            reader, writer = await asyncio.open_connection(ADDRESS, port)
            try:
                writer.write(f"GET {path} HTTP/1.0\r\nHost: {ADDRESS}:{port}\r\nConnection: close\r\n\r\n".encode())
                said = await _whole(reader)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError):
        return 0, b""
    head, _, body = said.partition(b"\r\n\r\n")
    words = head.split(b"\r\n", 1)[0].split(b" ")
    known = len(words) > 1 and words[0].startswith(b"HTTP/") and words[1].isdigit()
    return (int(words[1]), body) if known else (0, b"")


async def _whole(reader: asyncio.StreamReader) -> bytes:
    said = b""
    while len(said) <= MAX_BYTES and (chunk := await reader.read(MAX_BYTES)):
        said += chunk
    return said
