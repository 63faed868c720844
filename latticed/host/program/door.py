"""The daemon's side of a door: sockets of a program's own network, by which the daemon connects and accepts in there.

`sandbox.stub_door` is the other side. Nothing but sockets comes through it: who connects to what is decided here.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections import deque
from typing import TYPE_CHECKING, Final

from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.model.addresses import Address

ANSWER_S: Final = 3.0
"""Seconds that the other side has to make a socket: it may be starved, or stopped by the program."""
MAX_ASKED: Final = 256
"""Sockets asked for and not answered yet."""
_MAX_SOCKETS: Final = 128  # in one message; at most 253 (SCM_MAX_FD in unix(7))


class Door:
    """One door, made before its program starts and closed once it has ended: `theirs` is given to the child.

    `lost` is set when the other side has gone, with the program or without it. Used on the event loop only.
    """

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)
        self.lost = asyncio.Event()
        self._listeners: asyncio.Future[list[socket.socket]] = asyncio.get_running_loop().create_future()
        self._asked: deque[asyncio.Future[socket.socket]] = deque()
        asyncio.get_running_loop().add_reader(self._ours, self._read)

    def started(self) -> None:
        """The child has its end, or has not been started: ours of it is closed, so that `lost` is noticed."""
        self.theirs.close()

    async def listeners(self) -> list[socket.socket]:
        """The listening sockets that were asked for, in their order; the caller closes them. Problem door_lost."""
        return await self._listeners

    async def make(self, address: Address) -> socket.socket:
        """A stream socket for an address of this kind, non-blocking and not connected; the caller closes it.

        Problem door_lost, and busy when too many are asked for.
        """
        if self.lost.is_set():
            raise _lost()
        if len(self._asked) >= MAX_ASKED:
            raise Problem("busy", "too many connections are being made to the service")
        answer: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        try:
            self._ours.send(b"4" if address.version == 4 else b"6")
        except OSError as error:  # BlockingIOError too: it takes nothing any more
            raise _lost() from error
        self._asked.append(answer)
        try:
            async with asyncio.timeout(ANSWER_S):
                return await answer
        except TimeoutError as error:
            raise Problem("door_lost", f"expected a socket of the service's network within {ANSWER_S:g} s") from error

    def close(self) -> None:
        """Close it; who waits for a socket gets Problem door_lost. What was connected or accepted stays open."""
        if self.lost.is_set():
            return
        self.lost.set()
        asyncio.get_running_loop().remove_reader(self._ours)
        self._ours.close()
        self.theirs.close()
        if not self._listeners.done():
            self._listeners.set_exception(_lost())
            self._listeners.exception()  # retrieved: nobody may be waiting
        for answer in self._asked:
            if not answer.done():
                answer.set_exception(_lost())
        self._asked.clear()

    def _read(self) -> None:
        """Take one message of the other side; close the door at its end."""
        try:
            word, fds, _, _ = socket.recv_fds(self._ours, 1, _MAX_SOCKETS, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            word, fds = b"", []
        made = _sockets(fds)
        if word == b"L" and not self._listeners.done():
            self._listeners.set_result(made)
        elif word == b"S" and len(fds) == len(made) == 1 and self._asked:
            self._answer(made[0])
        else:
            for one in made:
                one.close()
            if word == b"F" and self._asked:
                self._answer(None)
            else:
                self.close()

    def _answer(self, made: socket.socket | None) -> None:
        """Give the one that has waited longest its socket; None: none could be made."""
        answer = self._asked.popleft()
        if answer.done():  # cancelled, or too late
            if made is not None:
                made.close()
        elif made is None:
            answer.set_exception(Problem("door_lost", "expected a socket of the service's network, found none free"))
        else:
            answer.set_result(made)


def _sockets(fds: list[int]) -> list[socket.socket]:
    """The stream sockets among these descriptors, non-blocking; others are closed."""
    made = []
    for fd in fds:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            os.close(fd)
            continue
        made.append(socket.socket(fileno=fd))
        made[-1].setblocking(False)
    return made


def _lost() -> Problem:
    return Problem("door_lost", "the way into the service's network is lost")
