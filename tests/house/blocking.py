"""Makes calls that block the event loop raise when latticed makes them while its loop runs."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

_SOCKET_CALLS = ("accept", "connect", "recv", "recv_into", "recvfrom", "recvmsg", "sendall")


class BlockingCall(AssertionError):
    """latticed called something that blocks from within the running event loop."""


def forbid(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Guard the blocking calls; the list returned collects the exceptions, in case the caller swallows them."""
    caught: list[str] = []

    def guard(name: str, blocks: Callable[..., bool], original: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **named: Any) -> Any:
            if asyncio._get_running_loop() is not None and blocks(*args, **named) and (where := _culprit()):
                caught.append(f"{name} in the event loop, called by {where}")
                raise BlockingCall(caught[-1])
            return original(*args, **named)

        return guarded

    def always(*_: Any, **__: Any) -> bool:
        return True

    monkeypatch.setattr(time, "sleep", guard("time.sleep", always, time.sleep))
    monkeypatch.setattr(threading.Thread, "join", guard("Thread.join", _alive, threading.Thread.join))
    monkeypatch.setattr(subprocess.Popen, "wait", guard("Popen.wait", always, subprocess.Popen.wait))
    monkeypatch.setattr(subprocess.Popen, "communicate", guard("communicate", always, subprocess.Popen.communicate))
    for name in _SOCKET_CALLS:
        monkeypatch.setattr(socket.socket, name, guard(f"socket.{name}", _waits, getattr(socket.socket, name)))
    return caught


def _alive(thread: threading.Thread, *_: Any, **__: Any) -> bool:
    return thread.is_alive()


def _waits(sock: socket.socket, *args: Any, **__: Any) -> bool:
    dontwait = any(isinstance(arg, int) and arg & socket.MSG_DONTWAIT for arg in args)
    return sock.gettimeout() != 0 and sock.type != socket.SOCK_DGRAM and not dontwait


def _culprit() -> str | None:
    """The innermost frame of latticed between the call and the loop's own machinery, if there is one."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and not _is_loop(frame):
        if str(frame.f_globals.get("__name__", "")).split(".")[0] == "latticed":
            return f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"
        frame = frame.f_back
    return None


def _is_loop(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__") == "asyncio.base_events" and frame.f_code.co_name == "_run_once"
