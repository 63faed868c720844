"""Every connection that this process makes, seen at the socket by an audit hook of the interpreter."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from ipaddress import ip_address

Dial = tuple[str, int]
_watching: dict[int, tuple[list[Dial], bool]] = {}


def _hook(event: str, args: tuple) -> None:
    if event != "socket.connect" or (seen := _watching.get(threading.get_ident())) is None:
        return
    address = args[1]
    if not isinstance(address, tuple):  # a unix socket
        return
    dials, may_leave = seen
    dials.append((address[0], address[1]))
    if not may_leave and not ip_address(address[0].partition("%")[0]).is_loopback:
        raise ConnectionRefusedError("tests dial nothing outside of this machine")


@contextlib.contextmanager
def watched(*, may_leave: bool = False) -> Iterator[list[Dial]]:
    """The (address, port) of each connect that this thread tries; those that would leave the machine are cut off.

    `may_leave` is for threads in a network namespace of their own, which nothing can leave.
    """
    if not _watching:
        _install()
    dials: list[Dial] = []
    _watching[threading.get_ident()] = (dials, may_leave)
    try:
        yield dials
    finally:
        del _watching[threading.get_ident()]


_installed: list[bool] = []


def _install() -> None:
    if not _installed:  # an audit hook stays until the interpreter ends
        sys.addaudithook(_hook)
        _installed.append(True)
