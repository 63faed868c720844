"""The queue of tasks in a process that is ended by kill -9; it approves and runs every waiting task.

Arguments: the state directory, and a file that every run is written to before it begins, `begins <task> <run>`. On
stdout: `ready`, then `begins <task>`, `spawned <task>` and `ended <task> <state>`, each once it is so.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from latticed.host.task import spec
from latticed.host.task.keeper import TaskKeeper
from latticed.host.task.spec import TaskSubmit
from latticed.kit import logs
from latticed.kit.clock import SystemClock
from latticed.ledger import open_ledger
from latticed.settings.programs import TaskSettings as Settings

# `from tests.house import ...` without the checkout on sys.path: there, `latticed` would hide the installed wheel.
sys.modules.setdefault("tests", ModuleType("tests")).__path__ = [str(Path(__file__).resolve().parents[1])]
from tests.house import confinements  # noqa: E402 - after the path is made

OWNER = "acme.a"
OPEN = 6
"""Tasks that are there at a time: on a busy machine they are run more slowly than they could be submitted."""
SCRIPT = "echo begun; sleep 0.05; echo over"


def say(*words: str) -> None:
    os.write(1, (" ".join(words) + "\n").encode())  # in one piece, and not kept back


class Spawner(confinements.Spawner):
    """Writes down each run before there is anything of it."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        self._fd = os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    async def spawn(self, request: Any, chosen: Any, **more: Any) -> Any:
        task, run = request.environment["LATTICED_TASK"], request.environment["LATTICED_RUN"]
        os.write(self._fd, f"begins {task} {run}\n".encode())
        say("begins", task)
        made = await super().spawn(request, chosen, **more)
        say("spawned", task)
        return made


async def main(directory: Path, place: Path) -> None:
    logs.configure("error")  # stdout is for what is said here
    clock = SystemClock()
    settings = Settings(total_at_once=2, plugin_at_once=2, total_waiting=10_000, plugin_waiting=10_000)
    async with (
        open_ledger(directory, clock=clock) as ledger,
        TaskKeeper(ledger, clock=clock, spawner=Spawner(place), settings=settings, refusal=lambda _: None) as tasks,
    ):
        say("ready")
        told: set[str] = set()
        while True:
            if len(await tasks.page(states=("approved", "running"), limit=OPEN)) < OPEN:
                asked = TaskSubmit(interpreter="sh", script=SCRIPT)
                made = await tasks.submit(OWNER, asked, spec.checked(asked))
                await tasks.approve(made.id, sha256=made.sha256, by="uid:0 user:root pid:1")
            await asyncio.sleep(0.02)
            for task in await tasks.page(states=("done", "failed")):
                if task.id not in told:
                    told.add(task.id)
                    say("ended", task.id, task.state)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
