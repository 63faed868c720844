"""The end of a program's output, bounded in size. Reading is rate limited, so that a flood blocks its writer."""

from __future__ import annotations

import asyncio
from typing import Final

from latticed.kit import text
from latticed.kit.token_bucket import ByteBucket, Rate

# The lasting rate, and what may come at once, in bytes; why it is bounded: `kit.token_bucket.ByteBucket`.
RATE: Final = Rate(per_second=1 << 20, burst=4 << 20)


class LastOutput(asyncio.Protocol):
    """The protocol of a pipe's reading end that keeps the newest `most` bytes; `total` counts all.

    Beyond RATE reading pauses, so that writers block. Use one for each stream of each start.
    """

    def __init__(self, most: int) -> None:
        self.total = 0
        self._most = most
        self._kept = bytearray()
        self._allowance = ByteBucket(RATE)
        self._transport: asyncio.ReadTransport | None = None
        self._later: asyncio.TimerHandle | None = None

    @property
    def truncated(self) -> bool:
        """Whether the beginning is missing from `shown`."""
        # Escaping makes text longer than its bytes, so `shown` may cut what `data` still has.
        return self.total > self._most or len(shown(self.data())) > self._most

    def data(self) -> bytes:
        """What is kept, at most `most` bytes, oldest first."""
        return bytes(self._kept[-self._most :])

    def shown(self) -> str:
        """`data` as text of at most `most` characters; control characters but newline and tab are escaped."""
        # Cut again: each escaped byte becomes several characters, and rows of the ledger are sized by `most`.
        return shown(self.data())[-self._most :]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop, as the next two (asyncio.Protocol)."""
        assert isinstance(transport, asyncio.ReadTransport)  # noqa: S101 - for the type
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.total += len(data)
        # At most twice `most` in memory, and never more of one read than is kept.
        self._kept += data[-self._most :]
        if len(self._kept) >= 2 * self._most:  # not at each write: deleting at the front copies the rest
            del self._kept[: -self._most]
        self._slow_down(len(data))

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._transport = None
        # The loop would otherwise hold this object, with its buffer, until the timer fires.
        if self._later is not None:
            self._later.cancel()

    def _slow_down(self, size: int) -> None:
        """Pause reading for as long as RATE asks for after `size` more bytes."""
        loop = asyncio.get_running_loop()
        self._allowance.spend(size, loop.time())
        if self._allowance.pause_s and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
            self._later = loop.call_later(self._allowance.pause_s, self._go_on)

    def _go_on(self) -> None:
        """Go on reading after a pause; does nothing if the pipe was closed meanwhile."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()


def shown(data: bytes) -> str:
    """Output as text that is safe to show: control characters escaped."""
    lines = data.decode("utf-8", "backslashreplace").replace("\r\n", "\n").split("\n")
    # Newline and tab are taken out before escaping, as `text.escape` would escape them, too.
    return "\n".join("\t".join(text.escape(part) for part in line.split("\t")) for line in lines)


def last_words(data: bytes, limit: int = 200) -> str:
    """The last line that is not blank, as "; it said last: …" to be appended to a message; empty when there is none.
    Escaped, at most `limit` characters of it.
    """
    lines = [line.strip() for line in data.decode("utf-8", "backslashreplace").splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    return f"; it said last: {text.sanitise(last, limit)}" if last else ""
