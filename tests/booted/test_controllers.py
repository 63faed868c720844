"""Limits of whole trees of processes, under a kernel that has the controllers: in QEMU, as containers have none."""

from __future__ import annotations

import errno
import json

import pytest

from tests.house import long, machines, virtual

GREEDY = b"""#!/usr/bin/env python3
import json, os, sys, time
asked = json.load(sys.stdin)
action, result = asked["action"], None
if action == "memory":
    # Two processes, each of them within the limit.
    for turn in range(2):
        if os.fork() == 0 or turn:
            kept = bytearray(40 << 20)
            kept[::4096] = bytes(len(kept[::4096]))
            time.sleep(60)
elif action == "tasks":
    made = 0
    try:
        while os.fork():
            made += 1
        time.sleep(60)
    except OSError as error:
        result = [made, error.errno]
elif action == "cpu":
    until, other = time.monotonic() + 3, os.fork()
    while time.monotonic() < until:
        pass
    if not other:
        os._exit(0)
    os.wait()
elif action == "wait":
    time.sleep(asked["payload"])
    result = "waited"
print(json.dumps({"ok": True, "result": result}), flush=True)
os._exit(0)
"""
RUNTIME = {
    "protocol": "stdio-json-v1",
    "limits": {"memory_mib": 64, "processes": 12, "cpu_percent": 20, "invoke_timeout_s": 120},
    "sandbox": {"level": "isolated", "features": ["processes", "threads"]},
}
SLOW = """
[plugin_limits]
max_invoke_timeout_s = 120

[supervision]
start_deadline_s = 120
"""
"""An emulated processor is some twenty times as slow."""
CHECK = """
import concurrent.futures, json, pathlib, re, subprocess, time
from latticed.client.control import ControlClient
from latticed.model.errors import Problem

UNIT = "latticed.service"
GROUPS = pathlib.Path("/sys/fs/cgroup/system.slice/latticed.service/plugins")
LIMITS = ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max")
api = ControlClient("/run/latticed/control.sock", connect_s=600, read_s=600)
pool = concurrent.futures.ThreadPoolExecutor()

def run(*words):
    return subprocess.run(words, capture_output=True, text=True).stdout.strip()

def shown(*names):
    return [run("systemctl", "show", "--value", "--property", name, UNIT) for name in names]

def told(*matches):
    return run("journalctl", "--quiet", "--no-pager", "--output=cat", *matches)

def info(plugin):
    return api.get("plugins", "by-id", plugin)

def invoked(plugin, action, payload=None):
    try:
        return api.post("plugins", "by-id", plugin, "invoke", body={"action": action, "payload": payload})
    except Problem as problem:
        return {"ok": False, "message": problem.code + ": " + problem.reason}

def first(answer):
    # The first true answer, asked for over and over: the test's deadline is that of the machine.
    while not (found := answer()):
        time.sleep(0.1)
    return found

def up():
    for one in ("acme.greedy", "acme.other"):
        first(lambda: info(one)["plugin"]["runtime"]["health"] == "healthy")

def read(path):
    try:
        return path.read_text().strip()
    except OSError:
        return ""  # it has ended

def child(plugin):
    # The group of the process that carries out an action: with limits, and with its process in it.
    ready = [one for one in GROUPS.glob(plugin + "/child-*") if read(one / "cgroup.procs")]
    return next((one for one in ready if not read(one / "cpu.max").startswith("max")), None)

def killed_for_memory():
    # [the group whose limit was reached, the group of the process that was chosen]
    return re.findall(r"oom_memcg=([^,]*),task_memcg=([^,]*),", told("--dmesg", "--grep=oom-kill:"))

def throttled(plugin):
    counted = re.search(r"nr_throttled ([0-9]+)", read(group / "cpu.stat")) if (group := child(plugin)) else None
    return counted and int(counted[1])

said = {}
up()
said["before"] = shown("MainPID", "NRestarts", "ActiveState")

asking = pool.submit(invoked, "acme.greedy", "wait", 20)
group = first(lambda: child("acme.greedy"))
said["files"] = {name: read(group / name) for name in LIMITS}
said["info"] = info("acme.greedy")
asking.result()

asking = pool.submit(invoked, "acme.greedy", "cpu")
said["throttled"] = first(lambda: throttled("acme.greedy"))
asking.result()

said["tasks"] = invoked("acme.greedy", "tasks")

other = pool.submit(invoked, "acme.other", "wait", 60)
first(lambda: child("acme.other"))
said["memory"] = invoked("acme.greedy", "memory")
said["other"] = other.result()
said["killed"] = killed_for_memory()
said["noticed"] = told("_PID=1", "--unit", UNIT)
said["after"] = shown("MainPID", "NRestarts", "ActiveState")

# The daemon itself, which systemd starts again and again until it has room.
subprocess.run(["systemctl", "set-property", "--runtime", UNIT, "MemoryMax=6M"])
said["ended"] = first(lambda: told("_PID=1", "--unit", UNIT, "--grep=status=9/KILL"))
subprocess.run(["systemctl", "set-property", "--runtime", UNIT, "MemoryMax=infinity"])
said["daemon_killed"] = [one for one in killed_for_memory() if one not in said["killed"]]
up()
said["again"] = invoked("acme.other", "wait", 0)
said["audit"] = api.get("audit", "verify", query={"whole": 1})["ok"]
said["by_now"] = shown("MainPID", "NRestarts", "ActiveState")
print(json.dumps(said))
"""

pytestmark = pytest.mark.timeout(6_000)

if long.LONG:  # three minutes of processor time

    @pytest.fixture(scope="module")
    def told(tmp_path_factory):
        """What the check in the virtual machine found; its plugins were installed before it was booted."""
        if packages := virtual.missing():
            pytest.fail(f"this needs QEMU: apt install {' '.join(packages)}", pytrace=False)
        home = tmp_path_factory.mktemp("virtual")
        with machines.booted(virtual.SUITE, home) as machine:
            machine.install()
            machine.write("/etc/latticed/latticed.toml", machines.SETTINGS + SLOW)
            machine.write("/root/check.py", CHECK)
            machine.check("systemctl", "enable", "--now", *machines.SOCKETS)
            machine.check("systemctl", "enable", "latticed.service")
            for name in ("acme.greedy", "acme.other"):
                machine.drop(name, GREEDY, v2=True, runtime=RUNTIME)
                machine.check("latticectl", "install", name)
                machine.check("latticectl", "activate", name)
            machine.check("systemctl", "stop", "latticed.service")
            machine.power_off()
        said = virtual.run(home / "upper", "python3 /root/check.py", home).splitlines()[-1]
        print(said)
        return json.loads(said)

    def test_groups_have_the_limits_and_show_what_is_used(told):
        assert told["info"]["plugin"]["runtime"]["sandbox"] == "isolated+cgroup"
        assert told["files"] == {
            "memory.max": str(64 << 20),
            "memory.swap.max": "0",
            "memory.oom.group": "1",
            "pids.max": "13",  # and a process of latticed's own
            "cpu.max": "20000 100000",
        }
        used = told["info"]["resources"]
        assert set(used["pressure"]) == {"cpu", "memory", "io"}
        assert 0 < used["memory_bytes"] <= 64 << 20

    def test_tree_above_its_memory_limit_is_killed_and_nothing_else(told):
        """Two processes, each of them within the limit. Another plugin and the daemon go on: OOMPolicy=continue."""
        assert "killed by SIGKILL (out of memory)" in json.dumps(told["memory"])
        assert told["other"]["result"] == "waited"
        groups = {group for pair in told["killed"] for group in pair}
        assert len(groups) == 1, groups
        assert "/latticed.service/plugins/acme.greedy/child-" in groups.pop()
        assert told["after"] == told["before"], "the same process, and active"
        assert "killed by the OOM killer" in told["noticed"]

    def test_fork_beyond_the_limit_of_processes_is_refused(told):
        made, number = told["tasks"]["result"]
        assert (made + 1, number) == (12, errno.EAGAIN)

    def test_tree_above_its_share_of_the_processor_is_throttled(told):
        assert told["throttled"] > 0

    def test_daemon_that_is_killed_for_memory_is_started_again(told):
        """For the limit of its unit, as the kernel says: its plugins are back, its record is whole."""
        assert "status=9/KILL" in told["ended"]
        assert {group for group, _ in told["daemon_killed"]} == {"/system.slice/latticed.service"}
        assert told["by_now"][0] not in {told["before"][0], "0"}
        assert told["by_now"][2] == "active"
        assert told["again"]["result"] == "waited"
        assert told["audit"] is True
