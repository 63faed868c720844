"""Memory for messages of plugins that wait to be dealt with: a bound for each plugin, and one for all together.

A plugin beyond its bound is read no further until something of it was dealt with (back-pressure: its pipe fills, and it
waits). So one that asks and never reads the answers holds a few megabytes, however much it would like to send.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

OF_ONE_BYTES: Final = 8 << 20
OF_ALL_BYTES: Final = 256 << 20


class MessageMemory:
    """What all plugins have waiting, in bytes as `lines.weight` estimates them."""

    def __init__(self, *, of_all: int = OF_ALL_BYTES) -> None:
        self._of_all = of_all
        self._bytes = 0
        self._waiting: dict[MessageShare, None] = {}

    def share(self, wake: Callable[[], None], *, of_one: int = OF_ONE_BYTES) -> MessageShare:
        """A plugin's part of it; `wake` is called when there may be room again for one that found none."""
        return MessageShare(self, wake, of_one)

    def add(self, size: int) -> None:
        self._bytes += size

    def must_wait(self, share: MessageShare) -> bool:
        """Whether all together hold too much; `share` is woken when that has changed."""
        if self._bytes < self._of_all:
            return False
        self._waiting[share] = None
        return True

    def remove(self, size: int) -> None:
        self._bytes -= size
        if self._bytes < self._of_all and self._waiting:
            waiting, self._waiting = self._waiting, {}
            for share in waiting:
                share.wake()

    def forget(self, share: MessageShare) -> None:
        self._waiting.pop(share, None)


class MessageShare:
    """What one plugin has waiting."""

    def __init__(self, held: MessageMemory, wake: Callable[[], None], of_one: int) -> None:
        self._held = held
        self._of_one = of_one
        self._bytes = 0
        self.wake = wake

    def add(self, size: int) -> None:
        """A message of this size waits from now on."""
        self._bytes += size
        self._held.add(size)

    def remove(self, size: int) -> None:
        """It was dealt with."""
        self._bytes -= size
        self._held.remove(size)

    def must_wait(self) -> bool:
        """Whether nothing more may be read of this plugin now; one message may always wait, whatever others hold.

        Where all together hold too much, `wake` is called when that has changed.
        """
        return self._bytes >= self._of_one or (self._bytes > 0 and self._held.must_wait(self))

    def close(self) -> None:
        """The conversation is over: nobody is to be woken. What still waits is removed as its work ends."""
        self._held.forget(self)


ALL: Final = MessageMemory()
"""The one of this process."""
