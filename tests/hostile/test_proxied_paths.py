"""Paths that a proxied service could read as another one: without login only the public paths reach it."""

from __future__ import annotations

import pytest

from tests.house import backends, path_readings, routed
from tests.house.routed import ID


@pytest.fixture
async def backend():
    async with backends.running() as found:
        yield found


async def test_no_reading_of_a_path_without_login_leaves_the_public_ones(tmp_path, backend):
    """At the root of the origin, where nothing but the pattern is in front of the service."""
    async with routed.opened(tmp_path) as world:
        world.plugins.granted_prefixes = {ID: frozenset({"/"})}
        await world.serve(backend, path="/", public=["/download/*/*"])
        assert (await world.get("/download/a/b")).status == 200
        backend.seen.clear()
        reached = 0
        for target in path_readings.targets():
            await world.get(target)
            reached += len(backend.seen)
            for seen in backend.paths:
                for one in path_readings.readings(seen.partition("?")[0]):
                    parts = one.strip("/").split("/")
                    assert len(parts) == 3, (target, seen, one)
                    assert parts[0] == "download", (target, seen, one)
            backend.seen.clear()
        assert reached, "some of these paths are public"
