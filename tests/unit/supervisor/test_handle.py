"""One plugin through the real Supervisor and a real store; only runner and clock are the test's."""

from __future__ import annotations

import asyncio
import os

import pytest

from latticed.host.call import HostError
from latticed.model.errors import Problem
from latticed.model.fault import Fault
from latticed.model.restart import VISITED
from latticed.model.runtime import Health
from latticed.runners.contract import Checkup
from tests.house import bundles, processes, supervisors
from tests.house.in_process import until

HEALTH = {"runtime": {"health": {"interval_s": 10, "timeout_s": 1, "failures": 3}}}
SICK = Checkup(health=Health.UNHEALTHY, message="no answer")
FAULT = Fault("digest_mismatch", "expected 7f, found 91")


@pytest.fixture
async def stand(tmp_path):
    async with supervisors.standing(tmp_path) as found:
        yield found
    assert not +found.driven.running, "the supervisor left something alive"
    assert all(most == 1 for most in found.driven.most.values()), "two instances at once"


async def test_armed_plugin_runs_the_verified_pair(stand):
    """The runner gets the stored pair's bytes and a Gate, not the bundle directory."""
    plugin = await stand.armed(artifact=b"the artifact")
    runtime = stand.runtime(plugin)
    assert (runtime.state, runtime.runner, runtime.health) == ("armed", "driven", "unknown")
    assert runtime.started_at == runtime.updated_at == stand.clock.wall_us()
    assert (runtime.last_error, runtime.stopped_at, runtime.restart_count) == (None, 0, 0)
    assert stand.driven.only(plugin.id).artifact_sha256 == plugin.manifest.digest_sha256
    assert stand.states(plugin) == ["armed"]


async def test_disarm_stops_plugin(stand):
    """It is stopped once, with the grace of the settings; its Gate is closed."""
    plugin = await stand.armed()
    instance = stand.driven.only(plugin.id)
    stand.clock.advance(5)
    stand.supervisor.disarm(plugin)
    await stand.settled(plugin)
    runtime = stand.runtime(plugin)
    assert (runtime.state, runtime.stopped_at, instance.stops) == ("stopped", stand.clock.wall_us(), 1)
    with pytest.raises(HostError, match="service_unavailable"):
        await instance.call("kv.get", key="a")
    await stand.quiet()
    assert stand.states(plugin) == ["armed", "stopped"]


async def test_disarm_with_fault_reports_the_fault(stand):
    """A tampered bundle: failed with its code."""
    plugin = await stand.armed()
    stand.supervisor.disarm(plugin, FAULT)
    await stand.settled(plugin)
    await stand.quiet()
    assert (stand.runtime(plugin).state, stand.runtime(plugin).last_error) == ("failed", FAULT)
    assert stand.states(plugin) == ["armed", "failed:digest_mismatch"]
    stand.supervisor.arm(plugin, supervisors.GRANTED)
    await stand.settled(plugin)
    assert (stand.runtime(plugin).state, stand.runtime(plugin).last_error) == ("armed", None)


async def test_distrusted_plugin_is_killed_without_grace(stand):
    """Its late answers are dropped; it counts as stopped only after host services have drained."""
    graces, quiet = [], asyncio.Event()
    replying, hold = asyncio.Event(), asyncio.Event()

    async def stopping(grace_s):
        graces.append(grace_s)

    async def until_drained(_):
        await quiet.wait()

    stand.supervisor._tools.drained = until_drained
    plugin = await stand.armed()
    instance = stand.driven.only(plugin.id)
    instance.stopping = stopping

    async def invoke(*_):
        replying.set()
        await hold.wait()
        return {"ok": True, "message": "", "result": "too late", "error": None}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(instance), "invoke", invoke)
        asked = asyncio.ensure_future(stand.supervisor.invoke(plugin.id, "act", None))
        await replying.wait()
        stand.supervisor.disarm(plugin, FAULT)
        with pytest.raises(HostError, match="being stopped"):
            await instance.call("kv.get", key="a")
        hold.set()
        with pytest.raises(Problem, match="does not verify"):
            await asked
    await until(lambda: graces)
    assert (graces, stand.runtime(plugin).state, stand.runtime(plugin).last_error) == ([0], "armed", None)
    quiet.set()
    await stand.settled(plugin)
    assert (stand.runtime(plugin).state, stand.runtime(plugin).last_error) == ("failed", FAULT)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Problem("sandbox_failed", "no user namespaces"), "sandbox_failed"),
        (RuntimeError("a bug"), "internal"),
    ],
)
async def test_failed_start_is_retried_with_backoff(stand, error, code):
    """It is tried again after 1 s, then after 2 s; then the breaker opens and there is no further try."""

    async def fail(instance):
        raise error

    stand.driven.starting = fail
    plugin = await asyncio.to_thread(stand.stored)
    stand.supervisor.arm(plugin, supervisors.GRANTED)
    await stand.settled(plugin)
    for attempt, wait_s in ((1, 1.0), (2, 2.0)):
        runtime = stand.runtime(plugin)
        assert (runtime.state, runtime.last_error.code) == ("failed", code)
        assert stand.driven.attempts[plugin.id] == attempt
        assert runtime.next_retry_at == stand.clock.wall_us() + wait_s * 1e6
        await stand.pass_time(wait_s - 0.1)
        assert stand.driven.attempts[plugin.id] == attempt
        await stand.pass_time(0.2)
        await until(lambda attempt=attempt: stand.driven.attempts[plugin.id] == attempt + 1)
        await stand.settled(plugin)
    assert (stand.runtime(plugin).state, stand.runtime(plugin).next_retry_at) == ("failed", 0)
    await stand.pass_time(100_000)
    assert stand.driven.attempts[plugin.id] == 3


async def test_unexpected_start_error_is_not_shown_to_operator(stand):
    """The text of a runner's exception goes to the log; the operator gets its type."""

    async def fail(instance):
        raise RuntimeError("/secret/path")

    stand.driven.starting = fail
    plugin = await asyncio.to_thread(stand.stored)
    stand.supervisor.arm(plugin, supervisors.GRANTED)
    await stand.settled(plugin)
    assert stand.runtime(plugin).last_error.reason == "the runner failed: RuntimeError"


async def test_hanging_start_is_cancelled_at_deadline(tmp_path):
    """It leaves nothing behind and counts as a failure."""
    async with supervisors.standing(tmp_path, start_deadline_s=0.05) as stand:
        stand.driven.starting = lambda instance: asyncio.Event().wait()
        plugin = await asyncio.to_thread(stand.stored)
        stand.supervisor.arm(plugin, supervisors.GRANTED)
        await stand.settled(plugin)
        assert (stand.runtime(plugin).state, stand.runtime(plugin).last_error.code) == ("failed", "start_timeout")
        assert stand.driven.cancelled[plugin.id] == 1
        assert not +stand.driven.running


async def test_disarm_while_starting_cancels_the_start(stand):
    """Disabling does not wait for a start to end or to time out."""
    stand.driven.starting = lambda instance: asyncio.Event().wait()
    plugin = await asyncio.to_thread(stand.stored)
    stand.supervisor.arm(plugin, supervisors.GRANTED)
    await until(lambda: stand.driven.running[plugin.id])
    stand.supervisor.disarm(plugin)
    await stand.settled(plugin)
    assert (stand.runtime(plugin).state, stand.driven.cancelled[plugin.id]) == ("stopped", 1)


async def test_stored_pair_is_verified_at_every_start(stand):
    """A byte changed in the store: not started, failed with the code, and not retried."""
    plugin = await asyncio.to_thread(stand.stored)
    artifact = stand.store.path(plugin.identity) / "artifact"
    os.chmod(artifact, 0o600)
    before = bundles.tamper(artifact)
    stand.supervisor.arm(plugin, supervisors.GRANTED)
    await stand.settled(plugin)
    runtime = stand.runtime(plugin)
    assert (runtime.state, runtime.last_error.code, runtime.next_retry_at) == ("failed", "digest_mismatch", 0)
    await stand.pass_time(100_000)
    assert stand.driven.attempts[plugin.id] == 0
    artifact.write_bytes(before)
    stand.supervisor.arm(plugin, supervisors.GRANTED)
    await stand.settled(plugin)
    assert stand.runtime(plugin).state == "armed"


async def test_exited_plugin_is_restarted_after_backoff(stand):
    """Its Gate is closed and the reason shown meanwhile."""
    plugin = await stand.armed()
    instance = stand.driven.only(plugin.id)
    instance.crash("exited", "status 3")
    runtime = stand.runtime(plugin)
    assert (runtime.state, runtime.last_error) == ("failed", Fault("exited", "status 3"))
    with pytest.raises(HostError, match="service_unavailable"):
        await instance.call("kv.get", key="a")
    await stand.pass_time(1.1)
    await until(lambda: stand.runtime(plugin).state == "armed")
    assert stand.runtime(plugin).restart_count == 1
    assert stand.driven.only(plugin.id) is not instance
    assert instance.stops == 0, "what has ended is not stopped"


async def test_instance_that_exits_while_starting_is_a_failure(stand):
    """The runner returns an instance that has ended already: it must not be armed."""

    async def crash(instance):
        instance.crash("exited", "at once")

    stand.driven.starting = crash
    plugin = await asyncio.to_thread(stand.stored)
    stand.supervisor.arm(plugin, supervisors.GRANTED)
    await stand.settled(plugin)
    await stand.quiet()
    assert (stand.runtime(plugin).state, stand.runtime(plugin).last_error.reason) == ("failed", "at once")
    assert stand.runtime(plugin).next_retry_at


async def test_exit_of_earlier_instance_is_ignored(stand):
    """The old process is reaped late: the new instance stays."""
    plugin = await stand.armed()
    old = stand.driven.only(plugin.id)
    stand.supervisor.arm(plugin, supervisors.GRANTED, afresh=True)
    await stand.settled(plugin)
    old.on_exit("exited", "late")
    assert stand.runtime(plugin).state == "armed"
    assert stand.driven.only(plugin.id) is not old


async def test_long_uptime_resets_the_backoff(stand):
    """The backoff starts over after a healthy period."""
    plugin = await stand.armed()
    for _ in range(5):
        stand.clock.advance(61)
        stand.driven.only(plugin.id).crash()
        assert stand.runtime(plugin).next_retry_at == stand.clock.wall_us() + 1_000_000
        await stand.pass_time(1.1)
        await until(lambda: stand.runtime(plugin).state == "armed")


async def test_health_of_plugin_is_checked_and_shown(stand):
    """It is checked soon after the start, then every interval, from one timer."""
    plugin = await stand.armed(**HEALTH)
    instance = stand.driven.only(plugin.id)
    await stand.pass_time(0.5)
    assert instance.checks == 0
    await stand.pass_time(1.0)
    assert instance.checks == 1
    await stand.pass_time(8.0)
    instance.checks = 0
    await stand.pass_time(2.5)
    assert (instance.checks, stand.runtime(plugin).health, stand.runtime(plugin).message) == (1, "healthy", "well")
    instance.health = Checkup(health=Health.DEGRADED, message="slow")
    await stand.pass_time(11.1)
    assert (instance.checks, stand.runtime(plugin).health, stand.runtime(plugin).message) == (2, "degraded", "slow")


async def test_unhealthy_plugin_is_restarted(stand):
    """After three bad checks in a row it is stopped with its grace, then started again after the backoff."""
    plugin = await stand.armed(**HEALTH)
    instance = stand.driven.only(plugin.id)
    instance.health = SICK
    for _ in range(2):
        await stand.pass_time(10.1)
        assert (stand.runtime(plugin).state, stand.runtime(plugin).health) == ("armed", "unhealthy")
    await stand.pass_time(10.1)
    await stand.settled(plugin)
    runtime = stand.runtime(plugin)
    assert (runtime.state, runtime.last_error.code, instance.stops) == ("failed", "unhealthy", 1)
    await stand.pass_time(1.1)
    await until(lambda: stand.runtime(plugin).state == "armed")
    assert stand.runtime(plugin).health == "unknown"


async def test_health_check_without_result_is_not_counted(stand):
    """Any number of them between bad checks: the third bad one still restarts the plugin."""
    plugin = await stand.armed(**HEALTH)
    instance = stand.driven.only(plugin.id)
    for answer in (SICK, None, None, SICK, None):
        instance.health = answer
        await stand.pass_time(10.1)
        assert (stand.runtime(plugin).state, stand.runtime(plugin).health) == ("armed", "unhealthy")
    instance.health = SICK
    await stand.pass_time(10.1)
    await stand.settled(plugin)
    assert stand.runtime(plugin).last_error.code == "unhealthy"


async def test_health_check_that_raises_counts_as_bad(stand):
    """Any exception counts; its text is shown."""
    plugin = await stand.armed(**HEALTH)

    async def fail():
        raise Problem("broken_line", "expected JSON")

    stand.driven.only(plugin.id).checking = fail
    await stand.pass_time(10.1)
    assert (stand.runtime(plugin).health, stand.runtime(plugin).state) == ("unhealthy", "armed")
    assert "expected JSON" in stand.runtime(plugin).message


async def test_hanging_check_does_not_delay_stop(stand):
    """It has its own timeout, which may be long."""
    plugin = await stand.armed(runtime={"health": {"interval_s": 10, "timeout_s": 86_400}})
    instance = stand.driven.only(plugin.id)
    instance.checking = lambda: asyncio.Event().wait()
    await stand.pass_time(10.1)
    assert instance.checks == 1
    stand.supervisor.disarm(plugin)
    await stand.settled(plugin)
    assert stand.runtime(plugin).state == "stopped"


async def test_check_that_fails_while_cancelled_logs_no_error(stand):
    """A one-shot plugin's check raises plugin_gone when the plugin is stopped meanwhile: that is no error."""
    plugin = await stand.armed(**HEALTH)

    async def gone():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise Problem("plugin_gone", "the plugin was stopped meanwhile") from None

    stand.driven.only(plugin.id).checking = gone
    await stand.pass_time(10.1)
    stand.supervisor.disarm(plugin)
    await stand.settled(plugin)
    assert stand.runtime(plugin).state == "stopped"


async def test_hanging_check_does_not_delay_shutdown(tmp_path):
    """Leaving the supervisor returns at once."""
    async with asyncio.timeout(processes.PATIENCE_S):
        async with supervisors.standing(tmp_path) as stand:
            plugin = await stand.armed(runtime={"health": {"interval_s": 10, "timeout_s": 86_400}})
            stand.driven.only(plugin.id).checking = lambda: asyncio.Event().wait()
            await stand.pass_time(10.1)


async def test_health_check_that_times_out_is_unhealthy(stand):
    """The timeout is the manifest's."""
    plugin = await stand.armed(runtime={"health": {"interval_s": 10, "timeout_s": 1}})
    stand.driven.only(plugin.id).checking = lambda: asyncio.Event().wait()
    await stand.pass_time(10.1)
    await until(lambda: stand.runtime(plugin).health == "unhealthy")
    assert stand.runtime(plugin).message == "no answer within 1 s"


async def test_stop_that_raises_counts_as_stopped(stand):
    """The runner's error is logged, and the handle stays usable."""
    plugin = await stand.armed()

    async def fail(grace_s):
        assert grace_s == 5.0
        raise RuntimeError("a bug")

    stand.driven.only(plugin.id).stopping = fail
    stand.supervisor.disarm(plugin)
    await stand.settled(plugin)
    assert stand.runtime(plugin).state == "stopped"
    stand.supervisor.arm(plugin, supervisors.GRANTED)
    await stand.settled(plugin)
    assert stand.runtime(plugin).state == "armed"


async def test_no_instance_starts_while_a_stop_hangs(stand):
    """There are never two instances at once; its Gate is closed already, and other plugins are not delayed."""
    plugin = await stand.armed()
    instance, released = stand.driven.only(plugin.id), asyncio.Event()
    instance.stopping = lambda grace_s: released.wait()
    stand.supervisor.disarm(plugin)
    stand.supervisor.arm(plugin, supervisors.GRANTED)
    await stand.supervisor.settled(plugin.id, within_s=0.05)
    assert stand.driven.attempts[plugin.id] == 1
    with pytest.raises(HostError, match="service_unavailable"):
        await instance.call("kv.get", key="a")
    await stand.armed(id="acme.other")
    released.set()
    await stand.settled(plugin)
    assert (stand.runtime(plugin).state, stand.driven.attempts[plugin.id]) == ("armed", 2)


async def test_arming_other_identity_replaces_instance(stand):
    """The old instance ends, the new one gets the new pair."""
    old = await stand.armed(artifact=b"one")
    instance = stand.driven.only(old.id)
    new = await asyncio.to_thread(lambda: stand.stored(artifact=b"two", version="1.1.0"))
    stand.supervisor.arm(new, supervisors.GRANTED)
    await stand.settled(new)
    assert instance.stops == 1
    assert stand.driven.only(old.id).artifact_sha256 == new.manifest.digest_sha256


async def test_arming_again_keeps_instance(stand):
    """Each rescan of the disk arms the plugin again; it is not started a second time."""
    plugin = await stand.armed()
    stand.supervisor.arm(plugin, supervisors.GRANTED)
    await stand.settled(plugin)
    assert stand.driven.attempts[plugin.id] == 1


async def test_grants_change_for_running_plugin(stand):
    """They change at once, in the Gate that it has; the next instance starts with them."""
    plugin = await stand.armed()
    instance = stand.driven.only(plugin.id)
    with pytest.raises(HostError, match="service_unavailable"):  # allowed, but no such service here
        await instance.call("kv.get", key="a")
    stand.supervisor.regrant(plugin.id, frozenset())
    with pytest.raises(HostError, match="capability_not_granted"):
        await instance.call("kv.get", key="a")
    instance.crash()
    await stand.pass_time(1.1)
    await until(lambda: stand.runtime(plugin).state == "armed")
    with pytest.raises(HostError, match="capability_not_granted"):
        await stand.driven.only(plugin.id).call("kv.get", key="a")


async def test_invoke_needs_armed_plugin(stand):
    """It is not_armed otherwise, for any reason."""
    plugin = await stand.armed()
    assert (await stand.supervisor.invoke(plugin.id, "hello", {"a": 1}))["result"] == {"a": 1}
    stand.supervisor.disarm(plugin)
    await stand.settled(plugin)
    for plugin_id in (plugin.id, "acme.unknown"):
        with pytest.raises(Problem, match="not_armed"):
            await stand.supervisor.invoke(plugin_id, "hello", {})


async def test_failure_after_outside_request_is_shown_and_opens_no_breaker(stand):
    """It comes during the request or after it, not with an operator's invocation; a new instance has had no request."""
    plugin = await stand.armed()
    for _ in range(20):
        await stand.supervisor.invoke(plugin.id, "hello", {}, by_outsider=True)
        stand.driven.only(plugin.id).crash("exited", "status 3")
        assert stand.runtime(plugin).last_error.reason == f"status 3 {VISITED}"
        await stand.pass_time(15.1)
        await until(lambda: stand.runtime(plugin).state == "armed")
    assert stand.runtime(plugin).restart_count == 20
    for times in range(1, 4):
        await stand.supervisor.invoke(plugin.id, "hello", {})
        stand.driven.only(plugin.id).crash("exited", "status 3")
        assert stand.runtime(plugin).last_error.reason == "status 3"
        await stand.pass_time(40)
        await until(lambda times=times: stand.runtime(plugin).state == ("armed" if times < 3 else "failed"))
    assert stand.runtime(plugin).next_retry_at == 0


async def test_bad_health_after_outside_request_opens_no_breaker(stand):
    """A plugin kept busy by outside requests is restarted each time."""
    plugin = await stand.armed(runtime={"health": {"interval_s": 10, "timeout_s": 1, "failures": 1}})
    for times in range(1, 8):
        stand.driven.only(plugin.id).health = SICK
        await stand.supervisor.invoke(plugin.id, "hello", {}, by_outsider=True)
        await stand.pass_time(1.2)
        await stand.settled(plugin)
        assert stand.runtime(plugin).last_error == Fault(
            code="unhealthy", reason=f"unhealthy 1 times in a row: no answer {VISITED}"
        )
        await stand.pass_time(15.1)
        await until(lambda times=times: stand.runtime(plugin).restart_count == times)
        await until(lambda: stand.runtime(plugin).state == "armed")


async def test_drop_removes_only_the_handle_of_a_stopped_plugin(stand):
    plugin = await stand.armed()
    stand.supervisor.drop(plugin.id)
    assert stand.runtime(plugin).state == "armed"
    stand.supervisor.disarm(plugin)
    await stand.settled(plugin)
    stand.supervisor.drop(plugin.id)
    assert stand.supervisor._handles == {}


async def test_disarm_of_never_armed_plugin_makes_no_handle(stand):
    """An installed plugin has no runtime."""
    plugin = await asyncio.to_thread(stand.stored)
    stand.supervisor.disarm(plugin)
    assert stand.supervisor._handles == {}
    await stand.quiet()
    assert stand.events == []


async def test_stop_does_not_wait_for_the_record(tmp_path):
    """A plugin is stopped though nothing can be written."""
    async with supervisors.standing(tmp_path, record_fails=True) as stand:
        plugin = await stand.armed()
        stand.supervisor.disarm(plugin, FAULT)
        await stand.settled(plugin)
        assert stand.runtime(plugin).state == "failed"


async def test_leaving_supervisor_stops_every_instance(tmp_path):
    """Instances are armed, wait for a retry, or are starting."""
    async with supervisors.standing(tmp_path) as stand:
        await stand.armed()
        other = await stand.armed(id="acme.waits")
        stand.driven.only(other.id).crash()
        stand.driven.starting = lambda instance: asyncio.Event().wait()
        third = await asyncio.to_thread(lambda: stand.stored(id="acme.starts"))
        stand.supervisor.arm(third, supervisors.GRANTED)
        await until(lambda: stand.driven.attempts[third.id])
    assert not +stand.driven.running
    assert {handle.runtime().state.value for handle in stand.supervisor._handles.values()} <= {"stopped"}
