"""Children of these tests are started in both ways: by a program of system calls, and by the stub."""

from __future__ import annotations

import pytest

from latticed.sandbox import launch_calls


@pytest.fixture(params=["calls", "stub"])
def launcher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    way: str = request.param
    if way == "stub":
        monkeypatch.setattr(launch_calls, "possible", lambda _: False)
    return way
