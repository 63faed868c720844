"""Real WireGuard in network namespaces: wireguard-go, wg(8), ip(8).

    with firewalled.network() as net, wireguards.interface(net, "r", "lw0") as name: …

The sockets of wireguard-go are files of the whole machine, whatever the namespace: names are unique.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.house import firewalled

PATIENCE_S = 20
_names = itertools.count()


def unique() -> str:
    """A name that no other interface of this machine has."""
    return f"lw{os.getpid() % 1_000_000}x{next(_names)}"


@contextmanager
def interface(net: firewalled.Net, letter: str, name: str) -> Iterator[str]:
    """An interface of wireguard-go without keys, gone afterwards."""
    # In the foreground: it is this test's child, and ends with it.
    child = subprocess.Popen(
        ["ip", "netns", "exec", net.name(letter), "wireguard-go", name],
        env={**os.environ, "WG_PROCESS_FOREGROUND": "1", "LOG_LEVEL": "error"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        until = time.monotonic() + PATIENCE_S
        while not Path(f"/var/run/wireguard/{name}.sock").exists():
            assert child.poll() is None, child.stderr and child.stderr.read()
            assert time.monotonic() < until, f"wireguard-go has made no {name}"
            time.sleep(0.01)
        yield name
    finally:
        child.terminate()
        child.communicate()


def genkey() -> tuple[str, str]:
    """A private key and its public one, as wg makes them."""
    private = subprocess.run(["wg", "genkey"], check=True, capture_output=True).stdout
    public = subprocess.run(["wg", "pubkey"], check=True, capture_output=True, input=private).stdout
    return private.decode().strip(), public.decode().strip()


def setconf(net: firewalled.Net, letter: str, name: str, conf: bytes, *, how: str = "setconf") -> None:
    net.run(letter, "wg", how, name, "/dev/stdin", stdin=conf)
