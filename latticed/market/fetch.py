"""Fetches one file of a source to disk: bounded in size and time, hashed while it comes, through the egress guard."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from latticed.host.call import HostError
from latticed.host.egress import headers
from latticed.host.egress import url as urls
from latticed.host.egress.client import EgressClient, EgressLimits
from latticed.host.egress.guard import Guard
from latticed.host.egress.redirects import EgressRequest
from latticed.kit import files
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.host.egress.client import EgressAnswer, Sink
    from latticed.market.sources import MarketSource

_PIECE_BYTES: Final = 256 << 10
_CODES: Final = {"egress_blocked": "fetch_blocked", "too_large": "fetch_too_large", "bad_params": "fetch_blocked"}
"""By the code of a HostError; any other becomes fetch_failed."""
_MISSING: Final = frozenset({403, 404})
"""Object stores answer 403 for what they do not have to those who may not list it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A file that is on disk: its SHA-256 (lowercase hex) and its size in bytes."""

    sha256: str
    size: int


@dataclass(slots=True)
class FetchProgress:
    """What is fetched now, for who looks; `size` bytes are here."""

    what: str = ""
    size: int = 0


class Fetcher:
    """Fetches files of sources. `limit_s`: seconds for one file, redirects and look-ups included.

    Nothing is resumed: each fetch begins with nothing, so no file is ever made of two.
    """

    def __init__(self, limit_s: Callable[[], float]) -> None:
        self._limit_s = limit_s

    async def fetch(
        self,
        source: MarketSource,
        url: str,
        to: Path,
        *,
        max_bytes: int,
        progress: FetchProgress | None = None,
        what: str = "",
    ) -> Fetched:
        """Write the new file `to` (0600) with what is at `url`, synced. `what`: the file's name, if not the URL's last.

        Problems fetch_blocked, fetch_too_large, fetch_missing, fetch_failed, store_unavailable; then there is no `to`.
        """
        if fault := source.url_fault(url):
            raise Problem("fetch_blocked", fault)
        progress = progress or FetchProgress()
        progress.what, progress.size = what or url.rpartition("/")[2], 0
        try:
            fd = await asyncio.to_thread(os.open, to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise not_written(error) from error
        taken = FileCopy(fd, progress)
        try:
            if url.startswith("file:"):
                await asyncio.to_thread(_copy, source, url, taken.write, max_bytes, time.monotonic() + self._limit_s())
            else:
                await self._get(source, url, taken, max_bytes)
            await asyncio.to_thread(taken.sync)
        except BaseException as error:
            await asyncio.to_thread(to.unlink, missing_ok=True)
            if (problem := _problem(error, progress.what)) is not None:
                raise problem from error
            raise
        finally:
            # In its turn behind a piece that is being written: a descriptor that is closed may be another file's next.
            await asyncio.to_thread(taken.close)
        return Fetched(sha256=taken.hash.hexdigest(), size=progress.size)

    async def _get(self, source: MarketSource, url: str, taken: FileCopy, max_bytes: int) -> None:
        """Over HTTPS. HostError; Problems fetch_missing, and fetch_failed for an answer other than 200."""
        answer = await self._send(source, url, taken.piece, max_bytes)
        if answer.status in _MISSING:
            raise _missing(f"found status {answer.status} at {answer.target.shown}", url)
        _check_status(answer)

    async def small(self, source: MarketSource, url: str, *, max_bytes: int) -> bytes | None:
        """What is at `url`, None for nothing; Problems as `fetch`."""
        if fault := source.url_fault(url):
            raise Problem("fetch_blocked", fault)
        found = bytearray()

        async def into(piece: bytes) -> None:
            found.extend(piece)

        try:
            if url.startswith("file:"):
                until_s = time.monotonic() + self._limit_s()
                await asyncio.to_thread(_copy, source, url, found.extend, max_bytes, until_s)
            else:
                answer = await self._send(source, url, into, max_bytes)
                if answer.status in _MISSING:
                    return None
                _check_status(answer)
        except Problem as problem:
            if problem.code == "fetch_missing":
                return None
            raise
        except (HostError, OSError) as error:
            raise _problem(error, url.rpartition("/")[2][:80]) or error from error
        return bytes(found)

    async def _send(self, source: MarketSource, url: str, into: Sink, max_bytes: int) -> EgressAnswer:
        """The answer, whose body went `into`. HostError."""
        request = EgressRequest(method="GET", target=urls.parse(url), header=headers.checked({}))
        limits = EgressLimits(body_bytes=max_bytes, total_s=self._limit_s())
        async with EgressClient(Guard()) as client:
            return await client.send(request, source.rights(url), limits=limits, into=into)


class FileCopy:
    """Writes and hashes a file piece by piece, off the event loop."""

    def __init__(self, fd: int, progress: FetchProgress) -> None:
        self._fd = fd
        self._progress = progress
        self._lock = threading.Lock()
        self.hash = hashlib.sha256()

    async def piece(self, data: bytes) -> None:
        """Write the next piece. Problem store_unavailable: an OSError would look like one of the connection."""
        try:
            await asyncio.to_thread(self.write, data)
        except OSError as error:
            raise not_written(error) from error

    def write(self, data: bytes) -> None:
        """Blocks; a piece that comes after `close` goes nowhere."""
        with self._lock:
            if self._fd >= 0:
                files.write_all(self._fd, data)
                self.hash.update(data)
                self._progress.size += len(data)

    def sync(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        with self._lock:
            os.close(self._fd)
            self._fd = -1


def _copy(source: MarketSource, url: str, write: Callable[[bytes], object], max_bytes: int, until_s: float) -> None:
    """Give `write` a file beneath the directory of a file: source piece by piece; blocks. Links in it are not followed.

    `until_s`, of the monotonic clock: TimeoutError when it is not whole by then.
    """
    base = Path(unquote(source.base.removeprefix("file://")))
    *steps, name = unquote(url.removeprefix(source.base)).split("/")
    try:
        fd = files.open_directory(base)
        for step in steps:
            with files.closing(fd) as above:
                fd = files.open_directory(step, beneath=above)
        with files.closing(fd) as above:
            file = files.open_file(name, beneath=above)
    except FileNotFoundError as error:
        raise _missing("found none beneath the source", url) from error
    except (OSError, ValueError) as error:
        raise Problem("fetch_failed", f"cannot open {name[:80]!r}: {_words(error)}") from error
    with files.closing(file):
        size = 0
        while data := os.read(file, _PIECE_BYTES):
            size += len(data)
            if size > max_bytes:
                raise Problem("fetch_too_large", f"expected at most {max_bytes} bytes, found more")
            if time.monotonic() > until_s:
                raise TimeoutError
            write(data)


def _missing(found: str, url: str) -> Problem:
    return Problem("fetch_missing", f"expected {url.rpartition('/')[2][:80]}, {found}")


def _check_status(answer: EgressAnswer) -> None:
    """Problem fetch_failed for an answer other than 200."""
    if answer.status != 200:
        raise Problem("fetch_failed", f"expected status 200 of {answer.target.shown}, found {answer.status}")


def _problem(error: BaseException, what: str) -> Problem | None:
    """What an error of a fetch means; None for those that mean something else."""
    match error:
        case HostError():
            return Problem(_CODES.get(error.code.value, "fetch_failed"), error.reason)
        case TimeoutError():
            return Problem("fetch_failed", f"expected {what} in time, found it still coming")
        case OSError():
            return not_written(error)
    return None


def _words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def not_written(error: OSError) -> Problem:
    """The disk did not take it."""
    detail = f"expected to write what is taken, found: {_words(error)}"
    return Problem("store_unavailable", detail, "free some space in the state directory")
