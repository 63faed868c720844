"""The plugin's decisions: when it saves, what it does first, and what it says of a host that refuses."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from latticed.host.program import saved
from latticed.sdk.base import PluginError
from latticed.sdk.calls import HostError
from latticed.system.host import Host
from latticed.system.sub_store import plugin as plugin_module
from latticed.system.sub_store.plugin import DAY_S, SubStore

CONFIG = {"bundle": "/opt/2.14.0/backend.js", "login": "${secret:SUB_STORE_LOGIN}"}
ENV = {"status": "success", "data": {"backend": "Node", "version": "2.14.0"}}


@dataclass
class World:
    """A host that keeps values and copies, and refuses what is in `refused`; `asked` has every call."""

    values: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    refused: dict[str, HostError] = field(default_factory=dict)
    state: str = "running"
    answers: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self):
        self.answers.set()

    env: Any = field(default_factory=lambda: (200, ENV))

    async def __call__(self, method, params):
        self.asked.append((method, params))
        if method in self.refused:
            raise self.refused[method]
        match method:
            case "kv.get":
                value = self.values.get(params["key"])
                coded = base64.b64encode(value or b"").decode()
                return {"ok": value is not None, "value_base64": coded}
            case "kv.put":
                self.values[params["key"]] = params["value"].encode()
            case "service.save":
                return {"ok": True, "id": "20260101T000000Z-01234567", "new": True, "at": "", "files": []}
            case "service.status":
                error = {"code": "exited", "message": "it ended with 1"} if self.state != "running" else None
                shown = {"state": self.state, "next_retry_at": None, "last_error": error, "restarts": 3}
                return {"services": [shown]}
            case "route.put":
                return {"ok": True, "message": "", "url": "http://127.0.0.1:1/"}
            case "http.do":
                await self.answers.wait()
                status, body = self.env
                return {"status_code": status, "body_base64": base64.b64encode(json.dumps(body).encode()).decode()}
        return {"ok": True}

    def did(self, *methods):
        return [method for method, _ in self.asked if method in methods]


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now_s = 1_800_000_000.0

    monkeypatch.setattr(plugin_module.time, "time", lambda: Clock.now_s)
    return Clock


@pytest.fixture
def world(clock):
    return World()


async def started(world, **config):
    """A start of the plugin, after its first look."""
    made = SubStore(Host(world), id="latticed.sub-store", capabilities=(), config={**CONFIG, **config})
    await made.started()
    world.asked.clear()
    await made._look()
    return made


async def test_first_start_runs_and_serves_and_saves(world):
    made = await started(world)
    assert world.did("service.put", "route.put", "service.save") == ["service.put", "route.put", "service.save"]
    assert (await made.check()).status == "healthy"
    assert (await made.check()).message == "Sub-Store 2.14.0"


async def test_configuration_that_cannot_be_meant_keeps_it_from_starting(world):
    made = SubStore(Host(world), id="latticed.sub-store", capabilities=(), config={**CONFIG, "port": 80})
    with pytest.raises(PluginError, match="port: expected 1024"):
        await made.started()
    assert world.asked == []


async def test_backend_is_put_once_for_each_start_and_saved_once_a_day(world, clock):
    """Putting it again would close the breaker of one that crashes over and over."""
    made = await started(world)
    for _ in range(5):
        clock.now_s += 600
        await made._look()
    assert world.did("service.put", "service.save") == ["service.put", "service.save"]
    clock.now_s += DAY_S
    await made._look()
    assert world.did("service.save") == ["service.save"] * 2
    again = await started(world)
    await again._look()
    assert world.did("service.put", "service.save") == ["service.put"], "a restart does not save again"


async def test_clock_that_was_set_back_puts_no_backup_off(world, clock):
    made = await started(world)
    clock.now_s -= 10 * DAY_S
    await made._look()
    assert world.did("service.save") == ["service.save"] * 2


async def test_files_are_saved_before_another_version_runs(world):
    await started(world)
    await started(world, bundle="/opt/2.15.0/backend.js")
    assert world.did("service.put", "service.save")[:2] == ["service.save", "service.put"]


async def test_other_version_does_not_run_when_the_files_cannot_be_saved(world, clock):
    """The old one goes on; an operator can have it all the same."""
    await started(world)
    clock.now_s += DAY_S
    world.refused["service.save"] = HostError("service_unavailable", "expected JSON in root.json")
    made = await started(world, bundle="/opt/2.15.0/backend.js")
    await made._look()
    assert world.did("service.put") == []
    health = await made.check()
    assert health.status == "degraded"
    assert "expected JSON in root.json" in health.message
    assert "without_backup" in health.message
    with pytest.raises(PluginError, match="not changed"):
        await made.do_upgrade({})
    await made.do_upgrade({"without_backup": True})
    assert world.did("service.put") == ["service.put"]
    assert (await made.check()).message.startswith("the daily backup failed: expected JSON")


@dataclass
class Busy(World):
    """A host with real copies, of a backend that writes something else before each look."""

    home: Any = None
    now_s: Any = None
    written: int = 0

    async def __call__(self, method, params):
        if method != "service.save" or method in self.refused:
            return await super().__call__(method, params)
        self.asked.append((method, params))
        self.written += 1
        (self.home / "data/root.json").write_text(json.dumps({"written": self.written}))
        now_us = int(self.now_s() * 1_000_000)
        copy, new = saved.save(
            self.home, tuple(params["files"]), keep=params["keep"], most_bytes=64 << 20, now_us=now_us
        )
        return {"ok": True, "id": copy.id, "new": new}

    def copies(self):
        """The wall clock of each, in seconds, newest first."""
        return [copy.at // 1_000_000 for copy in saved.copies(self.home)]


@pytest.fixture
async def busy(tmp_path, clock):
    """A host whose backend runs since a week, with its seven daily copies."""
    (tmp_path / "data").mkdir()
    world = Busy(home=tmp_path, now_s=lambda: clock.now_s)
    made = await started(world)
    for _ in range(6):
        clock.now_s += DAY_S
        await made._look()
    assert len(world.copies()) == 7
    return world


DENIED = HostError("egress_blocked", "caps grant latticed.sub-store host=sub.example.org:443")


@pytest.mark.parametrize("refused", ["service.put", "kv.put"])
async def test_changed_configuration_that_is_refused_leaves_the_daily_backups(busy, clock, refused):
    """It is asked for again and again, and saved for once; also where nothing of that can be kept."""
    before = busy.copies()
    busy.refused[refused] = DENIED
    made = await started(busy, bundle="/opt/2.15.0/backend.js")
    for _ in range(20):
        clock.now_s += 15
        await made._look()
    assert busy.copies()[1:] == before[:6]


async def test_backups_are_daily_while_a_changed_configuration_is_refused(busy, clock):
    """The backend before goes on. A restart of the plugin changes nothing of that."""
    busy.refused["service.put"] = DENIED
    for _ in range(3):
        made = await started(busy, bundle="/opt/2.15.0/backend.js")
        for _ in range(3):
            clock.now_s += DAY_S / 2
            await made._look()
    newest = busy.copies()[:4]
    assert [first - second for first, second in itertools.pairwise(newest)] == [DAY_S] * 3
    assert (await made.check()).message == DENIED.message


async def test_configuration_that_is_wanted_again_is_saved_for_again(busy, clock):
    """Its backup of then is not what the backend has now."""
    busy.refused["service.put"] = DENIED
    await started(busy, bundle="/opt/2.15.0/backend.js")
    del busy.refused["service.put"]
    await started(busy)
    clock.now_s += 60
    await started(busy, bundle="/opt/2.15.0/backend.js")
    assert busy.did("service.save", "service.put")[:2] == ["service.save", "service.put"]
    assert busy.copies()[0] == clock.now_s


async def test_service_that_has_kept_nothing_yet_needs_no_backup(world):
    await started(world)
    world.refused["service.save"] = HostError("not_found", "the service has kept nothing yet")
    made = await started(world, bundle="/opt/2.15.0/backend.js")
    assert (await made.check()).status == "healthy"


@pytest.mark.parametrize("call", ["service.put", "route.put"])
async def test_what_the_host_refuses_is_in_the_health_and_asked_for_again(world, call):
    world.refused[call] = HostError("bad_params", "caps grant latticed.sub-store env=SUB_STORE_BACKEND_API_HOST")
    made = await started(world)
    assert (await made.check()).message == "caps grant latticed.sub-store env=SUB_STORE_BACKEND_API_HOST"
    del world.refused[call]
    await made._look()
    assert (await made.check()).status == "healthy"


async def test_path_that_changes_leaves_no_old_route(world):
    await started(world)
    await started(world, path="/")
    deleted = [params for method, params in world.asked if method == "route.delete"]
    assert deleted == [{"path": "/latticed.sub-store/"}]


@pytest.mark.parametrize(
    ("state", "env", "word"),
    [
        ("waiting", (200, ENV), "the backend is waiting: it ended with 1"),
        ("failed", (200, ENV), "the backend is failed: it ended with 1"),
        ("running", (404, {}), "answers 404"),
        ("running", (200, {"data": {}}), "names no backend"),
    ],
)
async def test_backend_that_does_not_answer_is_degraded_and_why(world, state, env, word):
    made = await started(world)
    world.state, world.env = state, env
    health = await made.check()
    assert (health.status, word in health.message) == ("degraded", True), health


async def test_backend_that_hangs_is_degraded_and_no_failure_of_the_plugin(world, monkeypatch):
    monkeypatch.setattr(plugin_module, "PROBE_S", 0.01)
    made = await started(world)
    world.answers.clear()
    health = await made.check()
    assert (health.status, "no answer" in health.message) == ("degraded", True)


async def test_restore_saves_what_is_there_first_and_spares_the_wanted_one(world):
    """Else the oldest backup would go for it, and could not be restored."""
    made = await started(world)
    world.asked.clear()
    assert await made.do_restore({"id": "20250101T000000Z-01234567"}) == {
        "id": "20250101T000000Z-01234567",
        "before": "20260101T000000Z-01234567",
    }
    saved, reverted = [params for method, params in world.asked if method in {"service.save", "service.revert"}]
    assert (saved["keep"], saved["spare"]) == (7, reverted["id"]) == (7, "20250101T000000Z-01234567")


async def test_restore_is_done_though_the_log_takes_nothing(world):
    made = await started(world)
    world.refused["log.write"] = HostError("capability_not_granted", "log:write is not granted")
    assert (await made.do_restore({"id": "20250101T000000Z-01234567"}))["id"] == "20250101T000000Z-01234567"


async def test_broken_files_can_be_replaced_though_they_cannot_be_saved(world):
    made = await started(world)
    world.refused["service.save"] = HostError("service_unavailable", "expected JSON in root.json")
    assert (await made.do_restore({"id": "20250101T000000Z-01234567"}))["before"] is None
    assert world.did("service.revert") == ["service.revert"]


@pytest.mark.parametrize("payload", [None, {}, {"id": 1}, {"id": "x", "more": 1}, "x"])
async def test_restore_without_an_id_changes_nothing(world, payload):
    made = await started(world)
    with pytest.raises(PluginError, match="expected"):
        await made.do_restore(payload)
    assert world.did("service.revert") == []
