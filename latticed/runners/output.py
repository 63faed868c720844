"""Lines that plugins write on stderr: kept in a bounded ring for `latticectl logs` and passed on to the log."""

from __future__ import annotations

import asyncio
import codecs
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from latticed.kit import text
from latticed.kit.clock import rfc3339
from latticed.kit.token_bucket import ByteBucket, Rate
from latticed.kit.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.kit.clock import Clock

RING_BYTES: Final = 256 << 10
"""What is kept of one plugin's lines, in characters and `_ROW_BYTES` for each; the oldest go first."""
LINE_CHARACTERS: Final = 8_192
"""The longest line that is kept; what is beyond it is cut off."""
LAST_WORDS_CHARACTERS: Final = 200
"""How much of the last line is quoted in the message about a child's end."""
RATE: Final = Rate(per_second=64 << 10, burst=1 << 20)
"""How much of an instance's stderr is read: bytes a second on average, and bytes at once after a pause."""
RATE_OF_CALLS: Final = Rate(per_second=64 << 10, burst=4 << 20)
"""How much of the stderr of all invocations of a plugin is kept, with `_ROW_BYTES` for each line: health checks alone
could fill the log otherwise. At once it is four times what one invocation may write, so that its usual lines fit.
"""
LINES_A_TURN: Final = 64
"""Lines of one child handled before yielding to the event loop: a pipe holds tens of thousands of short ones."""
_ROW_BYTES: Final = 100  # what a line costs besides its text
_EMPTY_BYTES: Final = 16  # what an empty one does, which is no entry but takes time


class OutputLine(Value, frozen=True, kw_only=True):
    """One line: `seq` is its number in the ring, `at` in microseconds since the epoch, `stream` is `stderr`, `log` or
    `daemon`.
    """

    seq: int
    at: int
    stream: str
    text: str


class Ring:
    """The newest lines of one plugin, RING_BYTES of them.

    Sequence numbers start at `first`, a time in microseconds: a number that a client kept from before a restart of the
    daemon is below all new ones, so no new line is taken for already seen.
    """

    def __init__(self, first: int) -> None:
        self.lines: deque[OutputLine] = deque()
        self.seq = first
        self._bytes = 0
        self._waiting: list[asyncio.Future[None]] = []

    def add(self, at: int, stream: str, line: str) -> None:
        """Add a line, which is safe to show already, and wake all who wait in `more`. `at`: microseconds since the
        epoch.
        """
        self.seq += 1
        self.lines.append(OutputLine(seq=self.seq, at=at, stream=stream, text=line))
        self._bytes += len(line) + _ROW_BYTES
        while self._bytes > RING_BYTES and len(self.lines) > 1:
            self._bytes -= len(self.lines.popleft().text) + _ROW_BYTES
        waiting, self._waiting = self._waiting, []  # each waits for one line; it asks again if it wants more
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def since(self, seq: int) -> list[OutputLine]:
        """The lines whose number is greater than `seq`."""
        return [line for line in self.lines if line.seq > seq]

    async def more(self) -> None:
        """Wait until another line is kept. Lines that are there already do not count: see `since`."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)


class Outputs:
    """The rings of all plugins. `log_line(plugin_id, line)` passes a line of stderr on to the daemon's log.

    A ring exists from its plugin's first line until `forget`, whether the plugin runs or not.
    """

    def __init__(self, clock: Clock, log_line: Callable[[str, str], None]) -> None:
        self._clock = clock
        self._log_line = log_line
        self._rings: dict[str, Ring] = {}
        self._calls: dict[str, ByteBucket] = {}

    def ring(self, plugin_id: str) -> Ring:
        """The ring of a plugin, created at the first use."""
        if plugin_id not in self._rings:
            self._rings[plugin_id] = Ring(self._clock.wall_us())
        return self._rings[plugin_id]

    def forget(self, plugin_id: str) -> None:
        """Drop a plugin's ring, with its lines."""
        self._rings.pop(plugin_id, None)
        self._calls.pop(plugin_id, None)

    def say(self, plugin_id: str, stream: str, line: str) -> None:
        """Keep a line of another stream: `log` (log.write) or `daemon` (the daemon's own remarks)."""
        self.ring(plugin_id).add(self._clock.wall_us(), stream, text.sanitise(line, LINE_CHARACTERS))

    def heard(self, plugin_id: str, line: str) -> None:
        """Keep a line of stderr, which is safe to show already, and pass it on to the daemon's log."""
        self.ring(plugin_id).add(self._clock.wall_us(), "stderr", line)
        self._log_line(plugin_id, line)

    def stderr(self, plugin_id: str) -> Stderr:
        """A protocol that reads the stderr of a running instance; reading pauses while it writes faster than RATE
        allows.
        """
        return Stderr(self, plugin_id, whole_bytes=None)

    def stderr_of_call(self, plugin_id: str, *, whole_bytes: int) -> Stderr:
        """A protocol that reads the stderr of one invocation; what is beyond `whole_bytes`, or beyond RATE_OF_CALLS for
        all invocations of the plugin, is dropped with a warning.
        """
        return Stderr(self, plugin_id, whole_bytes=whole_bytes)

    def of_calls(self, plugin_id: str) -> ByteBucket:
        """What all invocations of a plugin may write, as far as it is left."""
        return self._calls.setdefault(plugin_id, ByteBucket(RATE_OF_CALLS))


class Stderr(asyncio.Protocol):
    """Cuts the stderr of a child into lines, makes them safe to show and passes them on. `last` is its newest line.

    With `whole_bytes` None it is read only as fast as RATE allows, so that the plugin blocks; otherwise all is read,
    and only the first lines are kept that fit in `whole_bytes` and that RATE_OF_CALLS allows. Lines are cut at
    LINE_CHARACTERS bytes.
    """

    def __init__(self, outputs: Outputs, plugin_id: str, *, whole_bytes: int | None) -> None:
        self.last = ""
        self._outputs = outputs
        self._plugin_id = plugin_id
        self._whole_bytes = whole_bytes
        self._left_bytes = whole_bytes or 0
        self._over = False  # what comes now is dropped, but for its last line
        self._held = b""  # what came and is not cut into lines yet
        self._rest = bytearray()  # the beginning of the current line
        self._cut = False  # the current line was longer than it may be
        self._allowance = ByteBucket(RATE) if whole_bytes is None else outputs.of_calls(plugin_id)
        self._transport: asyncio.ReadTransport | None = None
        self._later: asyncio.Handle | None = None
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.ReadTransport)  # noqa: S101 - for the type
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        # Short lines cost more than their bytes: each is an entry of the ring and of the log.
        if self._whole_bytes is None:
            self._allowance.spend(len(data) + _ROW_BYTES * data.count(b"\n"), asyncio.get_running_loop().time())
        if self._over:
            self._drop(data)
        else:
            self._held += data
        self._turn()

    def connection_lost(self, exc: Exception | None) -> None:
        """Keep at most LINES_A_TURN of the lines still buffered, and drop the rest."""
        del exc
        self._transport = None
        # No more than in any turn: a child may end with tens of thousands of lines in its pipe.
        self._take_some()
        if self._later is not None:
            self._later.cancel()
        if self._rest and not self._over:
            self._line()

    @property
    def waits(self) -> bool:
        """Whether reading pauses now, because more came than RATE allows: the plugin may be waiting for it."""
        return self._paused

    def words(self) -> str:
        """The last line, as the end of a sentence about how the child ended; empty when there is none."""
        last = text.clip(self._shown() or self.last, LAST_WORDS_CHARACTERS)
        return f"; it said last: {last}" if last else ""

    def _turn(self) -> None:
        """Handle some lines and schedule the rest; reading is paused until then, so that the plugin blocks."""
        done = self._take_some()
        if self._transport is None or self._transport.is_closing():
            return
        loop = asyncio.get_running_loop()
        # Three cases: lines are left, and are handled next; the rate is exceeded, so reading waits until the allowance
        # has refilled; or reading goes on at once.
        if not done:
            self._transport.pause_reading()
            self._later = loop.call_soon(self._turn)
        elif self._allowance.pause_s:
            self._transport.pause_reading()
            self._paused = True
            self._later = loop.call_later(self._allowance.pause_s, self._go_on)
        else:
            self._transport.resume_reading()

    def _take_some(self) -> bool:
        """Handle buffered lines until none is left (True) or it is time to yield to the event loop (False)."""
        start = 0
        for _ in range(LINES_A_TURN):
            end = self._held.find(b"\n", start)
            if not self._fits(len(self._held) - start if end == -1 else end + 1 - start):
                self._give_up(f"more than {self._whole_bytes} bytes on stderr in one invocation")
                self._drop(self._held[start:])
                self._held = b""
                return True
            if end == -1:
                self._put(self._held[start:])
                self._held = b""
                return True
            self._put(self._held[start:end])
            start = end + 1
            if not self._line():
                self._drop(self._held[start:])
                self._held = b""
                return True
        self._held = self._held[start:]
        return not self._held

    def _fits(self, count: int) -> bool:
        """Whether `count` more bytes are within the invocation's limit, from which they are taken."""
        self._left_bytes -= count
        return self._whole_bytes is None or self._left_bytes >= 0

    def _put(self, piece: bytes) -> None:
        """Append a piece to the current line, cut at the longest line."""
        room = LINE_CHARACTERS - len(self._rest)
        self._rest += piece[:room]
        self._cut = self._cut or len(piece) > room

    def _shown(self) -> str:
        """The current line as far as it is there, safe to show; an ellipsis at its end says that it was cut."""
        # Where it was cut, half a character may be left, which is left out.
        line, _ = codecs.utf_8_decode(self._rest, "backslashreplace", not self._cut)
        return text.sanitise(line + "…" if self._cut else line, LINE_CHARACTERS)

    def _end(self) -> str:
        """The current line, which is complete: the next one begins."""
        line = self._shown()
        self._rest.clear()
        self._cut = False
        if line:
            self.last = line
        return line

    def _line(self) -> bool:
        """The current line is complete: pass it on, unless it is empty. False when RATE_OF_CALLS does not allow it."""
        line = self._end()
        if self._whole_bytes is not None:
            cost = len(line) + _ROW_BYTES if line else _EMPTY_BYTES
            if not self._allowance.take(cost, asyncio.get_running_loop().time()):
                self._give_up("more on stderr than is kept of all invocations of a plugin")
                return False
        if line:
            self._outputs.heard(self._plugin_id, line)
        return True

    def _give_up(self, why: str) -> None:
        """Drop what comes from now on, with one warning."""
        if not self._over:
            self._over = True
            self._outputs.say(self._plugin_id, "daemon", f"{why}: the rest is not kept")

    def _drop(self, data: bytes) -> None:
        """Keep nothing of `data` but its last line, which may tell why a process ended (`words`)."""
        ended, newline, begun = data.rpartition(b"\n")
        if newline:
            first, _, others = ended.partition(b"\n")
            for line in (first, others.rstrip(b"\n").rpartition(b"\n")[2]):
                self._put(line)
                self._end()
        self._put(begun)

    def _go_on(self) -> None:
        """Read again, once the allowance has refilled; nothing if the pipe was closed meanwhile."""
        self._paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()


def as_row(line: OutputLine) -> Any:
    """The line as in API answers: `seq`, `at` as RFC 3339, `stream`, `text`."""
    return {"seq": line.seq, "at": rfc3339(line.at), "stream": line.stream, "text": line.text}
