"""What a program has besides its own process: a directory that it keeps, the door of its network, and the way
out of it.

They are added to what is started, with what watches them while it runs.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from latticed.host.program import hosts
from latticed.host.program.rules import ProgramEnded
from latticed.sandbox.spec import DataDirectory, DoorRequest

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from latticed.host.program.data import KeptDirectory
    from latticed.host.program.door import Door
    from latticed.host.program.supervised import Ready
    from latticed.host.program.way_out import WayOut
    from latticed.processes.child import Child


def added(ready: Ready, *, kept: KeptDirectory | None, door: Door | None, way_out: WayOut | None) -> Ready:
    """`ready` with the directory, the door and the way out by it, each where there is one."""
    request, close = ready.request, ready.close
    if kept is not None:
        request = replace(request, data=DataDirectory(path=str(kept.path), file_bytes=kept.most.bytes))
        ready = replace(ready, request=request, on_ids=kept.hand_over, beside=kept.watch)
    if door is None:
        return ready

    def close_both() -> None:
        door.started()
        close()

    async def beside(child: Child) -> ProgramEnded:
        works = [_lost(door)]
        if kept is not None:
            works.append(kept.watch(child))
        if way_out is not None:
            works.append(_open(way_out, door))
        try:
            return await _first(works)
        finally:
            door.close()

    layout = way_out.layout if way_out is not None else hosts.layout(())
    asked = DoorRequest(fd=door.theirs.fileno(), listen=layout.listen, names=layout.names)
    request = replace(request, door=asked)
    return replace(ready, request=request, close=close_both, beside=beside)


async def _lost(door: Door) -> ProgramEnded:
    """The end of a program whose network can no longer be reached; returns once that is so."""
    await door.lost.wait()
    return ProgramEnded(code="door_lost", message="expected the way into its network to stay, found it gone")


async def _open(way_out: WayOut, door: Door) -> ProgramEnded:
    """Keep the way out open; it ends with the door, or by a fault of ours."""
    await way_out.serve(await door.listeners())
    return ProgramEnded(code="internal", message="a fault of latticed: the way out has ended")


async def _first(works: list[Coroutine[None, None, ProgramEnded]]) -> ProgramEnded:
    """The result of that of `works` which ends first; the others are cancelled."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
