"""A network of a test's own: a thread in a new network namespace, with public addresses and no way out."""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Awaitable, Callable

from tests.house import processes

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def why_not() -> str | None:
    """Why none can be made here, or None."""
    if os.geteuid() != 0:
        return "needs uid 0 to make a network namespace"
    if shutil.which("ip") is None:
        return "needs ip(8) to make a network namespace"
    failures: list[str] = []
    thread = threading.Thread(target=lambda: failures.extend(_entered(())))
    thread.start()
    thread.join()
    return failures[0] if failures else None


def run(addresses: tuple[str, ...], scenario: Callable[[], Awaitable[None]]) -> None:
    """Run `scenario` in an event loop and network namespace of its own, with `addresses` and loopback only."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            if failures := _entered(addresses):
                raise OSError(failures[0])
            asyncio.run(scenario())
        except BaseException as error:  # noqa: BLE001 - raised again by the thread of the test
            raised.append(error)

    thread = threading.Thread(target=work, name="netns")
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def _entered(addresses: tuple[str, ...]) -> list[str]:
    if _libc.unshare(CLONE_NEWNET) != 0:
        return [f"no network namespace can be made here: {os.strerror(ctypes.get_errno())}"]
    lines = ["link set lo up", *(f"addr add {one} dev lo{' nodad' if ':' in one else ''}" for one in addresses)]
    done = subprocess.run(["ip", "-batch", "-"], check=False, input="\n".join(lines), text=True, capture_output=True)
    if done.returncode != 0:
        return [f"no network namespace can be made here: {done.stderr.strip()}"]
    # The kernel makes the route of an IPv6 address a moment later; until then what is sent there is unreachable.
    for one in addresses:
        if ":" in one:
            shown = ["ip", "-6", "route", "show", "table", "local", "type", "local", one.partition("/")[0]]
            processes.until(
                lambda shown=shown: subprocess.run(shown, check=True, capture_output=True).stdout,
                what=f"a route to {one}",
            )
    return []
