"""The service manager: telling it our state, taking its sockets, feeding its watchdog.

Source: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from latticed.kit import text

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

FIRST_FD: Final = 3  # SD_LISTEN_FDS_START
_STATUS_CHARACTERS: Final = 200
_MOST_OWED: Final = 8  # states that wait to be sent again; older ones are dropped


class Notifier:
    """Sends state to the service manager's socket at `address`; without one (not under a service manager) it does
    nothing.

    Never waits, never raises: where the manager does not keep up, what it must hear is sent again with the next
    `watchdog`.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._owed: list[bytes] = []

    def ready(self, status: str = "") -> None:
        """Say that start-up, or a reload, is finished; `status` is shown by systemctl."""
        self._send({"READY": "1"} | _status(status))

    def reloading(self) -> None:
        """Say that a reload has begun; `ready` ends it. The message carries the monotonic time in µs, which
        Type=notify-reload requires (systemd.service(5)).
        """
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send({"RELOADING": "1", "MONOTONIC_USEC": str(now_us)})

    def extend(self, seconds: float) -> None:
        """Ask for `seconds` more, from now on, for what is under way (start, reload, stop)."""
        self._send({"EXTEND_TIMEOUT_USEC": str(int(seconds * 1_000_000))})

    def stopping(self, status: str = "") -> None:
        """Say that stopping has begun."""
        self._send({"STOPPING": "1"} | _status(status))

    def watchdog(self) -> None:
        """Say that the daemon is alive; see `watchdog_interval_s` for how often."""
        self._send({"WATCHDOG": "1"}, again=False)

    def _send(self, state: Mapping[str, str], *, again: bool = True) -> None:
        """Send what could not be sent before, then `state`.

        What the manager's queue does not take is kept for the next call; `state` only with `again`.
        """
        if self._address is None:
            return
        self._owed.append("\n".join(f"{name}={value}" for name, value in state.items()).encode())
        with contextlib.suppress(OSError):  # no descriptor is free: as if there were no room
            self._send_owed(self._address)
        if self._owed and not again:  # a watchdog ping; the next one is as good
            del self._owed[-1]
        del self._owed[:-_MOST_OWED]

    def _send_owed(self, address: str) -> None:
        """Send what is kept, in order, as far as the manager's queue takes it. OSError when no socket can be made."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            # A full queue of the receiver would block a datagram (unix(7)).
            sender.setblocking(False)
            while self._owed:
                try:
                    sender.sendto(self._owed[0], address)
                except BlockingIOError:
                    break
                except OSError:  # gone: sd_notify(3) says to ignore failures
                    pass
                del self._owed[0]


def from_environment(environ: MutableMapping[str, str]) -> Notifier:
    """The notifier that $NOTIFY_SOCKET names. The variable is removed from `environ`, so that children do not inherit
    it.
    """
    found = environ.pop("NOTIFY_SOCKET", "")
    if found.startswith("@"):
        found = "\0" + found[1:]  # an abstract socket
    return Notifier(found if found.startswith(("/", "\0")) and len(found) > 1 else None)


def watchdog_interval_s(environ: MutableMapping[str, str], *, pid: int | None = None) -> float | None:
    """How often, in seconds, to call `Notifier.watchdog`: half of what the manager allows (sd_watchdog_enabled(3));
    None when it does not watch this process. The variables are removed from `environ`.
    """
    limit_us, watched = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
    mine = not watched or watched == str(os.getpid() if pid is None else pid)
    if not mine or not limit_us.isascii() or not limit_us.isdigit() or int(limit_us) == 0:
        return None
    return int(limit_us) / 2_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedSockets:
    """A descriptor from the service manager and the name its unit gave it (FileDescriptorName=)."""

    fd: int
    name: str


def listen_fds(environ: MutableMapping[str, str], *, pid: int | None = None) -> tuple[PassedSockets, ...]:
    """The descriptors passed to this process, close-on-exec from now on; () when they are meant for another.

    The variables are removed from `environ` either way. OSError when a descriptor that was announced is not open.
    """
    count, meant = environ.pop("LISTEN_FDS", ""), environ.pop("LISTEN_PID", "")
    names = [name for name in environ.pop("LISTEN_FDNAMES", "").split(":") if name]
    if meant != str(os.getpid() if pid is None else pid) or not count.isascii() or not count.isdigit():
        return ()
    found = []
    for position in range(int(count)):
        fd = FIRST_FD + position
        os.set_inheritable(fd, False)
        found.append(PassedSockets(fd=fd, name=names[position] if position < len(names) else "unknown"))
    return tuple(found)


def passed_listener(environ: MutableMapping[str, str]) -> socket.socket | None:
    """The listening unix socket passed to this process, the first if there are several; None when none was.

    The variables are removed from `environ` either way. OSError, in words, when what was announced is no such socket.
    """
    fd = FIRST_FD
    try:
        if not (passed := listen_fds(environ)):
            return None
        fd = passed[0].fd
        sock = socket.socket(fileno=fd)
        fits = (sock.family, sock.type) == (socket.AF_UNIX, socket.SOCK_STREAM)
        # socket(7): SO_ACCEPTCONN is 1 only for a listening socket, so Accept=yes in the unit is refused here.
        if fits and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return sock
        sock.detach()  # the number may be of something else that this process has opened
    except OSError:
        pass
    raise OSError(f"expected a listening unix socket at the passed descriptor {fd}, found none")


def _status(status: str) -> dict[str, str]:
    """The variable STATUS= of sd_notify(3), escaped and cut; none for an empty text."""
    # sanitise escapes newlines, each of which would begin another variable: a text from elsewhere must not say READY=1.
    return {"STATUS": text.sanitise(status, _STATUS_CHARACTERS)} if status else {}
