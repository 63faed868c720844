"""Counts over all plugins, taken in batches so that ten thousand of them do not block the event loop."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from latticed.model.runtime import why_not_running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from latticed.rpc.api import Api

T = TypeVar("T")

BATCH: Final = 256
"""How many items are handled between two turns of the event loop: under a millisecond."""


async def paced(items: Iterable[T]) -> AsyncIterator[T]:
    """`items`, one by one, yielding to the event loop after each `BATCH` of them.

    Give it a copy of what may change meanwhile.
    """
    for number, item in enumerate(items, 1):
        yield item
        if number % BATCH == 0:
            await asyncio.sleep(0)


@dataclass(slots=True)
class PluginCounts:
    """Numbers of records by status, instances by state, refused bundles by code, and active plugins not running by why.

    `restarts`: by plugin id, only where there were any; `available`: records whose bundle can be used; `candidates`:
    those for which an upgrade lies on disk.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    available: int = 0
    candidates: int = 0
    states: Counter[str] = field(default_factory=Counter)
    not_running: dict[str, int] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)


async def count_plugins(api: Api) -> PluginCounts:
    """All counts of `PluginCounts`; forgotten records are left out.

    Not of one moment: records may change while batches are counted.
    """
    found = PluginCounts()
    # A copy: records may come and go between two batches.
    async for record in paced(list(api.lifecycle.records.values())):
        if record.forgotten:
            continue
        found.statuses[record.status.value] += 1
        seen = api.lifecycle.presence(record.id)
        found.available += seen.available
        found.candidates += seen.candidate(record) is not None
        runtime = api.supervisor.runtime(record.id)
        if runtime.restart_count:
            found.restarts[record.id] = runtime.restart_count
    found.not_running = await not_running(api)
    async for plugin_id in paced(api.supervisor.ids()):
        found.states[api.supervisor.runtime(plugin_id).state.value] += 1
    async for verdict in paced(api.lifecycle.rejected().values()):
        found.refused[verdict.code.value] += 1
    return found


async def not_running(api: Api) -> dict[str, int]:
    """How many active plugins are not running, by reason: `starting`, or the code of the error that stopped them."""
    found: dict[str, int] = {}
    active = list(api.lifecycle.active)
    for begin in range(0, len(active), BATCH):
        if begin:
            await asyncio.sleep(0)
        # Without `paced`, as health is asked often: its turns cost more than looking at a plugin.
        for plugin_id in active[begin : begin + BATCH]:
            runtime = api.supervisor.runtime(plugin_id)
            why = why_not_running(runtime.state, runtime.last_error.code if runtime.last_error else "")
            if why:  # empty for a plugin that runs
                found[why] = found.get(why, 0) + 1
    return dict(sorted(found.items()))
