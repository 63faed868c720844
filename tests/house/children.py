"""Confined children of the test process itself: short specs, and protocols that record what they get."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from latticed.sandbox import artifact, levels, probe, rlimits, spec
from latticed.sandbox.host_facts import Probed

INTERPRETERS = {"python3": "/usr/bin/python3", "sh": "/bin/sh"}
CHILD_UID = 62_000 + os.getpid() % 3_000  # not that of other tests: RLIMIT_NPROC counts by uid, zombies too
_EXITING = 0x4  # PF_EXITING of the flags in /proc/PID/stat (proc(5)): set once, when the process begins to end


@functools.cache
def probed() -> Probed:
    """This machine, probed once."""
    return probe.probe()


def ids() -> spec.Ids | None:
    """A child is never root: it gets another uid if the tests run as root."""
    return spec.Ids(uid=CHILD_UID, gid=CHILD_UID) if os.getuid() == 0 else None


@contextlib.contextmanager
def spec_of(
    program: bytes | str,
    *,
    level: str = "isolated",
    features: Sequence[str] = ("threads", "processes", "workdir"),
    on: Probed | None = None,
    limits: rlimits.ResourceLimits | None = None,
    **more: Any,
) -> Iterator[spec.ChildSpec]:
    """The spec of a program; a text is a script for sh."""
    data = program if isinstance(program, bytes) else f"#!/bin/sh\n{program}\n".encode()
    with artifact.of_bytes(data, interpreters=INTERPRETERS) as sealed:
        request = spec.ChildRequest(
            program=sealed,
            environment={"PATH": "/usr/bin:/bin"},
            limits=limits or rlimits.ResourceLimits(),
            ids=ids(),
            interpreters=INTERPRETERS,
            **more,
        )
        chosen = levels.Chosen(level=levels.Level.of(level), features=frozenset(features))
        yield spec.build(request, chosen, on or probed())


class Heard(asyncio.Protocol):
    """Collects its input; `over` is set at the end."""

    def __init__(self) -> None:
        self.data = b""
        self.over = asyncio.Event()
        self.any = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.any.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.over.set()


def descendants(pid: int) -> set[int]:
    """All descendants of `pid`, as the kernel lists them."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            for child in map(int, (task / "children").read_text().split()):
                found |= {child} | descendants(child)
    return found


def family(pid: int) -> set[int]:
    """`pid`, its descendants, and other processes of its pid namespace: a process 1 of ours, orphans."""
    own = _pid_namespace(pid)
    found = {pid} | descendants(pid)
    if own != _pid_namespace(os.getpid()):
        found |= {one for one in map(int, filter(str.isdigit, os.listdir("/proc"))) if _pid_namespace(one) == own}
    return found


def _pid_namespace(pid: int) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/pid")
    return ""


def alive(pid: int) -> bool:
    """Whether a process of that number is there and may still run code of its own: neither a zombie nor exiting.

    Process 1 of a pid namespace is exiting, not a zombie, until all others of its namespace have been reaped. When the
    daemon was killed, that is up to process 1 of this machine, which may take seconds.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return False
    return state not in {"Z", "X"} and not int(fields[5]) & _EXITING
