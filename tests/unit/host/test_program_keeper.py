"""service.* from the call to the process: supervised, confined, ended with its owner; with real children."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from dataclasses import dataclass, field, replace

import msgspec
import pytest

from latticed.host import permissions
from latticed.host.call import Caller, HostError
from latticed.host.program import supervised
from latticed.host.program.calls import ProgramCalls
from latticed.host.program.data import ServiceData
from latticed.host.program.keeper import ProgramKeeper, ProgramRights
from latticed.kit.clock import SystemClock
from latticed.ledger import open_ledger
from latticed.model.restart import RestartPolicy
from latticed.settings.programs import ServiceSettings as Settings
from tests.house import children, confinements, processes

A, B = Caller(plugin_id="acme.a"), Caller(plugin_id="acme.b")
DEADLINE_S = processes.PATIENCE_S
QUICK = RestartPolicy(base_s=0.01, ceiling_s=0.02, jitter=0.0, breaker_failures=3)
SHELL = {"shell": "/bin/sh", "python": "/usr/bin/python3"}


async def until(condition, what=""):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what}"
        await asyncio.sleep(0.005)


@dataclass
class World:
    """The service over a real ledger and real children."""

    programs: ProgramKeeper
    service: dict
    allowed: set
    settings: Settings
    spawner: confinements.Spawner
    variables: set = field(default_factory=lambda: {"COLOUR"})

    async def call(self, method, caller=A, **params):
        served = self.service[method]
        return await served.answer(caller, msgspec.convert(params, served.params, strict=True))

    async def put(self, name, script, caller=A, **more):
        return await self.call("service.put", caller, name=name, program="shell", args=("-c", script), **more)

    async def status(self, name, caller=A):
        (found,) = (await self.call("service.status", caller, name=name))["services"]
        return found

    async def until_state(self, state, name, caller=A):
        one = self.program(name, caller)
        await until(lambda: one.state == state, f"{name} to be {state}, found {one.view()}")
        return await self.status(name, caller)

    async def until_said(self, word, name, caller=A):
        await until(lambda: word in self.program(name, caller).output()["stdout"], f"{name} to say {word!r}")

    def program(self, name, caller=A):
        return next(one.program for one in self.programs.of(caller.plugin_id) if one.name == name)


@contextlib.asynccontextmanager
async def world(directory, *, policy=QUICK, allowed=(A.plugin_id, B.plugin_id), **settings):
    clock, spawner, may = SystemClock(), confinements.Spawner(), set(allowed)
    wanted = Settings(**{"programs": SHELL, **settings})
    async with open_ledger(directory / "state", clock=clock) as ledger:
        made = World(None, {}, may, wanted, spawner)
        made.programs = ProgramKeeper(
            ledger,
            clock=clock,
            spawner=spawner,
            settings=made.settings,
            rights=ProgramRights(
                refusal=lambda one: None if one in may else permissions.judge(permissions.UNKNOWN),
                variables=lambda _: frozenset(made.variables),
            ),
            policy=policy,
            data=ServiceData(directory / "state" / "services"),
            roll=lambda: 0.5,
        )
        async with made.programs:
            calls = ProgramCalls(made.programs)
            made.service = {one.method: one for one in calls.calls()}
            yield made


@pytest.fixture
async def here(tmp_path):
    async with world(tmp_path) as opened:
        yield opened


def tree():
    return {pid for pid in children.descendants(os.getpid()) if children.alive(pid)}


async def test_environment_variable_of_program_is_set_only_while_granted(here):
    """Revoking it stops programs that set it; granting it again starts them."""
    here.variables.discard("COLOUR")
    asked = {
        "name": "web",
        "program": "shell",
        "args": ("-c", "echo $COLOUR; sleep 1000"),
        "environment": {"COLOUR": "red"},
    }
    with pytest.raises(HostError, match=r"environment: expected variables that the operator granted, found COLOUR"):
        await here.call("service.put", **asked)
    here.variables.add("COLOUR")
    await here.call("service.put", **asked)
    await here.until_said("red", "web")
    here.variables.discard("COLOUR")
    here.programs.recheck(A.plugin_id)
    await here.programs.drained(A.plugin_id)
    assert tree() == set()
    here.variables.add("COLOUR")
    here.programs.recheck(A.plugin_id)
    await here.until_state("running", "web")


async def test_program_runs_until_deleted(here):
    """It gets its arguments and environment; its output is shown; no process is left after the deletion."""
    made = await here.put("web", 'echo "$1 $COLOUR"; echo x >/scratch/f && cat /scratch/f; (sleep 1000 &) ; sleep 1000')
    assert made == {"ok": True, "name": "web", "state": "starting"}
    await here.call(
        "service.put", name="web", program="shell", args=("-c", 'echo "$1 $COLOUR"; sleep 1000', "sh", "one"),
        environment={"COLOUR": "blue"},
    )  # fmt: skip
    await here.until_said("one blue\n", "web")
    found = await here.status("web")
    assert (found["state"], found["restarts"], found["last_error"]) == ("running", 0, None)
    assert found["pid"] in tree()
    assert found["sandbox"] in {"isolated", "dedicated"}
    assert "args" not in found
    assert "environment" not in found
    assert (await here.call("service.delete", name="web"))["ok"]
    assert not (await here.call("service.delete", name="web"))["ok"]
    assert tree() == set()
    with pytest.raises(HostError, match="not_found"):
        await here.status("web")


async def test_putting_the_same_program_again_changes_nothing(here):
    """Another spec starts another process."""
    await here.put("web", "echo up; sleep 1000")
    await here.until_said("up", "web")
    pid = (await here.status("web"))["pid"]
    await here.put("web", "echo up; sleep 1000")
    assert (await here.status("web"))["pid"] == pid
    await here.put("web", "echo two; sleep 1000")
    await here.until_said("two", "web")
    assert tree() == children.family((await here.status("web"))["pid"])


async def test_program_is_restarted_until_the_breaker_opens(here):
    """There is a pause before each restart; then it is failed, with its last output, until it is put again."""
    await here.put("bad", "echo oops >&2; exit 3")
    found = await here.until_state("failed", "bad")
    assert (found["restarts"], found["last_error"]["code"]) == (2, "crash_loop")
    assert found["last_error"]["message"].endswith("exited 3; it said last: oops")
    assert found["pid"] is None
    await asyncio.sleep(0.1)
    assert here.spawner.spawned == 3
    await here.put("bad", "echo oops >&2; exit 3")
    await until(lambda: here.spawner.spawned > 3, "another chance")


@pytest.mark.parametrize(
    ("restart", "script", "state", "spawned"),
    [
        ("never", "exit 0", "ended", 1),
        ("never", "exit 1", "failed", 1),
        ("on-failure", "exit 0", "ended", 1),
        ("on-failure", "exit 1", "failed", 3),
        ("always", "exit 0", "failed", 3),
    ],
)
async def test_restart_policy_decides_whether_ended_program_restarts(here, restart, script, state, spawned):
    await here.put("one", script, restart=restart)
    await here.until_state(state, "one")
    assert here.spawner.spawned == spawned


async def test_program_stops_when_plugin_may_not_act_and_starts_again(here):
    """Programs of other plugins keep running; no plugin sees another's."""
    await here.put("mine", "echo up; sleep 1000")
    await here.put("theirs", "echo up; sleep 1000", B)
    await here.until_said("up", "mine")
    await here.until_said("up", "theirs", B)
    here.allowed.remove(A.plugin_id)
    here.programs.recheck(A.plugin_id)
    assert (await here.until_state("stopped", "mine"))["pid"] is None
    assert (await here.status("theirs", B))["state"] == "running"
    assert (await here.put("more", "sleep 1000"))["state"] == "stopped"
    await asyncio.sleep(0.6)
    assert (await here.status("more"))["state"] == "stopped"
    here.allowed.add(A.plugin_id)
    await here.until_state("running", "mine")
    await here.until_state("running", "more")
    with pytest.raises(HostError, match="not_found"):
        await here.status("theirs")
    assert [one["name"] for one in (await here.call("service.status"))["services"]] == ["mine", "more"]
    assert await here.programs.forget(A.plugin_id) == 2
    assert (await here.call("service.status"))["services"] == []


async def test_program_that_ends_by_sigterm_in_its_own_way_has_not_failed(here):
    """Node programs exit with 143 then: no error, no restart, and it begins with no pause again."""
    await here.put("node", "trap 'exit 143' TERM; echo up; while :; do read x || sleep 0.02; done")
    for restarts in range(3):
        await here.until_said("up", "node")
        here.allowed.remove(A.plugin_id)
        here.programs.recheck(A.plugin_id)
        found = await here.until_state("stopped", "node")
        assert (found["last_error"], found["restarts"], found["next_retry_at"]) == (None, 0, None), restarts
        here.allowed.add(A.plugin_id)
        await here.until_state("running", "node")


async def test_slow_stop_delays_no_other_program(here, monkeypatch):
    monkeypatch.setattr(supervised, "GRACE_S", 8.0)
    await here.put("slow", "trap 'echo asked' TERM; echo up; while :; do read x || sleep 0.02; done")
    await here.put("quick", "echo up; sleep 1000", B)
    await here.until_said("up", "slow")
    await here.until_said("up", "quick", B)
    here.allowed.clear()
    here.programs.recheck(A.plugin_id)
    await here.until_said("asked", "slow")
    await here.until_state("stopped", "quick", B)
    assert here.program("slow").state == "running"
    os.kill(here.program("slow").pid, signal.SIGKILL)  # its grace period is long


async def test_program_that_is_stopped_twice_at_once_shows_no_pid(here):
    """As when its plugin is disabled: a recheck stops it, and the answer waits for a stop, too."""
    await here.put("mine", "trap '' TERM; echo up; while :; do read x || sleep 0.02; done")
    await here.until_said("up", "mine")
    one = here.program("mine")
    first = asyncio.ensure_future(one.stop(grace_s=0.05))
    await asyncio.sleep(0)
    await asyncio.gather(first, one.stop())
    assert (one.view()["state"], one.view()["pid"]) == ("stopped", None)


async def test_program_stops_with_the_daemon_and_starts_again_after_restart(tmp_path):
    """No process is left in between. Deleted programs, and those of plugins that may not act, are not started."""
    async with world(tmp_path) as here:
        await here.put("web", "echo up; (setsid sleep 1000 &); sleep 1000")
        await here.put("gone", "sleep 1000")
        await here.put("theirs", "sleep 1000", B)
        await here.call("service.delete", name="gone")
        await here.until_said("up", "web")
        left = tree()
    processes.until(lambda: not any(map(children.alive, left)), what="all of it to be gone")
    async with world(tmp_path, allowed=[A.plugin_id]) as here:
        await here.until_said("up", "web")
        assert [one.name for one in here.programs.of(A.plugin_id)] == ["web"]
        assert (await here.status("theirs", B))["state"] == "stopped"


async def test_program_reaches_only_the_network_of_its_kind(tmp_path):
    """It has none, a loopback of its own, or that of the host if the operator allows it for the program."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    script = f"""
import socket, time
def reaches(port):
    try: socket.create_connection(('127.0.0.1', port), 5).close()
    except OSError as error: return type(error).__name__
    return 'yes'
try:
    own = socket.create_server(('127.0.0.1', 0)); print('own', reaches(own.getsockname()[1]))
except OSError as error: print('own', type(error).__name__)
print('host', reaches({port}), flush=True); time.sleep(1000)
"""
    async with server, world(tmp_path, host_network=("python",)) as here:
        expected = {"none": ("own PermissionError", "host PermissionError"), "own": ("own yes", "host Connection"),
                    "host": ("own yes", "host yes")}  # fmt: skip
        for network, words in expected.items():
            await here.call("service.put", name=network, program="python", args=("-c", script), network=network)
            await here.until_said("host ", network)
            said = here.program(network).output()["stdout"]
            assert all(word in said for word in words), (network, said)
        with pytest.raises(HostError, match="egress_blocked: network: the operator does not let shell"):
            await here.put("no", "sleep 1000", network="host")
        here.programs.settings = replace(here.programs.settings, host_network=())
        found = await here.until_state("stopped", "host")
        assert found["last_error"]["code"] == "program_not_allowed"
        assert "python have the host's network" in found["last_error"]["message"]
        here.programs.settings = replace(
            here.programs.settings, host_network=("python",), programs={"shell": "/bin/sh"}
        )
        found = await here.until_state("stopped", "own")
        assert "the operator's list has no program python" in found["last_error"]["message"]
        here.programs.settings = replace(here.programs.settings, programs=SHELL)
        for network in expected:
            await here.until_state("running", network)


async def test_script_program_reads_allowed_path_and_must_not_be_writable_by_others(tmp_path):
    """The operator names a directory that it may read."""
    tool, shared = tmp_path / "tool", tmp_path / "shared"
    shared.mkdir()
    (shared / "data").write_text("shared\n")
    tool.write_text(
        f"#!/usr/bin/env python3\nimport time\nprint(open('{shared}/data').read(), flush=True)\ntime.sleep(99)\n"
    )
    tool.chmod(0o755)
    async with world(tmp_path, programs={"tool": str(tool)}, reads={"tool": str(shared)}) as here:
        await here.call("service.put", name="tool", program="tool")
        await here.until_said("shared", "tool")
        tool.chmod(0o757)
        await here.call("service.put", name="tool", program="tool", args=("again",))
        found = await here.until_state("failed", "tool")
        assert found["last_error"]["code"] == "crash_loop"
        assert "writable by others" in found["last_error"]["message"]


async def test_only_end_of_program_output_is_kept(tmp_path):
    """A program that floods is slowed down, and the daemon stays responsive."""
    async with world(tmp_path, output_bytes=1 << 10) as here:
        await here.put("loud", "exec yes 'a line that says nothing'")
        await here.put("calm", "echo up; sleep 1000", B)
        await here.until_said("up", "calm", B)
        await here.until_said("says nothing", "loud")
        assert len(here.program("loud").output()["stdout"]) <= 1024


async def test_program_over_quota_is_refused(tmp_path):
    async with world(tmp_path, plugin_services=1, total_services=2) as here:
        await here.put("one", "sleep 1000")
        with pytest.raises(HostError, match="quota_exceeded"):
            await here.put("two", "sleep 1000")
        await here.put("one", "sleep 1001")
        await here.put("one", "sleep 1000", B)
        with pytest.raises(HostError, match="quota_exceeded"):
            await here.put("one", "sleep 1000", Caller(plugin_id="acme.c"))


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"name": "../x"}, "bad_params: name"),
        (
            {"program": "/bin/sh"},
            r"bad_params: program: expected one of those that the operator allows \(python, shell\)",
        ),
        ({"args": ("a",) * 65}, "bad_params: args"),
        ({"args": ("x" * 4097,)}, "bad_params: args"),
        ({"args": ("a\0b",)}, "bad_params: args"),
        ({"args": ("--token=${secret:TOKEN}",)}, "bad_params: args: expected no"),
        ({"environment": {"COLOUR": "${secret:TOKEN}"}}, "bad_params: environment: expected no"),
        *(
            ({"environment": {name: "/x"}}, rf"found {name} \(caps grant ID env={name}\)")
            for name in (
                "LD_PRELOAD",
                "BASH_ENV",
                "ENV",
                "NODE_OPTIONS",
                "PYTHONWARNINGS",
                "BROWSER",
                "PERL5OPT",
                "A=B",
            )
        ),
        ({"environment": {f"V{n}": "" for n in range(33)}}, "bad_params: args"),
    ],
)
async def test_bad_program_parameters_are_refused(here, wrong, expected):
    """A secret in arguments or environment is refused: both can be listed by others."""
    with pytest.raises(HostError, match=expected):
        await here.call("service.put", **{"name": "web", "program": "shell", **wrong})
    assert here.spawner.spawned == 0
    for more in ({"restart": "sometimes"}, {"network": "bridge"}, {"user": "root"}):
        with pytest.raises(msgspec.ValidationError):
            await here.call("service.put", **{"name": "web", "program": "shell", **more})
