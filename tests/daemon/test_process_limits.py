"""Each limit on a process plugin has an error of its own; the daemon answers meanwhile, and no process is left."""

from __future__ import annotations

import itertools
import threading

import pytest

from tests.house import bombs, hosting, peers, raw_http

pytestmark = [pytest.mark.daemon, pytest.mark.slow]

SETTINGS = """
[supervision]
backoff_base_s = 0.05
backoff_ceiling_s = 0.1
breaker_failures = 1000
stop_grace_s = 1.0
[plugin_limits]
memory_mib = 48
max_memory_mib = 64
processes = 16
max_processes = 24
open_files = 32
max_open_files = 48
scratch_mib = 1
scratch_files = 32
max_cpu_percent = 15
invoke_timeout_s = 30
max_invoke_timeout_s = 30
invocations = 2
stdout_kib = 16
max_stdout_kib = 64
stderr_kib = 64
host_calls = 8
"""
FEATURES = {"sandbox": {"features": ["processes", "threads", "workdir"]}}
PROTOCOLS = {"speaking": "latticed-stdio-1", "one-shot": "stdio-json-v1"}
BOTH = pytest.mark.parametrize("way", PROTOCOLS)


class Arena(hosting.Host):
    """Arms plugins that exhaust a resource, each under its own name."""

    def armed(self, way: str, artifact: bytes = bombs.BOMBS, **limits: int) -> str:
        runtime = {"protocol": PROTOCOLS[way], "limits": limits, **FEATURES}
        return self.up(f"acme.{way}-{next(_numbers)}", artifact, runtime=runtime)


_numbers = itertools.count()


@pytest.fixture(scope="module")
def arena():
    with hosting.hosting(SETTINGS, probed=True) as host:
        yield Arena(daemon=host.daemon, author=host.author)


@pytest.fixture
def host(arena):
    """The arena, whose daemon must not block during the test; afterwards all is stopped, and no process is left."""
    with arena.answering(), arena.daemon.turns.short():
        yield arena
    for one in arena.daemon.get("/api/plugins").json():
        if one["status"] == "active":
            arena.daemon.set_status("disabled", one["id"])
    arena.until_only()


def failed(answer: raw_http.Answer, code: str, status: int = 502) -> str:
    assert (answer.status, answer.code) == (status, code), answer
    return str(answer.json()["detail"])


@BOTH
def test_plugin_over_its_memory_limit_is_out_of_memory(host, way):
    """The problem has its last output; a plugin that was running is started again."""
    plugin_id = host.armed(way)
    assert "no more memory" in failed(host.invoke(plugin_id, "memory"), "out_of_memory")
    if way == "speaking":
        host.until_story(plugin_id, "armed", "failed out_of_memory", "armed")
    assert host.result(plugin_id, "nothing") == "alive"


@BOTH
def test_forking_beyond_the_limit_gets_eagain(host, way):
    """The limit is the number in the settings."""
    found = host.result(host.armed(way), "forks")
    assert found["errno"] == "EAGAIN"
    assert 0 < found["count"] < 16


def test_processes_left_by_an_invocation_are_killed(host):
    """The protocol is stdio-json-v1, where each invocation is a process."""
    plugin_id = host.armed("one-shot")
    host.result(plugin_id, "forks")
    host.until_only()


@BOTH
def test_fork_bomb_ends_by_the_invocations_time_limit(host, way):
    """The plugin can be restarted afterwards."""
    plugin_id = host.armed(way, invoke_timeout_s=1)
    failed(host.invoke(plugin_id, "bomb"), "deadline_exceeded", 503)
    assert host.daemon.post(f"/api/plugins/by-id/{plugin_id}/restart").status == 200
    assert host.result(plugin_id, "nothing") == "alive"


@BOTH
def test_opening_too_many_files_gets_emfile(host, way):
    """The plugin keeps running."""
    plugin_id = host.armed(way)
    found = host.result(plugin_id, "files")
    assert found["errno"] == "EMFILE"
    assert 16 <= found["count"] < 32
    assert host.result(plugin_id, "nothing") == "alive"


@BOTH
def test_starting_threads_beyond_the_task_limit_fails(host, way):
    """They count with processes; the plugin keeps running."""
    plugin_id = host.armed(way)
    found = host.result(plugin_id, "threads")
    assert "can't start new thread" in found["error"]
    assert 0 < found["count"] < 16
    assert host.result(plugin_id, "nothing") == "alive"


@BOTH
@pytest.mark.parametrize(("kind", "most"), [("disk", 16), ("inodes", 32)])
def test_filling_scratch_gets_enospc(host, way, kind, most):
    """The last output of the plugin says so; the next instance begins with an empty scratch directory."""
    plugin_id = host.armed(way)
    for _ in range(2):
        detail = failed(host.invoke(plugin_id, kind), "exited")
        assert "exited 1; it said last: ENOSPC at " in detail
        assert most - 5 < int(detail.rpartition(" ")[2]) <= most
        host.daemon.until_state("armed", plugin_id)


@BOTH
def test_too_large_a_file_gets_efbig(host, way):
    """The limit is the size of the whole scratch directory, holes counted."""
    plugin_id = host.armed(way)
    assert "it said last: EFBIG at 17" in failed(host.invoke(plugin_id, "huge_file"), "exited")


@pytest.mark.parametrize(("wanted", "kib"), [({}, 16), ({"stdout_kib": 4}, 4), ({"stdout_kib": 1_000_000}, 64)])
def test_too_much_stdout_is_output_too_large(host, wanted, kib):
    """One byte more than the limit is too much; the manifest may ask for less, or for as much as the settings allow."""
    plugin_id = host.armed("one-shot", bombs.WIDE_ONE_SHOT, **wanted)
    assert host.result(plugin_id, "go", kib << 10) == "wide"
    detail = failed(host.invoke(plugin_id, "go", (kib << 10) + 1), "output_too_large")
    assert f"at most {kib << 10} bytes" in detail


def test_too_large_a_message_ends_the_session(host):
    """message_too_large from one byte more on; the plugin is restarted."""
    plugin_id = host.armed("speaking", peers.WIDE)
    assert host.result(plugin_id, "go", 1 << 20) == "wide"
    assert "1048576 bytes" in failed(host.invoke(plugin_id, "go", (1 << 20) + 1), "message_too_large")
    host.until_story(plugin_id, "armed", "failed message_too_large", "armed")


def test_excess_stderr_is_dropped_with_a_warning(host):
    """One warning; the invocation succeeds all the same."""
    plugin_id = host.armed("one-shot")
    assert host.result(plugin_id, "stderr", 1 << 20) == "written"
    (warning,) = host.lines(plugin_id, "daemon")
    assert "more than 65536 bytes on stderr in one invocation" in warning
    assert host.lines(plugin_id) == ["y" * 1023] * 64


def test_flood_on_stderr_is_kept_in_bounded_memory(host):
    """The newest lines are kept; the plugin is slowed down but answers, and so does the daemon."""
    plugin_id = host.armed("speaking")
    before = host.daemon.memory_kib()
    host.result(plugin_id, "flood")
    full = (256 << 10) // (1023 + 100)
    host.daemon.until(lambda: len(host.lines(plugin_id)) >= full, "a full ring")
    for _ in range(5):
        assert host.result(plugin_id, "nothing") == "alive"
    assert len(host.lines(plugin_id)) <= full + 1
    assert host.daemon.memory_kib() - before < 32 << 10


@BOTH
def test_too_long_an_invocation_is_deadline_exceeded(host, way):
    """A long-running plugin keeps running, as the same process."""
    plugin_id = host.armed(way, invoke_timeout_s=1)
    before = host.runtime(plugin_id).get("pid")
    assert "within 1 s" in failed(host.invoke(plugin_id, "sleep"), "deadline_exceeded", 503)
    assert (host.runtime(plugin_id)["state"], host.runtime(plugin_id).get("pid")) == ("armed", before)


def test_too_many_host_calls_of_an_invocation_are_refused(host):
    """too_many_host_calls; as many as allowed are answered."""
    plugin_id = host.armed("one-shot")
    assert host.result(plugin_id, "calls", 8) == {"ok": 8}
    assert "at most 8" in failed(host.invoke(plugin_id, "calls", 9), "too_many_host_calls")


@BOTH
def test_too_frequent_host_calls_are_rate_limited(host, way):
    """The limit is the manifest's own; the denials are audited."""
    plugin_id = host.armed(way, host_calls_per_s=2)
    found = host.result(plugin_id, "calls", 8)
    assert found["ok"] >= 2
    assert found["rate_limited"] >= 1
    denied = host.daemon.events(action="host.call", actor=f"plugin:{plugin_id}", decision="deny")
    assert {event["code"] for event in denied} == {"rate_limited"}


@BOTH
def test_too_many_invocations_at_once_are_busy(host, way):
    """Two are accepted; the running ones fail with a code when the plugin is stopped."""
    answers = []
    plugin_id = host.armed(way)
    sleepers = [threading.Thread(target=lambda: answers.append(host.invoke(plugin_id, "sleep"))) for _ in range(2)]
    for sleeper in sleepers:
        sleeper.start()
    try:
        under_way = {"action": "plugin.invoke", "target": plugin_id}
        host.daemon.until(lambda: len(host.daemon.events(**under_way)) == 2, "two invocations under way")
        assert "at most 2" in failed(host.invoke(plugin_id, "nothing"), "busy", 429)
    finally:
        assert host.daemon.set_status("disabled", plugin_id).json()["runtime"]["state"] == "stopped"
        for sleeper in sleepers:
            sleeper.join()
    for answer in answers:
        assert "stopped meanwhile" in failed(answer, "plugin_gone")


@BOTH
def test_limits_of_a_manifest_are_capped_by_settings(host, way):
    """Where the manifest has none, the settings' defaults apply; too low a limit is raised to the minimum."""
    wanted = {
        (48, 32, 16): {},
        (64, 48, 24): {"memory_mib": 1_000_000, "open_files": 1_000_000, "processes": 1_000_000},
        (40, 16, 4): {"memory_mib": 40, "open_files": 1, "processes": 4},
    }
    for (memory, files, tasks), limits in wanted.items():
        found = host.result(host.armed(way, **limits), "limits")
        assert found["RLIMIT_DATA"] == [memory << 20] * 2
        assert found["RLIMIT_NOFILE"] == [files] * 2
        assert found["RLIMIT_NPROC"] == [tasks + 1] * 2  # process 1 of its namespace counts
        assert found["RLIMIT_FSIZE"] == [1 << 20] * 2


@pytest.mark.parametrize("whose", ["own", "child"])
def test_too_much_processor_time_is_cpu_exceeded(host, whose):
    """There is no cgroup, which would slow the plugin down instead; its children's time counts."""
    if "cgroup" in host.daemon.get("/api/health").json()["sandbox"]["features"]:
        pytest.skip("here a cgroup slows it down instead")
    runtime = {"limits": {"cpu_percent": 1_000}, **FEATURES}
    hog = host.up(f"acme.hog-{whose}", peers.hog(whose), runtime=runtime)
    host.daemon.until(lambda: "failed cpu_exceeded" in host.story(hog), "the hog to be found out")
    event = next(one for one in host.daemon.events(action="plugin.runtime", target=hog) if one["code"])
    assert "at most 15 % of a core over 10 s" in event["reason"]
