"""Children of these tests are started in both ways: by a program of system calls, and by the stub."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from latticed.processes import spawn as birth
from latticed.sandbox import launch_calls


@pytest.fixture(params=["calls", "stub"])
def launcher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    way: str = request.param
    if way == "stub":
        monkeypatch.setattr(launch_calls, "possible", lambda _: False)
    return way


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bool]]:
    """What to add to a plan whose launcher is to wait for ever: it enters a group by a pipe that is full."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    for size in (65_536, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(write, b"x" * size)
    os.set_blocking(write, True)
    monkeypatch.setattr(birth.Spawn, "_procs", lambda _: write)
    yield {"cgroup": True}
    os.close(read)
    os.close(write)
