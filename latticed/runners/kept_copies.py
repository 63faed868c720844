"""Sealed copies of artifacts, kept for the next start of their plugin (architecture, decision 3).

A restart then reads no byte of the artifact: manifest, signature and policy are judged again, the bytes are those that
were hashed in this memory, which the kernel lets nobody change. The memory counts as the daemon's (memfd_create(2)).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from latticed.kit.tasks import in_thread
from latticed.sandbox import artifact
from latticed.sandbox.artifact import SealedCopy

if TYPE_CHECKING:
    from latticed.bundle.read import BundleDirectory

LEAST_BYTES: Final = 256 << 10
"""Size of the smallest artifact that is kept: less is copied and hashed in a fraction of a millisecond, not worth a
descriptor for each of thousands of scripts.
"""
MOST: Final = 1_024
"""How many are kept, for the same reason, however many bytes are allowed."""


class KeptCopies:
    """At most `most_bytes` of sealed copies, by the identity of their pair; for the event loop.

    The ones that were started from longest ago make way. `release` as soon as the plugin is not wanted any more.
    """

    def __init__(self, most_bytes: int = 0) -> None:
        self._most_bytes = most_bytes
        self._kept: dict[str, SealedCopy] = {}  # the one that was started from last comes last
        self.bytes = 0
        """How many bytes are kept now."""

    def allow(self, most_bytes: int) -> None:
        """Keep at most `most_bytes` from now on; what is too much is let go at once."""
        self._most_bytes = most_bytes
        self._make_way()

    async def sealed(self, identity: str, pair: BundleDirectory, *, sha256: str) -> SealedCopy:
        """The artifact of the stored `pair`, whose SHA-256 is `sha256` (lowercase hex), in sealed memory.

        The kept one, unless the stored file is another than that it was copied from; then, and when none is kept, it is
        copied and hashed now, and kept. The caller closes the copy that it gets. Problem and BundleRefused as
        `sandbox.artifact.seal`.
        """
        lent = self._lend(identity, sha256)
        begun = False

        def found() -> SealedCopy:
            nonlocal begun
            begun = True
            if lent is not None:
                try:
                    # Its own seals say that nothing wrote to it; the stamp, that nothing did to the stored file, which
                    # else is read and refused as at any other start.
                    if lent.is_as_sealed() and lent.copied_from == pair.artifact_stamp():
                        return lent
                except BaseException:
                    lent.close()
                    raise
                lent.close()
            return artifact.seal(pair, sha256=sha256)

        try:
            copy = await in_thread(found, SealedCopy.let_go)
        except BaseException:
            if lent is not None and not begun:  # the system has no thread to give
                lent.let_go()
            raise
        # No await from here on: whoever stopped the plugin meanwhile has cancelled this, or calls `release` after it.
        if copy is lent:
            if identity in self._kept:
                self._kept[identity] = self._kept.pop(identity)
            return copy
        self._keep(identity, copy)
        return copy

    def release(self, identity: str) -> None:
        """Let go of the copy of this identity, if one is kept. Children that run it have their own descriptors."""
        if (copy := self._kept.pop(identity, None)) is not None:
            self.bytes -= copy.size
            copy.let_go()

    def close(self) -> None:
        """Let go of all."""
        for identity in list(self._kept):
            self.release(identity)

    def _lend(self, identity: str, sha256: str) -> SealedCopy | None:
        """What is kept of this pair, under a descriptor of its own: the kept one may be released meanwhile."""
        kept = self._kept.get(identity)
        if kept is None or kept.sha256 != sha256:
            return None
        # Its child may have taken the permission away; with no descriptor left, copying fails with the reason.
        with contextlib.suppress(OSError):
            return kept.again()
        return None

    def _keep(self, identity: str, copy: SealedCopy) -> None:
        """Keep what `copy` refers to, with a descriptor of its own, if it is allowed and worth it."""
        self.release(identity)
        if not LEAST_BYTES <= copy.size <= self._most_bytes:
            return
        with contextlib.suppress(OSError):  # no descriptor left: the next start copies it again
            self._kept[identity] = copy.again()
            self.bytes += copy.size
            self._make_way()

    def _make_way(self) -> None:
        """Let go of the oldest until the bounds hold."""
        while self._kept and (self.bytes > self._most_bytes or len(self._kept) > MOST):
            self.release(next(iter(self._kept)))
