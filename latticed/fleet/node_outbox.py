"""What the node has to say to its link, which may take nothing for a while."""

from __future__ import annotations

import collections
import contextlib
import socket
import threading
from typing import Final

from latticed.fleet import messages
from latticed.kit import logs

_WAITING: Final = 256
"""Messages that wait for the link."""

_NEWEST: Final = (messages.NewStatus, messages.BundlesKept)

log = logs.get_logger()


class Outbox:
    """Messages that wait for the link, which may take none for a while: only the thread of `work` waits for it."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._waiting: collections.deque[messages.ToLink] = collections.deque()
        self._changed = threading.Condition()
        self._stopping = False

    def put(self, message: messages.ToLink) -> None:
        """Send it in its turn. Of some the newest is kept; events beyond what fits come again at a later look."""
        with self._changed:
            if isinstance(message, _NEWEST):
                self._waiting = collections.deque(one for one in self._waiting if type(one) is not type(message))
            elif len(self._waiting) >= _WAITING:
                return
            self._waiting.append(message)
            self._changed.notify()

    def work(self) -> None:
        """Send until `stop`, or until the link takes nothing any more: then its end is seen by who reads."""
        while True:
            with self._changed:
                while not self._waiting and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    return
                message = self._waiting.popleft()
            try:
                self._link.sendall(messages.encode(message))
            except OSError as error:
                log.warning("fleet_link_unwritable", reason=str(error))
                with contextlib.suppress(OSError):
                    self._link.shutdown(socket.SHUT_RDWR)
                return

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
