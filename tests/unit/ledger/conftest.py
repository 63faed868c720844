"""Shared fixtures of the ledger tests: a clock that moves only by `advance`, and a ledger in a temporary directory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import apsw
import pytest

from latticed.ledger import Ledger, migrations, open_ledger
from latticed.model import audit


@dataclass
class StillClock:
    """Time that passes only by `advance`; starts at 2026-01-02T03:04:05Z."""

    now_us: int = 1_767_323_045_000_000

    def wall_us(self) -> int:
        return self.now_us

    def monotonic_s(self) -> float:
        return self.now_us / 1_000_000

    def advance(self, seconds: float) -> None:
        self.now_us += round(seconds * 1_000_000)


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def opened(state_dir: Path, clock: StillClock) -> Callable[[], AbstractAsyncContextManager[Ledger]]:
    """A function that opens the same state directory each time it is called."""
    return lambda: open_ledger(state_dir, clock=clock)


@pytest.fixture
async def ledger(opened: Callable[[], AbstractAsyncContextManager[Ledger]]) -> AsyncIterator[Ledger]:
    async with opened() as found:
        yield found


@pytest.fixture
def memory() -> Iterator[apsw.Connection]:
    """A migrated database in memory, for row functions without a writer."""
    connection = apsw.Connection(":memory:")
    migrations.migrate(connection)
    yield connection
    connection.close()


@pytest.fixture
def event() -> Callable[..., audit.Event]:
    """An event with every field filled in; keywords replace fields."""

    def make(**changed: object) -> audit.Event:
        fields: dict[str, object] = {
            "actor": "plugin:acme.demo",
            "action": "plugin.invoke",
            "target": "kv.get",
            "decision": "allow",
            "detail": {"key": "a", "bytes": 12, "cached": False},
        }
        return audit.Event(**{**fields, **changed})  # type: ignore[arg-type]

    return make
