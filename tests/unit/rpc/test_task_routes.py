"""Tasks over the control API: the handlers over a real queue and ledger."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import msgspec
import pytest

from latticed.host.task import spec
from latticed.host.task.keeper import TaskKeeper
from latticed.host.task.spec import TaskSubmit
from latticed.kit.clock import SystemClock
from latticed.ledger import audit, open_ledger
from latticed.model.audit import Actor
from latticed.model.errors import Problem
from latticed.rpc import tasks as handlers
from latticed.settings.programs import TaskSettings as Settings
from tests.house import confinements, processes

OPERATOR = Actor(kind="peer", uid=1000, name="ops", pid=42)


@dataclass
class Asked:
    """A decoded request, as handlers get it: stands in for `rpc.api.Ask`."""

    api: SimpleNamespace
    path: dict = field(default_factory=dict)
    given: dict = field(default_factory=dict)
    actor: Actor = OPERATOR

    def part(self, name):
        return self.path[name]

    def query(self, kind):
        return msgspec.convert(self.given, kind, strict=False)

    async def body(self, kind):
        return msgspec.convert(self.given, kind, strict=True)


@contextlib.asynccontextmanager
async def opened(directory):
    clock, settings = SystemClock(), Settings()
    async with (
        open_ledger(directory / "state", clock=clock) as ledger,
        TaskKeeper(
            ledger, clock=clock, spawner=confinements.Spawner(), settings=settings, refusal=lambda _: None
        ) as tasks,
    ):
        yield SimpleNamespace(tasks=tasks, ledger=ledger)


async def submitted(api, script, plugin_id="acme.a"):
    asked = TaskSubmit(interpreter="sh", script=script)
    return await api.tasks.submit(plugin_id, asked, spec.checked(asked))


async def test_task_is_listed_approved_and_run(tmp_path):
    """Approved by digest; uid, user and pid of the operator are audited."""
    async with opened(tmp_path) as api:
        mine, other = await submitted(api, "echo ran"), await submitted(api, "echo other", "acme.b")
        page = await handlers.listing(Asked(api, given={"limit": "1"}))
        assert ([one["id"] for one in page["tasks"]], page["next"]) == ([other.id], other.seq)
        page = await handlers.listing(Asked(api, given={"plugin": "acme.a", "state": "submitted"}))
        assert ([one["id"] for one in page["tasks"]], page["next"]) == ([mine.id], None)
        whole = await handlers.show(Asked(api, {"task": mine.id}))
        assert (whole["script"], whole["state"]) == ("echo ran", "submitted")
        assert set(whole) == set(handlers.TaskWhole.__annotations__)
        assert set(page["tasks"][0]) == set(handlers.TaskRow.__annotations__)
        with pytest.raises(Problem, match="digest_mismatch"):
            await handlers.approve(Asked(api, {"task": mine.id}, {"sha256": other.sha256}))
        with pytest.raises(msgspec.ValidationError):
            await handlers.approve(Asked(api, {"task": mine.id}, {"sha256": "ab"}))
        done = await handlers.approve(Asked(api, {"task": mine.id}, {"sha256": mine.sha256}))
        assert done["state"] == "approved"
        deadline = time.monotonic() + processes.PATIENCE_S
        while (whole := await handlers.show(Asked(api, {"task": mine.id})))["state"] != "done":
            assert time.monotonic() < deadline, whole
            await asyncio.sleep(0.01)
        assert whole["stdout"] == "ran\n"
        events = api.ledger.read(lambda db: audit.query(db, limit=100))
        told = [(one["actor"], one["decision"], one["code"]) for one in events if one["action"] == "task.approve"]
        assert told == [(str(OPERATOR), "deny", "digest_mismatch"), (str(OPERATOR), "allow", "")]


async def test_cancel_routes_cancel_one_task_or_all(tmp_path):
    """A second cancel is invalid_transition, an unknown task not_found."""
    async with opened(tmp_path) as api:
        tasks = [await submitted(api, f"echo {n}") for n in range(3)]
        assert (await handlers.cancel(Asked(api, {"task": tasks[0].id})))["state"] == "cancelled"
        assert await handlers.cancel_all(Asked(api)) == {"cancelled": 2}
        with pytest.raises(Problem, match="invalid_transition"):
            await handlers.cancel(Asked(api, {"task": tasks[0].id}))
        with pytest.raises(Problem, match="not_found"):
            await handlers.show(Asked(api, {"task": "nope"}))
