"""nats-py's client with what it lacks: a limit on what a server may send, and closing that always ends.

nats-py has to be imported by this module first, which leaves out libraries that latticed does not use of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from latticed.kit import lean_imports

# The first is for WebSockets alone, and takes 10 MiB; the last tells nats-py its own version, for 1 MiB.
with lean_imports.without("aiohttp", "fast_mail_parser", "importlib.metadata"):
    from nats.aio.client import Client
    from nats.errors import Error as NatsError
    from nats.errors import NoServersError, ProtocolError
    from nats.protocol import parser

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

__all__ = ["BoundedClient", "NatsError", "NoServersError", "TooLong", "cancellable", "closed", "over"]
MESSAGE_BYTES: Final = 8 << 20
"""The longest message taken of a server: several times the longest that a fleet has."""
LINE_BYTES: Final = 64 << 10
"""The longest line; INFO with many servers is the longest there is."""
_CLOSE_S: Final = 1.0
_LOOK_S: Final = 5.0  # how often it is looked whether a client is connected still


class TooLong(ProtocolError):
    """A server announced more than is taken, and was hung up on."""

    def __str__(self) -> str:
        return str(self.args[0])


class BoundedClient(Client):
    """A client that hangs up on a server which announces a longer message or line than is taken, and tells `on_error`.

    nats-py has no limit: it keeps all that has come of such a message and looks through it at each piece. That took up
    to a minute of processor time, and ended when the process had no memory left.
    """

    def __init__(self, on_error: Callable[[Exception], Awaitable[None]]) -> None:
        super().__init__()
        self._ps = _BoundedParser(self, on_error)


class _BoundedParser(parser.Parser):
    def __init__(self, client: Client, on_error: Callable[[Exception], Awaitable[None]]) -> None:
        super().__init__(client)
        self._on_error = on_error

    async def parse(self, data: bytes = b"") -> None:
        await super().parse(data)
        # What is left of it is a part of one message or line.
        if self.state == parser.AWAITING_MSG_PAYLOAD:
            what, most, found = "a message", MESSAGE_BYTES, self.needed
        else:
            what, most, found = "a line", LINE_BYTES, len(self.buf)
        if found > most:
            error = TooLong(f"expected {what} of at most {most} bytes, found {found}")
            await self._on_error(error)
            raise error


@contextlib.contextmanager
def cancellable() -> Iterator[None]:
    """For what waits in nats-py, which goes on when it is cancelled while it flushes: whoever cancelled would wait for
    ever.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        yield
    finally:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError


async def over(client: Client, ended: asyncio.Event) -> None:
    """Return once a client has said that it is closed, or is without having said so."""
    while client.is_connected:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                await ended.wait()
                return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_CLOSE_S):
            await ended.wait()


async def closed(client: Client) -> None:
    """Close a client whatever its state; what a broken one raises is of no interest any more."""
    closing = asyncio.ensure_future(client.close())
    closing.add_done_callback(_fetched)
    # After a TLS handshake that failed it waits for ever: asyncio has closed the connection, and told TLS alone. And
    # nats-py takes a cancellation for the end of a flush and waits on: it is left to itself, or nobody connects again.
    try:
        await asyncio.wait({closing}, timeout=_CLOSE_S)
    finally:
        closing.cancel()
        for task in _left_behind(client):
            task.add_done_callback(_fetched)
            task.cancel()
    await asyncio.wait({closing}, timeout=_CLOSE_S)


_OF_CLIENT: Final = ("_reading_task", "_ping_interval_task", "_flusher_task")
_SUBSCRIPTIONS, _OF_SUBSCRIPTION = "_subs", "_wait_for_msgs_task"


def _left_behind(client: Client) -> list[asyncio.Task[None]]:
    """The tasks of a client: it ends none of them where its connection breaks with something left to send."""
    # By nats-py's own attributes (2.16): what became of them is told nowhere else. None where it has others.
    subscribed = [getattr(one, _OF_SUBSCRIPTION, None) for one in getattr(client, _SUBSCRIPTIONS, {}).values()]
    return [one for one in (*(getattr(client, name, None) for name in _OF_CLIENT), *subscribed) if one is not None]


def _fetched(task: asyncio.Future[None]) -> None:
    """Take what a task failed with, which asyncio would else log as an error once nobody knows the task any more."""
    if not task.cancelled():
        task.exception()
