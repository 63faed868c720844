"""task.* from the call to the end of the run: approval, confinement, bounds, the kill switch; with real children."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from dataclasses import dataclass, replace

import msgspec
import pytest

from latticed.host import permissions
from latticed.host.call import Caller, HostError
from latticed.host.task.calls import TaskCalls
from latticed.host.task.keeper import LEAST_SLACK, TaskKeeper
from latticed.kit.clock import SystemClock
from latticed.ledger import audit, open_ledger
from latticed.model.errors import Problem
from latticed.settings.programs import TaskSettings as Settings
from tests.house import children, confinements, processes
from tests.house.clocks import ManualClock

A, B = Caller(plugin_id="acme.a"), Caller(plugin_id="acme.b")
OPERATOR = "uid:0 user:root pid:1"
DEADLINE_S = processes.PATIENCE_S
ENDED = {"done", "failed", "interrupted", "cancelled", "expired"}


async def until(condition, what=""):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what}"
        await asyncio.sleep(0.005)


@dataclass
class World:
    """The service over a real ledger and real children."""

    ledger: object
    tasks: TaskKeeper
    service: dict
    allowed: set
    settings: Settings
    spawner: confinements.Spawner
    clock: object

    async def call(self, method, caller=A, **params):
        served = self.service[method]
        return await served.answer(caller, msgspec.convert(params, served.params, strict=True))

    async def submit(self, script, caller=A, *, interpreter="sh", **more):
        made = await self.call("task.submit", caller, script=script, interpreter=interpreter, **more)
        assert made["sha256"] == hashlib.sha256(script.encode()).hexdigest()
        return made["id"]

    async def approve(self, task_id):
        return await self.tasks.approve(task_id, sha256=self.tasks.get(task_id).sha256, by=OPERATOR)

    async def ended(self, task_id):
        await until(lambda: self.tasks.get(task_id).state in ENDED, "the task to end")
        return self.tasks.get(task_id)

    async def run(self, script, caller=A, **more):
        task_id = await self.submit(script, caller, **more)
        await self.approve(task_id)
        return await self.ended(task_id)

    def actions(self, task_id):
        events = self.ledger.read(lambda db: audit.query(db, limit=1_000))
        return [(event["action"], event["code"]) for event in events if event["target"] == task_id]


@contextlib.asynccontextmanager
async def world(directory, *, clock=None, spawner=None, refusal=None, **settings):
    clock, spawner = clock or SystemClock(), spawner or confinements.Spawner()
    allowed = {A.plugin_id, B.plugin_id}
    async with open_ledger(directory / "state", clock=clock) as ledger:
        made = World(ledger, None, {}, allowed, Settings(**settings), spawner, clock)
        tasks = TaskKeeper(
            ledger,
            clock=clock,
            spawner=spawner,
            settings=made.settings,
            refusal=lambda one: refusal or (None if one in allowed else permissions.judge(permissions.UNKNOWN)),
        )
        async with tasks:
            made.tasks = tasks
            made.service = {call.method: call for call in TaskCalls(tasks).calls()}
            yield made


@pytest.fixture
async def here(tmp_path):
    async with world(tmp_path) as opened:
        yield opened


async def test_task_does_not_run_before_approval(here):
    """Once its digest is approved it runs once; output and outcome are stored."""
    task_id = await here.submit("echo out $1-$2; echo err >&2; exit 3", targets=("web", "db"))
    for _ in range(3):
        here.tasks.recheck(A.plugin_id)
        await asyncio.sleep(0.02)
    assert here.spawner.spawned == 0
    assert (await here.call("task.get", id=task_id))["state"] == "submitted"
    await here.approve(task_id)
    await here.ended(task_id)
    told = await here.call("task.get", id=task_id)
    assert (told["state"], told["exit_code"], told["signal"], told["code"]) == ("failed", 3, None, "exited")
    assert (told["stdout"], told["stderr"], told["truncated"]) == ("out web-db\n", "err\n", False)
    assert told["approved_by"] == OPERATOR
    assert here.spawner.spawned == 1
    assert here.actions(task_id) == [("task.approve", ""), ("task.begin", ""), ("task.end", "exited")]


async def test_task_approval_is_for_one_digest(here):
    """Another digest is refused and audited; so are a second approval and that of an ended task."""
    task_id = await here.submit("echo ok")
    for wrong in ("", "0" * 64, hashlib.sha256(b"echo ok\n").hexdigest()):
        with pytest.raises(Problem) as caught:
            await here.tasks.approve(task_id, sha256=wrong, by=OPERATOR)
        assert caught.value.code == "digest_mismatch"
    await here.tasks.approve(task_id, sha256=here.tasks.get(task_id).sha256.upper(), by=OPERATOR)
    assert (await here.ended(task_id)).state == "done"
    with pytest.raises(Problem) as caught:
        await here.approve(task_id)
    assert caught.value.code == "invalid_transition"
    with pytest.raises(Problem, match="no task"):
        await here.tasks.approve("nope", sha256="0" * 64, by=OPERATOR)
    assert here.spawner.spawned == 1
    codes = [code for action, code in here.actions(task_id) if action == "task.approve"]
    assert codes == ["digest_mismatch"] * 3 + ["", "invalid_transition"]


@pytest.mark.parametrize("column", ["script", "sha256", "approved_sha256"])
async def test_script_edited_after_approval_fails(here, column):
    """The digest is compared with the approved one before the run."""
    here.tasks.settings = replace(here.tasks.settings, enabled=True, total_at_once=1)
    blocker = await here.submit("sleep 1000", B)
    await here.approve(blocker)
    await until(lambda: here.tasks.get(blocker).state == "running", "the blocker to run")
    task_id = await here.submit("echo approved")
    await here.approve(task_id)
    value = "echo edited" if column == "script" else hashlib.sha256(b"echo edited").hexdigest()
    change = f"UPDATE tasks SET {column} = ? WHERE id = ?"  # noqa: S608 - constants
    await here.ledger.write(lambda tx: tx.execute(change, (value, task_id)))
    await here.tasks.cancel(blocker, by=OPERATOR)
    ended = await here.ended(task_id)
    assert (ended.state, ended.outcome.code, ended.outcome.stdout) == ("failed", "digest_mismatch", "")
    assert (here.spawner.spawned, ended.run_id) == (1, ""), "it had not even begun"


async def test_script_edited_together_with_its_digest_fails(here, monkeypatch):
    """The digest is taken of the sealed bytes that will run, not of the row."""
    from latticed.host.task import run

    sealed = run._sealed
    monkeypatch.setattr(run, "_sealed", lambda task: sealed(replace(task, script="echo other")))
    ended = await here.run("echo approved")
    assert (ended.state, ended.outcome.code, here.spawner.spawned) == ("failed", "digest_mismatch", 0)


@pytest.mark.parametrize(
    ("interpreter", "script"),
    [
        ("sh", 'printf \'%s\\n\' "$1" "$2"'),
        ("bash", 'a=("$@"); printf \'%s\\n\' "${a[@]}"'),
        ("python3", "import sys\nprint(*sys.argv[1:], sep='\\n')"),
        ("node", "console.log(process.argv.slice(2).join('\\n'))"),
    ],
)
async def test_script_runs_in_each_interpreter(here, interpreter, script):
    """Targets are its arguments, in order and unchanged."""
    if interpreter == "node" and not os.path.exists("/usr/bin/node"):
        pytest.skip("node is not installed here")
    ended = await here.run(script, interpreter=interpreter, targets=("a b;c", "-x"))
    assert (ended.outcome.stdout, ended.outcome.stderr, ended.state) == ("a b;c\n-x\n", "", "done")


async def test_task_has_clean_environment(here, tmp_path, monkeypatch):
    """It has no environment, input, network or files of the daemon, and a scratch directory of its own."""
    monkeypatch.setenv("LEAKED", "yes")
    (tmp_path / "mine").write_text("secret")
    script = f"""
        env | sort; pwd; cat; [ -e {tmp_path} ] || echo unseen; echo x >here && cat here
        (echo x >/etc/x) || echo readonly
        python3 -c 'import socket; socket.create_connection(("127.0.0.1", 1), 1)' 2>/dev/null || echo no network
    """
    ended = await here.run(script)
    lines = ended.outcome.stdout.splitlines()
    names = {line.split("=")[0] for line in lines if "=" in line}
    assert names == {"PATH", "LANG", "HOME", "TMPDIR", "LATTICED_TASK", "LATTICED_RUN", "PWD"}
    assert lines[-5:] == ["/scratch", "unseen", "x", "readonly", "no network"]


async def test_task_is_killed_at_its_timeout(here):
    """All of its processes are killed."""
    ended = await here.run("setsid sleep 1000 & echo begun; sleep 1000", timeout_s=1)
    assert (ended.state, ended.outcome.code, ended.outcome.stdout) == ("failed", "timeout", "begun\n")
    assert (ended.outcome.exit_code, ended.outcome.signal) == (None, 15)


async def test_fork_bombs_and_double_forks_are_reaped(here):
    """No process is left, and the event loop is not blocked."""
    bomb = await here.run(":(){ :|:& };:; sleep 1000", interpreter="bash", timeout_s=1)
    assert (bomb.state, bomb.outcome.code) == ("failed", "timeout")
    away = await here.run("(setsid sh -c 'sleep 1000 & sleep 1000' &) ; exit 0")
    assert away.state == "done"
    left = children.descendants(os.getpid())
    processes.until(lambda: not any(map(children.alive, left)), what="all that was forked to be gone")


async def test_end_of_task_output_is_kept(tmp_path):
    """The tail of each stream, with a truncation flag; control characters are escaped."""
    async with world(tmp_path, output_bytes=1 << 10) as here:
        ended = await here.run("seq 1 2000; printf '\\033[31mred\\ttab\\n' >&2")
    told = ended.outcome
    assert told.stdout.endswith("1999\n2000\n")
    assert len(told.stdout) == 1024
    assert told.stdout_bytes == sum(len(f"{n}\n") for n in range(1, 2001))
    assert told.truncated
    assert told.stderr == "\\x1b[31mred\ttab\n"


async def test_killed_task_is_failed(here):
    """The outcome names the signal."""
    for script in ("kill -9 $$; exit 0", "(kill -9 $PPID; kill -9 $$); exit 0"):
        ended = await here.run(script)
        assert (ended.state, ended.outcome.code) == ("failed", "killed")
        assert (ended.outcome.exit_code, ended.outcome.signal) == (None, 9)


async def test_signal_and_memory_limit_give_failed_outcome(here):
    """Death by a signal differs from an exit code of 128 plus its number."""
    shot = await here.run("kill -SEGV $$; exit 139")
    assert (shot.state, shot.outcome.code, shot.outcome.signal) == ("failed", "crashed", 11)
    said = await here.run("exit 139")
    assert (said.outcome.exit_code, said.outcome.signal) == (139, None)
    hungry = await here.run("b = bytearray(1 << 30)", interpreter="python3")
    assert hungry.state == "failed"
    assert "MemoryError" in hungry.outcome.stderr


async def test_cancelled_task_never_runs_or_is_killed(here):
    """A queued task never runs; a running one is killed with its process tree; ended ones and those of others stay."""
    waits = await here.submit("echo never")
    with pytest.raises(HostError, match="not_found"):
        await here.call("task.cancel", B, id=waits)
    assert await here.call("task.cancel", id=waits) == {"ok": True, "state": "cancelled"}
    with pytest.raises(Problem, match="cancelled"):
        await here.approve(waits)
    runs = await here.submit("setsid sleep 1000 & sleep 1000")
    await here.approve(runs)
    await until(lambda: here.spawner.spawned, "it to run")
    assert await here.call("task.cancel", id=runs) == {"ok": True, "state": "cancelled"}
    assert await here.call("task.cancel", id=runs) == {"ok": False, "state": "cancelled"}
    assert here.tasks.get(runs).outcome.reason == "cancelled by plugin:acme.a"
    assert here.spawner.spawned == 1


async def test_plugins_own_cancel_of_what_nobody_approved_is_no_decision(here):
    """It may submit and cancel without end, and decisions are kept for good. Whatever an operator had a part in is."""
    for _ in range(3):
        waits = await here.submit("echo never")
        assert await here.call("task.cancel", id=waits) == {"ok": True, "state": "cancelled"}
        assert here.actions(waits) == []
    theirs = await here.submit("echo never")
    await here.tasks.cancel(theirs, by=OPERATOR)
    assert here.actions(theirs) == [("task.end", "cancelled")]
    runs, approved = await here.submit("sleep 1000"), await here.submit("echo never")
    await here.approve(runs)
    await until(lambda: here.tasks.get(runs).state == "running", "it to run")
    await here.approve(approved)  # behind the other: one at once for each plugin
    assert (await here.call("task.cancel", id=approved))["ok"]
    assert here.actions(approved) == [("task.approve", ""), ("task.end", "cancelled")]
    assert (await here.call("task.cancel", id=runs))["ok"]
    assert here.actions(runs) == [("task.approve", ""), ("task.begin", ""), ("task.end", "cancelled")]


async def test_plugin_that_ends_very_many_tasks_pushes_out_its_own_alone(tmp_path):
    """Between two sweeps, too, there are hardly more than are to be kept."""
    async with world(tmp_path, keep_items=4) as here:
        old = await here.submit("echo report", B)
        await here.tasks.cancel(old, by=OPERATOR)
        most = 4 + LEAST_SLACK
        for _ in range(most):
            await here.call("task.cancel", id=await here.submit("echo"))
            assert len(await here.tasks.page(limit=1_000)) <= most
        mine = [await here.submit("echo") for _ in range(5)]
        for one in mine:
            await here.call("task.cancel", id=one)
        await here.tasks.sweep()
        assert [one.id for one in await here.tasks.page(limit=1_000)] == [*reversed(mine[-3:]), old]
        assert (await here.call("task.get", B, id=old))["script"] == "echo report"


async def test_disabling_tasks_stops_runs(here):
    """No task runs or is accepted while tasks are off; approved tasks run once they are on again."""
    runs, waits = await here.submit("sleep 1000"), await here.submit("echo ran")
    await here.approve(runs)
    await until(lambda: here.tasks.get(runs).state == "running", "it to run")
    await here.approve(waits)  # behind the other: one at once for each plugin
    here.tasks.settings = replace(here.tasks.settings, enabled=False)
    here.tasks.recheck(A.plugin_id)
    ended = await here.ended(runs)
    assert (ended.state, ended.outcome.reason) == ("cancelled", "the operator switched tasks off")
    with pytest.raises(HostError, match="service_unavailable: the operator has switched tasks off"):
        await here.submit("echo more")
    assert here.tasks.get(waits).state == "approved"
    here.tasks.settings = replace(here.tasks.settings, enabled=True)
    assert (await here.ended(waits)).outcome.stdout == "ran\n"


async def test_cancel_all_cancels_open_tasks_of_all_plugins(here):
    ids = [await here.submit("sleep 1000", caller) for caller in (A, A, B)]
    await here.approve(ids[0])
    await until(lambda: here.tasks.get(ids[0]).state == "running", "one to run")
    assert await here.tasks.cancel_all(by=OPERATOR) == 3
    assert {here.tasks.get(one).state for one in ids} == {"cancelled"}
    assert ("task.cancel", "") in here.actions("all")


async def test_task_runs_stop_and_approvals_lapse_when_plugin_may_not_act(here):
    """Runs are killed at once; approved tasks need approval again, which is refused while it may not act."""
    runs, waits = await here.submit("sleep 1000"), await here.submit("echo ran")
    await here.approve(runs)
    await until(lambda: here.tasks.get(runs).state == "running", "it to run")
    await here.approve(waits)  # behind the other: one at once for each plugin
    here.allowed.remove(A.plugin_id)
    here.tasks.recheck(A.plugin_id)
    here.allowed.add(A.plugin_id)  # granted again at once: the approval has lapsed all the same
    here.tasks.recheck(A.plugin_id)
    assert (await here.ended(runs)).state == "cancelled"
    await until(lambda: here.tasks.get(waits).state == "submitted", "the approval to be withdrawn")
    assert ("task.withdraw", "") in here.actions(waits)
    here.allowed.remove(A.plugin_id)
    here.tasks.recheck(A.plugin_id)
    await here.tasks.drained(A.plugin_id)
    with pytest.raises(Problem, match="it is not active") as refused:
        await here.approve(waits)
    assert refused.value.code == "not_available"
    assert ("task.approve", "not_available") in here.actions(waits)
    assert (await here.run("echo other", B)).state == "done"
    assert here.tasks.get(waits).state == "submitted"
    here.allowed.add(A.plugin_id)
    await here.approve(waits)
    assert (await here.ended(waits)).state == "done"


async def test_approval_survives_restart_while_plugin_may_act(tmp_path):
    """Unknown until the first scan; if it may not act then, the task needs approval again."""
    async with world(tmp_path, plugin_at_once=1) as here:
        await here.approve(await here.submit("sleep 1000"))
        waits = await here.submit("echo ran")
        await here.approve(waits)
    async with world(tmp_path, refusal=permissions.judge(permissions.PluginStanding(seen=False))) as here:
        here.tasks.recheck(A.plugin_id)
        await here.tasks.drained(A.plugin_id)
        assert here.tasks.get(waits).state == "approved"
    tampered = permissions.PluginStanding(active=True, fault="digest_mismatch")
    async with world(tmp_path, refusal=permissions.judge(tampered)) as here:
        await until(lambda: here.tasks.get(waits).state == "submitted", "the approval to be withdrawn")


async def test_tasks_over_concurrency_limits_wait(tmp_path):
    """The limits are in total and per plugin; a plugin at its limit does not delay another one."""
    async with world(tmp_path, total_at_once=2, plugin_at_once=1) as here:
        mine = [await here.submit("sleep 1000") for _ in range(2)]
        other = await here.submit("sleep 1000", B)
        for one in (*mine, other):
            await here.approve(one)
        await until(lambda: here.tasks.get(other).state == "running", "the other's turn")
        assert [here.tasks.get(one).state for one in mine] == ["running", "approved"]
        await here.tasks.cancel(mine[0], by=OPERATOR)
        await until(lambda: here.tasks.get(mine[1]).state == "running", "the next one's turn")
        await here.tasks.cancel_all(by=OPERATOR)


async def test_task_over_quota_is_refused(tmp_path):
    """Tasks that have not ended count. Lists are the plugin's own, newest first, in pages."""
    async with world(tmp_path, plugin_waiting=3, total_waiting=4) as here:
        mine = [await here.submit(f"echo {n}", name=f"n{n}") for n in range(3)]
        with pytest.raises(HostError, match=r"quota_exceeded: expected at most 3 tasks of acme\.a"):
            await here.submit("echo")
        theirs = await here.submit("echo", B)
        with pytest.raises(HostError, match="quota_exceeded: expected at most 4 tasks that"):
            await here.submit("echo", B)
        first = await here.call("task.list", limit=2)
        assert [one["id"] for one in first["tasks"]] == mine[:0:-1]
        rest = await here.call("task.list", limit=2, after=first["next"])
        assert await here.call("task.list", limit=2, before=first["next"]) == rest, "its name until 0.1"
        assert ([one["id"] for one in rest["tasks"]], rest["next"]) == ([mine[0]], None)
        assert "script" not in rest["tasks"][0]
        with pytest.raises(HostError, match="not_found"):
            await here.call("task.get", id=theirs)
        await here.tasks.cancel(mine[0], by=OPERATOR)
        assert [one["id"] for one in (await here.call("task.list", state="cancelled"))["tasks"]] == [mine[0]]
        await here.submit("echo again")
        assert await here.tasks.forget(A.plugin_id) == 4
        assert (await here.call("task.list"))["tasks"] == []


async def test_unapproved_task_expires(tmp_path):
    """It does after `task.expire_s`; ended tasks are kept for days, and up to a number."""
    clock = ManualClock()
    async with world(tmp_path, clock=clock, expire_s=7_200, keep_days=1, keep_items=2) as here:
        late = await here.submit("echo")
        clock.advance(7_100)
        await here.tasks.sweep()
        assert here.tasks.get(late).state == "submitted"
        clock.advance(200)
        await here.tasks.sweep()
        assert (here.tasks.get(late).state, here.tasks.get(late).outcome.code) == ("expired", "expired")
        with pytest.raises(Problem, match="expired"):
            await here.approve(late)
        ended = [late]
        for _ in range(2):
            clock.advance(1)
            ended.append(await here.submit("echo"))
            await here.tasks.cancel(ended[-1], by=OPERATOR)
        await here.tasks.sweep()
        assert [one.id for one in await here.tasks.page()] == ended[:0:-1]
        clock.advance(86_500)
        await here.tasks.sweep()
        assert await here.tasks.page() == []


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"script": "x" * 65_537}, "too_large: script: expected at most 65536"),
        ({"script": "ü" * 32_769}, "too_large"),
        ({"script": " \n"}, "bad_params: script"),
        ({"script": "echo\0"}, "bad_params: script"),
        ({"script": "echo ${secret:TOKEN}"}, "bad_params: script: expected no"),
        ({"targets": ("${secret:TOKEN}",)}, "bad_params: script: expected no"),
        ({"targets": ("a\nb",)}, "bad_params: targets"),
        ({"targets": ("",)}, "bad_params: targets"),
        ({"targets": ("a",) * 33}, "bad_params: targets"),
        ({"timeout_s": 0}, "bad_params: timeout_s"),
        ({"timeout_s": 601}, "bad_params: timeout_s"),
        ({"name": "a b"}, "bad_params: name"),
    ],
)
async def test_bad_task_parameters_are_refused(here, wrong, expected):
    """They are script, targets, timeout and name; an unknown interpreter or parameter is refused when it is decoded."""
    with pytest.raises(HostError, match=expected):
        await here.call("task.submit", **{"interpreter": "sh", "script": "echo", **wrong})
    for more in ({"interpreter": "perl"}, {"user": "root"}):
        with pytest.raises(msgspec.ValidationError):
            await here.call("task.submit", **{"interpreter": "sh", "script": "echo", **more})


async def test_task_fails_without_sandbox(tmp_path):
    """No process is started."""
    spawner = confinements.Spawner(floor="dedicated")
    provided = replace(spawner.probed.provided, level=type(spawner.probed.provided.level).FILTERED)
    spawner.probed = replace(spawner.probed, provided=provided)
    async with world(tmp_path, spawner=spawner) as here:
        ended = await here.run("echo")
    assert (ended.state, ended.outcome.code, spawner.spawned) == ("failed", "sandbox_unavailable", 0)


async def test_task_runs_are_killed_with_the_daemon(tmp_path):
    """After the restart they are `interrupted` and never run again; approved tasks run."""
    spawner = confinements.Spawner()
    async with world(tmp_path, spawner=spawner) as here:
        runs, waits = await here.submit("sleep 1000"), await here.submit("echo ran")
        await here.approve(runs)
        await until(lambda: here.tasks.get(runs).state == "running" and spawner.spawned, "it to run")
        await here.approve(waits)
    async with world(tmp_path, spawner=spawner) as here:
        assert here.tasks.get(runs).state == "interrupted"
        assert (await here.ended(waits)).outcome.stdout == "ran\n"
        with pytest.raises(Problem, match="interrupted"):
            await here.approve(runs)
        assert spawner.spawned == 2
