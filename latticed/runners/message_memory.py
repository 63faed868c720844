"""Bounds on the memory of plugins' messages that are not yet handled: one per plugin, and one for all together.

Beyond its bound a plugin's stdout is not read until one of its messages was handled (back-pressure: its pipe fills,
and it blocks). So a plugin that sends calls and never reads the answers takes a few megabytes at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

OF_ONE_BYTES: Final = 8 << 20
"""The bound for one plugin; enough for a few of the largest messages, as `lines.weight` estimates them."""
OF_ALL_BYTES: Final = 256 << 20
"""The bound for all plugins together."""


class MessageMemory:
    """Pending messages of all plugins, in bytes as `lines.weight` estimates them."""

    def __init__(self, *, of_all: int = OF_ALL_BYTES) -> None:
        self._of_all = of_all
        self._bytes = 0
        self._waiting: dict[MessageShare, None] = {}  # in the order in which they will be woken

    def share(self, wake: Callable[[], None], *, of_one: int = OF_ONE_BYTES) -> MessageShare:
        """The share of one plugin; `wake` is called when there may be room again after `must_wait` was True."""
        return MessageShare(self, wake, of_one)

    def add(self, size: int) -> None:
        """Count `size` bytes more; for `MessageShare` alone."""
        self._bytes += size

    def must_wait(self, share: MessageShare) -> bool:
        """Whether the bound for all is exceeded; if so, `share` is woken when there is room again."""
        if self._bytes < self._of_all:
            return False
        self._waiting[share] = None
        return True

    def remove(self, size: int) -> None:
        """Count `size` bytes less, and wake all shares that wait once there is room; for `MessageShare` alone."""
        self._bytes -= size
        if self._bytes < self._of_all and self._waiting:
            waiting, self._waiting = self._waiting, {}  # before waking: a share may have to wait again at once
            for share in waiting:
                share.wake()

    def forget(self, share: MessageShare) -> None:
        """Do not wake `share` any more."""
        self._waiting.pop(share, None)


class MessageShare:
    """Pending messages of one plugin, in bytes; made by `MessageMemory.share`."""

    def __init__(self, held: MessageMemory, wake: Callable[[], None], of_one: int) -> None:
        self._held = held
        self._of_one = of_one
        self._bytes = 0
        self.wake = wake

    def add(self, size: int) -> None:
        """Add a pending message of this size, in bytes."""
        self._bytes += size
        self._held.add(size)

    def remove(self, size: int) -> None:
        """Remove a message that was handled."""
        self._bytes -= size
        self._held.remove(size)

    def must_wait(self) -> bool:
        """Whether reading from this plugin must pause. One message may always be pending, whatever others hold.

        If the bound for all is the reason, `wake` is called when there is room again.
        """
        # A plugin with nothing pending is never made to wait for others: they may not answer for long.
        return self._bytes >= self._of_one or (self._bytes > 0 and self._held.must_wait(self))

    def close(self) -> None:
        """The session is over: its messages take no memory any more, and `wake` is not called again."""
        self._held.forget(self)
        self.remove(self._bytes)


ALL: Final = MessageMemory()
"""The instance that all sessions of the daemon share."""
