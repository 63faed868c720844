"""Counts over many plugins and bundles do not block the event loop."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from latticed.model.verdict import Code, Refused
from latticed.rpc import counts
from tests.house import bundles, in_process

MANY = 3_000


@pytest.fixture
async def home():
    async with in_process.opened() as found:
        found.drop("demo", id="acme.demo")
        await found.armed("acme.demo")
        lifecycle = found.app.api.lifecycle
        record = lifecycle.records["acme.demo"]
        lifecycle.state.records |= {f"acme.p{n}": replace(record, id=f"acme.p{n}") for n in range(MANY)}
        lifecycle.state.active |= lifecycle.state.records.keys()
        refused = Refused(code=Code.DIGEST_MISMATCH, reason="x", hint="y")
        lifecycle.registry._verdicts |= {f"plugins/r{n}": refused for n in range(MANY)}
        yield found
        lifecycle.state.records, lifecycle.state.active = {"acme.demo": record}, {"acme.demo"}


async def turns_of_others(work):
    """How often another task ran while `work` was done, and the result of `work`."""
    turns, done = 0, asyncio.ensure_future(work)
    while not done.done():
        await asyncio.sleep(0)
        turns += 1
    return turns, await done


async def test_status_counts_are_taken_in_batches(home):
    turns, counted = await turns_of_others(counts.count_plugins(home.app.api))
    assert turns >= 3 * (MANY // counts.BATCH)
    assert counted.statuses == {"active": MANY + 1}
    assert counted.refused == {"digest_mismatch": MANY}
    assert sum(counted.states.values()) == 1


@pytest.mark.parametrize(
    ("path", "parts"), [("/metrics", 3), ("/api/status", 3), ("/api/health", 1), ("/api/plugins/rejected", 1)]
)
async def test_answers_over_all_plugins_yield_to_the_event_loop(home, path, parts):
    """Other tasks get at least one turn for each batch of plugins."""
    turns, answer = await turns_of_others(home.ask("GET", path))
    assert answer.status == 200
    assert turns >= parts * (MANY // counts.BATCH)
    if path.endswith("rejected"):
        assert len(answer["rows"]) == MANY


async def test_refused_bundles_among_thousands_are_listed(tmp_path: Path):
    async with in_process.opened() as home:
        home.drop("demo", author=bundles.author("stranger"))
        await in_process.until(home.app.api.lifecycle.rejected)
        (row,) = (await home.ask("GET", "/api/plugins/rejected"))["rows"]
        assert (row["name"], row["code"]) == ("demo", "publisher_untrusted")
