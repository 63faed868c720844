"""One server for all tests of a module; each takes nodes of its own."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from latticed.fleet.nats_engine import NatsControllerEngine
from tests.house import nats_servers

_numbers = itertools.count(1)


async def _provide(fleet: nats_servers.Fleet) -> None:
    async with fleet.connected("controller") as connection:
        await fleet.provide(connection)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    with nats_servers.running(tmp_path_factory.mktemp("nats")) as running:
        asyncio.run(_provide(running))
        yield running


@pytest.fixture
def node() -> str:
    """A name that no other test has."""
    return f"node-{next(_numbers)}"


@pytest.fixture
async def controller(fleet):
    async with fleet.connected("controller") as connection:
        yield NatsControllerEngine(connection)


@pytest.fixture
def directory(tmp_path):
    """Of a spool of bundles."""
    place = tmp_path / "spool"
    place.mkdir()
    return place
