"""The daemon's side of the root helper's socket: one request and its answer (`plans.protocol`).

The helper checks the daemon as a peer and decides by itself; the daemon checks that the peer is root before it sends,
since offers carry values of secrets.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

from latticed.kit import peers
from latticed.kit import text as texts
from latticed.model.errors import Problem
from latticed.plans import protocol

if TYPE_CHECKING:
    from pathlib import Path

    from latticed.plans.protocol import Answer, Request

NOT_RUNNING: Final = "helper_unavailable"
"""Code of the Problem for a helper that does not run, is not root, or whose answer cannot be read."""
LATE: Final = "deadline_exceeded"
"""Code of the Problem for a helper that did not answer in time; it may still carry the request out."""
BUSY_PAUSE_S: Final = 0.2
"""Seconds until a helper that has too much to do is asked again: it has not begun with what it refused."""
_HINT: Final = "systemctl start latticed-apply, or run latticed-apply as root"


class HelperRefusal(Problem):
    """The helper refused or failed; `code` is one of `protocol.CODES`.

    All texts come from root's process, but may repeat what a plugin sent: they are escaped here.
    """

    def __init__(self, answer: protocol.ErrorAnswer) -> None:
        found = "; ".join(_shown(one) for one in answer.findings)
        message = texts.sanitise(answer.message, 500)
        super().__init__(
            answer.code if answer.code in protocol.CODES else "internal",
            texts.clip(f"{message}: {found}" if found else message, 2_000),
            texts.sanitise(answer.hint, 300),
        )


class ApplyHelper:
    """Asks the root helper that listens at `path`; a connection for each request.

    `uid`: the user that it must run as; 0, but for tests of this class.
    """

    def __init__(self, path: Path, *, uid: int = 0) -> None:
        self.path = path
        self._uid = uid

    async def ask(self, request: Request, *, within_s: float) -> Answer:
        """The answer to `request`, of the type that `protocol.ANSWERS` names for it.

        HelperRefusal for an ErrorAnswer. Problems: NOT_RUNNING, LATE after `within_s` seconds, too_large. An Observe is
        sent again while the helper is `busy`, which is said in the end: nothing was carried out. Requests that change
        something are repeated by their callers.
        """
        # In a thread: an intent of 256 KiB, or a page of steps, would hold the loop up for tens of milliseconds.
        line = await asyncio.to_thread(protocol.encode, request)
        loop = asyncio.get_running_loop()
        until = loop.time() + within_s
        busy: HelperRefusal | None = None
        while True:
            try:
                async with asyncio.timeout_at(until):
                    received = await self._exchange(line)
            # Before OSError, of which it is a subclass.
            except TimeoutError as error:
                if busy is not None:
                    raise busy from error
                raise Problem(LATE, f"the root helper did not answer within {within_s:g} s") from error
            # No socket, no listener, or the helper ended before it answered.
            except (OSError, asyncio.IncompleteReadError) as error:
                raise Problem(NOT_RUNNING, "the root helper is not running", _HINT) from error
            # LimitOverrunError: an answer longer than any of the helper's.
            except (asyncio.LimitOverrunError, ValueError) as error:
                raise _unreadable() from error
            try:
                answer = await asyncio.to_thread(protocol.decode_answer, received, request)
            except Problem as problem:
                raise _unreadable() from problem
            if not isinstance(answer, protocol.ErrorAnswer):
                return answer
            busy = HelperRefusal(answer)
            again = answer.code == "busy" and isinstance(request, protocol.Observe)
            if not again or loop.time() + BUSY_PAUSE_S >= until:
                raise busy
            await asyncio.sleep(BUSY_PAUSE_S)

    async def _exchange(self, line: bytes) -> bytes:
        """One line for one line, once the peer is root."""
        reader, writer = await asyncio.open_unix_connection(os.fspath(self.path), limit=protocol.MAX_ANSWER_BYTES)
        try:
            uid = peers.of(writer.get_extra_info("socket")).uid
            if uid != self._uid:
                raise Problem(NOT_RUNNING, f"what listens as the root helper is uid {uid}, nothing was sent", _HINT)
            writer.write(line)
            await writer.drain()
            return await reader.readuntil(b"\n")
        finally:
            # Not close(), which waits until a helper that does not read has taken what is buffered.
            writer.transport.abort()


def _unreadable() -> Problem:
    return Problem(NOT_RUNNING, "the root helper gave an answer that cannot be read", "are both of one version?")


def _shown(finding: protocol.Finding) -> str:
    """`rules[3].ports: expected at most 1024 ports, found 2000`."""
    words = f"{finding.path}: expected {finding.expected}, found {finding.found}"
    return texts.sanitise(words, 300)
