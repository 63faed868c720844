"""Bundles' files as a controller keeps them: received, hashed, and what their manifest says of them.

Nothing of it is believed: a host judges each bundle itself. What the manifest says is for choosing which file goes with
which plugin of an intent.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import re
from typing import TYPE_CHECKING, Final

from latticed.bundle import decode
from latticed.bundle.refusal import MANIFEST, BundleRefused
from latticed.fleet.controller.assigning import KeptBundle
from latticed.kit import files, tar, tasks
from latticed.model.errors import Problem
from latticed.trust import payload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator
    from pathlib import Path

_HALF: Final = re.compile(r"\.[0-9a-f]{64}\.[0-9a-f]{12}")
_MANIFEST_BYTES: Final = 1 << 20
_HOW: Final = "make it by: tar -cf NAME.tar -C BUNDLE manifest.json artifact"
_AGAIN: Final = "it was altered while it was sent: latticectl fleet roll --bundle sends it again"
_SMALLER: Final = "hosts take no larger one; leave out what the plugin does not need, and sign it anew"
_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Coming:
    """The room for bundles, `most` bytes, as those share it that come at the same time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._arrived: list[list[int]] = []

    @contextlib.contextmanager
    def one(self) -> Iterator[list[int]]:
        """One bundle that comes, and is kept when the block ends."""
        arrived = [0]
        self._arrived.append(arrived)
        try:
            yield arrived
        finally:
            self._arrived[:] = [one for one in self._arrived if one is not arrived]

    async def within(
        self, body: AsyncIterator[bytes], arrived: list[int], *, kept: Callable[[], int]
    ) -> AsyncIterator[bytes]:
        """`body`, as long as there is room for it beside those that are `kept` and all that come; Problem
        quota_exceeded.
        """
        self._check(kept() + 1)
        async for data in body:
            arrived[0] += len(data)
            self._check(kept())
            yield data

    def _check(self, kept: int) -> None:
        if kept + sum(one for (one,) in self._arrived) > self._most:
            reason = f"expected room for one more bundle, found {kept} bytes of bundles kept, and others that come"
            raise Problem("quota_exceeded", reason, "[engine] bundles_bytes in the settings is how many there may be")


async def received(directory: Path, sha256: str, body: AsyncIterator[bytes], *, most: int, now_s: int) -> KeptBundle:
    """Write a bundle's file of at most `most` bytes; Problem too_large, bundle_mismatch, bundle_invalid,
    store_unavailable. Nothing of it is left then.
    """
    fresh = directory / f".{sha256}.{os.urandom(6).hex()}"
    try:
        fd = await tasks.in_thread(lambda: os.open(fresh, _NEW, 0o600), undo=os.close)
        with files.closing(fd):
            digest, size = hashlib.sha256(), 0
            async for data in body:
                size += len(data)
                if size > most:
                    raise Problem("too_large", f"expected a bundle of at most {most} bytes, found more", _SMALLER)
                digest.update(data)
                await tasks.in_thread(lambda: files.write_all(fd, data))  # noqa: B023 - it is done before the next
            if digest.hexdigest() != sha256:
                reason = f"expected a file with SHA-256 {sha256}, found {digest.hexdigest()}"
                raise Problem("bundle_mismatch", reason, _AGAIN)
            await tasks.in_thread(lambda: os.fsync(fd))
            kept = await tasks.in_thread(lambda: _described(fd, sha256, size, now_s))
        await tasks.in_thread(lambda: fresh.rename(directory / f"{sha256}.tar"))
        await tasks.in_thread(lambda: files.sync_directory(directory))
    except OSError as error:
        reason = f"the bundle cannot be written: {error.strerror or error}"
        raise Problem("store_unavailable", reason, "free some space below the state directory") from error
    finally:
        await asyncio.to_thread(fresh.unlink, missing_ok=True)
    return kept


def here(directory: Path, bundles: Iterable[KeptBundle]) -> set[str]:
    """SHA-256 of those whose file is in the directory: a backup has the rows without the files. Blocks."""
    found = set()
    for one in bundles:
        with contextlib.suppress(OSError):
            if (directory / f"{one.sha256}.tar").stat().st_size == one.size:
                found.add(one.sha256)
    return found


def opened(directory: Path) -> None:
    """Make the directory, or remove what a killed process left half received in it. OSError. Blocks."""
    directory.mkdir(mode=0o700, exist_ok=True)
    for path in directory.glob(".*"):
        if _HALF.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _described(fd: int, sha256: str, size: int, now_s: int) -> KeptBundle:
    """What the manifest says; Problem bundle_invalid."""
    os.lseek(fd, 0, os.SEEK_SET)
    try:
        with io.FileIO(fd, closefd=False) as file:
            reader = tar.TarReader(io.BufferedReader(file))
            member = reader.next()
            if member is None or member.name != MANIFEST or member.size > _MANIFEST_BYTES:
                raise tar.BadTar(f"expected {MANIFEST} first, of at most {_MANIFEST_BYTES} bytes")
            raw, manifest = decode.decode(b"".join(reader.chunks()))
            identity = payload.identity(payload.signing_payload(raw, manifest))
    except (tar.BadTar, BundleRefused, ValueError) as error:
        raise Problem("bundle_invalid", f"expected a tar of a bundle, found: {str(error)[:300]}", _HOW) from error
    return KeptBundle(
        sha256=sha256,
        plugin=manifest.id,
        version=manifest.version or "",
        identity=identity,
        publisher=manifest.publisher or "",
        size=size,
        received=now_s,
    )
