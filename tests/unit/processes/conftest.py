"""Children of these tests are started by a stub started ahead, as the daemon's are."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from latticed.processes import child
from latticed.processes.ahead import Ahead


@pytest.fixture
async def ahead(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ahead]:
    async with Ahead() as ahead:
        defaults = {**child.spawn.__kwdefaults__, "ahead": ahead}
        monkeypatch.setattr(child.spawn, "__kwdefaults__", defaults)
        yield ahead
