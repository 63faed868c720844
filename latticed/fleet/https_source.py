"""A bundle from an https server, for a fleet whose bundles are not in the message system.

URL and digest come with an assignment, so from a controller, and neither it nor the server is believed anything: a URL
may be none, and a server give less, more or something else, and take its time. Which servers are asked at all is for
the host's own settings: otherwise whoever has a controller could ask any of the host's network, from within.
"""

from __future__ import annotations

import re
import urllib.parse
from typing import TYPE_CHECKING, Final

from latticed.fleet.engine import CHUNK_BYTES
from latticed.fleet.spool import NotFetched
from latticed.kit import tasks, text

if TYPE_CHECKING:
    import ssl
    from collections.abc import Collection

    from latticed.fleet.spool import Partial, Spool

_SILENCE_S: Final = 30
"""Without a byte for so long, a server is given up."""
_WHOLE_S: Final = 1_800
_RANGE: Final = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", re.ASCII)


def is_named(url: str, hosts: Collection[str]) -> bool:
    """Whether the server of a URL is one of `hosts`: each a name or address, with `:port` unless that is 443."""
    return server_of(url) in {one.lower() for one in hosts}


def server_of(url: str) -> str:
    """The server of a URL as `is_named` compares it; empty for none."""
    try:
        return urllib.parse.urlsplit(url).netloc.lower()
    except ValueError:
        return ""


async def fetch(url: str, spool: Spool, sha256: str, *, tls: ssl.SSLContext | None = None) -> None:
    """Have the bundle with this digest whole in the spool, from where an earlier try ended.

    `tls` is whom to trust instead of the system's authorities. NotFetched, after which what came is kept unless it is
    another bundle, too large, or does not fit on the disk; OSError of the spool.
    """
    if not url.startswith("https://"):
        raise NotFetched(f"expected a URL of https, found {text.sanitise(url, 80)}")
    if await tasks.in_thread(lambda: spool.has(sha256)):
        return
    partial = await tasks.in_thread(lambda: spool.begin(sha256), undo=lambda one: one.close())
    with partial:
        await _received(url, partial, tls)
        await tasks.in_thread(partial.finish)


async def _received(url: str, partial: Partial, tls: ssl.SSLContext | None) -> None:
    """Write what the server has behind what there is."""
    import aiohttp  # 10 MiB, for those who need it

    limits = aiohttp.ClientTimeout(total=_WHOLE_S, sock_connect=_SILENCE_S, sock_read=_SILENCE_S)
    headers = {"Accept-Encoding": "identity"}
    if partial.size:
        headers["Range"] = f"bytes={partial.size}-"
    try:
        async with (
            aiohttp.ClientSession(timeout=limits, auto_decompress=False, trust_env=False) as session,
            session.get(url, headers=headers, ssl=tls or True, allow_redirects=False) as answer,
        ):
            if answer.status == 200:  # the whole, whether or not the rest was asked for
                await tasks.in_thread(partial.restart)
            elif answer.status == 416 and partial.size:
                await tasks.in_thread(lambda: partial.give_up("expected the rest of it, found no more on the server"))
            elif answer.status != 206 or not _continues(answer.headers.get("Content-Range", ""), partial.size):
                raise NotFetched(f"expected status 200 or 206 of an https server, found {answer.status}")
            async for data in answer.content.iter_chunked(CHUNK_BYTES):
                await tasks.in_thread(lambda: partial.write(data))  # noqa: B023 - it is done before the next
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:  # the last: a host's name that is none
        raise NotFetched(text.sanitise(str(error) or "the server was silent for too long", 200)) from error


def _continues(content_range: str, size: int) -> bool:
    found = _RANGE.fullmatch(content_range)
    return found is not None and int(found[1]) == size
