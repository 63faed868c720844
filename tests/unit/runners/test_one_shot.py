"""One process per invocation: its limits, and what ends with it. The real runner in the real sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
from dataclasses import replace

import pytest

from latticed.bundle import decode, read
from latticed.model.errors import Problem
from latticed.model.runtime import Health
from latticed.runners import one_shot
from latticed.runners.child_spawner import ChildSpawner
from latticed.runners.contract import PluginToRun
from latticed.runners.cpu import CpuWatch
from latticed.runners.kept_copies import KeptCopies
from latticed.runners.process import ProcessRunner
from latticed.settings import PluginLimitSettings, SandboxSettings
from tests.house import bundles, children, in_process, runner_deps

STAYS = b"""#!/usr/bin/env python3
import json, signal, sys, time

signal.signal(signal.SIGTERM, lambda *_: print("told to end", file=sys.stderr, flush=True))
action = json.loads(sys.stdin.readline())["action"]
while action == "spin":
    pass
if action == "ask":
    print(json.dumps({"host_call": {"id": 1, "method": "kv.get", "params": {"key": "a"}}}))
print(json.dumps({"ok": True}), flush=True)
while action == "ask":
    time.sleep(1)
"""


class SlowGate:
    """A Gate that never answers, and counts the calls under way."""

    refuse_raw = None

    def __init__(self) -> None:
        self.going_on = 0

    async def call_raw(self, method, params):
        assert (method, json.loads(params)) == ("kv.get", {"key": "a"})
        self.going_on += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.going_on -= 1


async def started(root, gate, said=None, *, artifact=STAYS, sandbox=None, **limits):
    """A plugin under stdio-json-v1, where no cgroup holds it; `said` takes its lines on stderr."""
    runtime = {"protocol": "stdio-json-v1", "limits": limits, "sandbox": sandbox or {}}
    bundle = bundles.drop(root, author=bundles.author(), v2=True, artifact=artifact, runtime=runtime)
    _, manifest = decode.decode(bundle.manifest_path.read_bytes())
    base = ChildSpawner(
        replace(children.probed(), delegation=None), SandboxSettings(floor="filtered"), PluginLimitSettings()
    )
    plugin = PluginToRun(id=manifest.id, identity="1" * 64, manifest=manifest)
    with read.open_bundle(bundle.path, limits=read.ReadLimits(), owners=frozenset({os.getuid()})) as pair:
        return await ProcessRunner(base, runner_deps.outputs(said), KeptCopies()).start(
            plugin, pair, gate, lambda *_: None
        )


@contextlib.asynccontextmanager
async def instance(root, gate, said=None, **wanted):
    """The same, until it is stopped."""
    found = await started(root, gate, said, **wanted)
    try:
        yield found
    finally:
        await found.stop(0)


TALKS = b"""#!/usr/bin/env python3
import json, os, sys, tempfile

action = json.loads(sys.stdin.readline())["action"]
result = None
if action == "look":
    with open("/dev/zero", "rb") as zero:
        zeros = zero.read(100_000)
    with tempfile.NamedTemporaryFile() as file:
        result = [os.environ.get("TMPDIR"), zeros == bytes(100_000), os.path.dirname(file.name)]
if action == "much":  # 6 MB in all, none of it longer than 1 MiB; the answers are read at the end
    for number in range(6):
        print(json.dumps({"host_call": {"id": number, "method": "kv.put", "params": {"value": "x" * 1_000_000}}}))
    sys.stdout.flush()
    answers = [json.loads(line)["host_response"] for _, line in zip(range(6), os.fdopen(3))]
    result = [answer["id"] for answer in answers]
if action == "long":
    print("x" * (2 << 20))
print(json.dumps({"ok": True, "result": result}))
"""


class LateGate:
    """A Gate that finishes calls in reverse order."""

    refuse_raw = None

    def __init__(self) -> None:
        self.calls = 0

    async def call_raw(self, method, params):
        assert (method, len(json.loads(params)["value"])) == ("kv.put", 1_000_000)
        self.calls += 1
        for _ in range(100 - 10 * self.calls):
            await asyncio.sleep(0)
        return {"ok": True}


async def test_output_limit_applies_to_each_line_not_to_the_sum(tmp_path):
    """Concurrent host calls are answered in the order in which they were made."""
    async with instance(tmp_path, LateGate(), artifact=TALKS, invoke_timeout_s=20) as plugin:
        assert (await plugin.invoke("much", None))["result"] == [0, 1, 2, 3, 4, 5]
        with pytest.raises(Problem) as refused:
            await plugin.invoke("long", None)
        assert refused.value.code == "output_too_large"
        assert "lines of at most 1048576 bytes" in refused.value.reason
    async with instance(tmp_path / "more", LateGate(), artifact=TALKS, stdout_kib=4096) as plugin:
        with pytest.raises(Problem) as refused:
            await plugin.invoke("long", None)
        assert refused.value.code == "protocol_error", "the line is within what its manifest asks for, and no message"


async def test_child_has_tmpdir_in_scratch_and_dev_zero(tmp_path):
    sandbox = {"level": "isolated", "features": ["workdir"]}
    async with instance(tmp_path, LateGate(), artifact=TALKS, sandbox=sandbox) as plugin:
        assert (await plugin.invoke("look", None))["result"] == ["/scratch", True, "/scratch"]


async def test_invocation_over_its_cpu_limit_is_cpu_exceeded(tmp_path, monkeypatch):
    """It ends long before its deadline; the next invocation is not affected."""
    monkeypatch.setattr(one_shot, "CpuWatch", functools.partial(CpuWatch, window_s=0.5))
    async with instance(tmp_path, SlowGate(), cpu_percent=10, invoke_timeout_s=30) as plugin:
        with pytest.raises(Problem) as refused:
            await plugin.invoke("spin", None)
        assert refused.value.code == "cpu_exceeded"
        assert (await plugin.invoke("greet", None))["ok"], "the next one is not held to account for it"


async def test_invocation_without_cpu_limit_ends_with_deadline_exceeded(tmp_path, monkeypatch):
    monkeypatch.setattr(one_shot, "CpuWatch", functools.partial(CpuWatch, window_s=0.1))
    async with instance(tmp_path, SlowGate(), invoke_timeout_s=1) as plugin:
        with pytest.raises(Problem) as refused:
            await plugin.invoke("spin", None)
        assert refused.value.code == "deadline_exceeded"


async def test_stop_after_reply_cancels_running_host_calls(tmp_path, monkeypatch):
    """The plugin has replied but does not exit on SIGTERM, and is disabled while one of its host calls runs."""
    gate, said = SlowGate(), []
    async with instance(tmp_path, gate, said) as plugin:
        monkeypatch.setattr(one_shot, "LINGER_S", 0.0)  # not before: the process that proves it can start is told too
        asking = asyncio.ensure_future(plugin.invoke("ask", None))
        await in_process.until(lambda: said, "told to end")
        assert (asking.done(), gate.going_on) == (False, 1)
        await plugin.stop(1)
        assert gate.going_on == 0
        with pytest.raises(Problem) as refused:
            await asking
        assert refused.value.code == "plugin_gone"


UNWELL = b"""#!/usr/bin/env python3
import json, sys, time

action = json.loads(sys.stdin.readline())["action"]
while action == "hang":
    print("hangs", file=sys.stderr, flush=True)
    time.sleep(1000)
print(json.dumps({"ok": action != "health", "message": "broken"}))
"""


async def test_health_is_asked_while_an_invocation_is_under_way(tmp_path):
    """By a process of its own: else a plugin that hangs, or is always at work, would never be found unhealthy."""
    said = []
    async with instance(tmp_path, SlowGate(), said, artifact=UNWELL, invoke_timeout_s=30) as plugin:
        hanging = asyncio.ensure_future(plugin.invoke("hang", None))
        await in_process.until(lambda: said, "hangs")
        found = await plugin.check()
        assert (found.health, found.message, hanging.done()) == (Health.UNHEALTHY, "broken", False)
        await plugin.stop(0)
        with pytest.raises(Problem):
            await hanging


async def test_health_check_takes_no_place_of_an_invocation(tmp_path):
    said = []
    async with instance(tmp_path, SlowGate(), said, artifact=UNWELL, invoke_timeout_s=30) as plugin:
        most = plugin._spec.invoking.at_once
        hanging = [asyncio.ensure_future(plugin.invoke("hang", None)) for _ in range(most - 1)]
        asking = asyncio.ensure_future(plugin.check())
        await in_process.until(lambda: len(plugin._running) == most, "all to be under way")
        hanging.append(asyncio.ensure_future(plugin.invoke("hang", None)))
        assert (await asking).message == "broken"
        await asyncio.sleep(0)
        assert not any(one.done() for one in hanging)
        with pytest.raises(Problem, match="at a time"):
            await plugin.invoke("hang", None)
        await plugin.stop(0)
        await asyncio.gather(*hanging, return_exceptions=True)


NEVER_DESCRIBES = b"""#!/usr/bin/env python3
import signal, sys, time

signal.signal(signal.SIGTERM, lambda *_: print("told to end", file=sys.stderr, flush=True))
print("here", file=sys.stderr, flush=True)
while True:
    time.sleep(1)
"""


async def test_start_that_is_cancelled_kills_the_process_without_a_grace_period(tmp_path):
    """A plugin may be revoked while it starts: its code gets no time to act."""
    said = []
    starting = asyncio.ensure_future(started(tmp_path, SlowGate(), said, artifact=NEVER_DESCRIBES))
    await in_process.until(lambda: said, "here")
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert [line for _, line in said] == ["here"]


FLOODS = b"""#!/usr/bin/env python3
import json, sys

json.loads(sys.stdin.readline())
sys.stderr.write("a\\n" * (1 << 19))
print(json.dumps({"ok": True}))
"""


async def test_flood_of_short_lines_is_bounded_over_all_invocations_of_a_plugin(tmp_path):
    """Each is an entry of the log, and health checks alone may come each second."""
    said = []
    async with instance(tmp_path, SlowGate(), said, artifact=FLOODS, invoke_timeout_s=30) as plugin:
        assert (await plugin.check()).health is Health.HEALTHY
    assert 0 < len(said) < 100_000, "of a million in the two invocations"
