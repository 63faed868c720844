"""The packaged unit under a real systemd as PID 1 and a real journald, of Debian 12 and 13."""

from __future__ import annotations

import json
import re

import pytest

from tests.house import bundles, machines, processes

EXPOSURE = {"bookworm": 23, "trixie": 22}
"""Tenths that `systemd-analyze security` may give the daemon's unit; 9.0 would be none of its hardening."""
METRICS = """
import socket
with socket.socket(socket.AF_UNIX) as asking:
    asking.connect("/run/latticed/control.sock")
    asking.sendall(b"GET /metrics HTTP/1.0\\r\\n\\r\\n")
    print(b"".join(iter(lambda: asking.recv(65536), b"")).decode())
"""
PAUSE = (
    *("org.freedesktop.systemd1", "/org/freedesktop/systemd1/unit/latticed_2eservice"),
    *("org.freedesktop.systemd1.Service", "RestartUSecNext"),
)
"""How long systemd waits before the next start (org.freedesktop.systemd1(5)), in microseconds."""
HELD = "/etc/systemd/system/latticed.service.d/test.conf"


def active(machine):
    return machine.property("latticed.service", "ActiveState") == "active"


def until_again(machine, before):
    """Wait for another main process than `before`, which answers; its pid."""

    def again():
        pid = machine.property("latticed.service", "MainPID")
        return pid if pid not in {"0", before} and active(machine) else None

    return processes.until(again, what="another daemon", deadline_s=machines.BOOT_S)


@pytest.fixture
def unit(machine):
    """Run the daemon with lines added to its unit, as `systemctl edit` does; as it was afterwards."""

    def edited(*lines):
        machine.write(HELD, "\n".join(("[Service]", *lines, "")))
        machine.check("systemctl", "daemon-reload")
        return machine.run("systemctl", "restart", "latticed.service")

    yield edited
    machine.check("rm", "-f", HELD)
    machine.check("systemctl", "daemon-reload")
    machine.run("systemctl", "reset-failed", "latticed.service")
    machine.check("systemctl", "restart", "latticed.service")


def test_machine_is_up_with_the_systemd_of_its_suite(machine):
    assert machine.check("ps", "-o", "comm=", "-p", "1").strip() == "systemd"
    assert machine.check("systemctl", "--version").split()[1] == str(machines.VERSIONS[machine.suite])
    assert machine.journal("_PID=1")
    assert machine.check("ip", "-brief", "link").split()[0] == "lo", "no way out"


def test_daemon_is_started_by_its_socket_ready_and_in_the_journal(machine):
    """The first client waits in the socket until it is answered. The heads in the journal come from its reader, as the
    daemon may not read it.
    """
    machine.run("systemctl", "stop", "latticed.service", "latticed-journal.service")
    assert "latticed" in machine.check("latticectl", "version")
    # It answers before it says READY=1.
    processes.until(lambda: active(machine), what="the unit to be active", deadline_s=machines.BOOT_S)
    pid = machine.property("latticed.service", "MainPID")
    (entry,) = machine.until_logged("_SYSTEMD_UNIT=latticed.service", "LATTICED_EVENT=daemon_ready", f"_PID={pid}")
    assert entry["SYSLOG_IDENTIFIER"] == "latticed"
    assert machine.check("ps", "-o", "user=", "-p", pid).strip() == "latticed"
    assert machine.journal("LATTICED_EVENT=journal_not_read", f"_PID={pid}") == []
    assert machine.property("latticed-journal.service", "ActiveState") == "active"


def test_units_pass_systemds_own_checks(machine):
    """Its warnings go to stderr, with exit status 0."""
    units = [f"/etc/systemd/system/{one}" for one in machines.UNITS]
    verified = machine.run("systemd-analyze", "verify", *units)
    assert (verified.returncode, verified.stderr) == (0, "")
    exposed, judge = EXPOSURE[machine.suite], ("systemd-analyze", "security", "--no-pager", "latticed.service")
    machine.check(*judge, f"--threshold={exposed}")
    assert machine.run(*judge, f"--threshold={exposed - 1}").returncode != 0, "lower it here"


def test_plugin_is_isolated_within_the_hardened_unit(machine):
    """In both suites, in a cgroup of its own below the unit's."""
    machine.drop("acme.sleeper", machines.SLEEPER)
    machine.check("latticectl", "install", "acme.sleeper")
    machine.check("latticectl", "activate", "acme.sleeper")
    given = json.loads(machine.check("latticectl", "info", "acme.sleeper", "--format", "json"))["plugin"]["runtime"][
        "sandbox"
    ]
    assert given == "isolated+cgroup"
    assert json.loads(machine.check("latticectl", "invoke", "acme.sleeper", "sleep", "0"))["slept"] == 0


def test_children_are_the_daemons_own(machine):
    """With no process in between, and process 1 of their namespace."""
    machine.drop("acme.answers", bundles.ARTIFACT, v2=True)
    machine.check("latticectl", "install", "acme.answers")
    machine.check("latticectl", "activate", "acme.answers")
    runtime = json.loads(machine.check("latticectl", "info", "acme.answers", "--format", "json"))["plugin"]["runtime"]
    pid, child = machine.property("latticed.service", "MainPID"), runtime["pid"]
    status = machine.check("cat", f"/proc/{child}/status")
    assert re.search(rf"^PPid:\t{pid}$", status, re.MULTILINE)
    assert re.search(rf"^NSpid:\t{child}\t1$", status, re.MULTILINE)
    assert machine.check("cat", f"/proc/{pid}/task/{pid}/children").split() == [str(child)]


def test_plugin_has_a_group_of_its_name_which_tells_what_it_uses(machine):
    """It is where systemd-cgls shows it, with what the plugin runs in it, and gone with the last of that."""
    group = f"/sys/fs/cgroup{machine.property('latticed.service', 'ControlGroup')}/plugins/acme.sleeper"
    with machine.started("latticectl", "invoke", "acme.sleeper", "sleep", "60") as asking:
        # It is in its group before its program is, and has no memory then.
        used = processes.until(
            lambda: (found := resources(machine))["memory_bytes"] > 1 << 20 and found,
            what="its program's memory to be counted",
            deadline_s=machines.BOOT_S,
        )
        assert machine.run("sh", "-c", f"cat {group}/child-*/cgroup.procs").stdout != ""
        assert used["cpu_s"] > 0
        assert used["tasks"] >= 1
        if machine.run("test", "-e", f"{group}/cpu.pressure").returncode == 0:
            assert set(used["pressure"]) == {"cpu", "memory", "io"}
        counted = machine.check("python3", "-P", "-c", METRICS)
        assert re.search(r'^latticed_plugin_cpu_seconds_total\{plugin="acme.sleeper"\} 0\.\d+$', counted, re.MULTILINE)
        assert re.search(r'^latticed_plugin_tasks\{plugin="acme.sleeper"\} [1-9]', counted, re.MULTILINE)
        machine.check("latticectl", "restart", "acme.sleeper")
        asking.wait(machines.BOOT_S)
    assert machine.run("test", "-e", group).returncode != 0
    assert resources(machine)["tasks"] == 0


def resources(machine):
    return json.loads(machine.check("latticectl", "info", "acme.sleeper", "--format", "json"))["resources"]


def test_secrets_are_sealed_with_the_key_that_the_unit_loads(machine):
    machine.check("latticectl", "secret", "set", "TOKEN", stdin="a value of the operator")
    assert "TOKEN" in machine.check("latticectl", "secret", "list")
    assert machine.run("sh", "-c", "ls /etc/latticed/secrets.key").returncode != 0


def test_journal_vouches_for_the_audit_record(machine):
    """By heads that journald has of the daemon's unit: what others write to the journal does not count, and an export
    from which newer events were cut is found out.
    """
    # The machine's state may have been replaced by tests before.
    since = machine.check("date", "--utc", "+%FT%T.%6NZ").strip()
    machine.check("latticectl", "secret", "set", "OLDER", stdin="a decision")
    machine.check("systemctl", "restart", "latticed.service")
    machine.write("/root/old.ndjson", machine.check("latticectl", "audit", "export"))
    told = machine.until_logged("_SYSTEMD_UNIT=latticed.service", "LATTICED_EVENT=audit_head_signed")[-1]["MESSAGE"]
    forged = re.sub(r"seq=\d+", "seq=999999", told)
    fields = f"MESSAGE={forged}\nSYSLOG_IDENTIFIER=latticed\nLATTICED_EVENT=audit_head_signed\nFORGED=1\n"
    machine.check("logger", "--journald", stdin=fields)
    machine.until_logged("LATTICED_EVENT=audit_head_signed", "FORGED=1")
    machine.check("latticectl", "secret", "set", "NEWER", stdin="a later decision")
    machine.check("systemctl", "restart", "latticed.service")
    ran = machine.run("latticectl", "audit", "verify", "--journal", "--since", since)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    vouched = re.search(r"vouches for decisions up to (\d+), by (\d+) heads", ran.stderr)
    assert vouched, ran.stderr
    assert int(vouched[1]) < 999_999
    key = json.loads(machine.check("latticectl", "version", "--verbose", "--format", "json"))["public_key"]
    old = machine.run(
        "latticectl", "audit", "verify", "/root/old.ndjson", "--public-key", key, "--journal", "--since", since
    )
    assert (old.returncode, "broken" in old.stdout) == (6, True), old
    none = machine.run("latticectl", "audit", "verify", "--journal", "no-such.service")
    assert "expected signed heads of no-such.service" in none.stderr
    early = machine.run("latticectl", "audit", "verify", "--journal", "--since", "2100-01-01T00:00:00Z")
    assert "since 2100-01-01T00:00:00.000000Z in the journal, found none" in early.stderr


def test_reload_is_done_when_systemctl_returns(machine):
    """With notify-reload; 252 only sends the signal."""
    machine.write("/etc/latticed/latticed.toml", machines.SETTINGS + '[log]\nlevel = "debug"\n')
    before = machine.property("latticed.service", "MainPID")
    machine.check("systemctl", "reload", "latticed.service")
    if machines.VERSIONS[machine.suite] >= 257:
        assert machine.journal("LATTICED_EVENT=settings_loaded", f"_PID={before}")
    machine.until_logged("LATTICED_EVENT=settings_loaded", f"_PID={before}")
    assert (machine.property("latticed.service", "MainPID"), active(machine)) == (before, True)
    machine.write("/etc/latticed/latticed.toml", machines.SETTINGS)


def test_journal_says_what_happened_and_what_helps(machine):
    """The catalog's words beside an entry, with fields of the entry in them."""
    machine.check("latticectl", "status")  # it runs
    machine.write("/etc/latticed/latticed.toml", machines.SETTINGS + '[logs]\nlevel = "debug"\n')
    told = machine.until_logged("LATTICED_EVENT=settings_refused")[-1]["LATTICED_REASON"]
    shown = machine.check("journalctl", "--catalog", "--no-pager", "LATTICED_EVENT=settings_refused")
    assert "Subject: The changed settings were refused" in shown
    assert shown.count(told) == 2, "in the entry, and in what the catalog says of it"
    assert re.search(r"^(-- |░░) +latticed --check-config$", shown, re.MULTILINE), shown
    machine.write("/etc/latticed/latticed.toml", machines.SETTINGS)


def test_killed_daemon_is_started_again_and_answers(machine):
    before = machine.property("latticed.service", "MainPID")
    started = int(machine.property("latticed.service", "NRestarts"))
    machine.check("kill", "-KILL", before)
    assert json.loads(machine.check("latticectl", "status", "--format", "json")), "the client waited for the next one"
    assert until_again(machine, before)
    assert int(machine.property("latticed.service", "NRestarts")) == started + 1


def test_daemon_that_keeps_failing_is_never_given_up(machine, unit):
    """And who asks meanwhile is answered once it starts. 257 waits longer each time; 252 cannot, and has one pause."""
    growing = machines.VERSIONS[machine.suite] >= 257
    pauses = ["RestartUSec", *(["RestartSteps", "RestartMaxDelayUSec"] if growing else [])]
    given = [machine.property("latticed.service", one) for one in pauses]
    assert given == (["1s", "5", "30s"] if growing else ["3s"])
    before = int(machine.property("latticed.service", "NRestarts"))
    shorter = ("RestartSec=100ms", *(["RestartMaxDelaySec=2s"] if growing else []))
    assert unit(*shorter, "ExecStartPre=/bin/false").returncode != 0
    # By default systemd gives up after five starts within ten seconds, and the socket with it.
    processes.until(
        lambda: int(machine.property("latticed.service", "NRestarts")) >= before + 6,
        what="restarts by itself",
        deadline_s=machines.BOOT_S,
    )
    if growing:
        assert int(machine.check("busctl", "get-property", *PAUSE).split()[1]) == 2_000_000
    assert machine.property("latticed.socket", "ActiveState") == "active"
    # Reading it counts the pause anew, by the failures so far: so that stays short.
    machine.write(HELD, "\n".join(("[Service]", *shorter, "")))
    machine.check("systemctl", "daemon-reload")
    assert json.loads(machine.check("latticectl", "status", "--format", "json"))


def test_daemon_that_hangs_is_killed_by_the_watchdog(machine, unit):
    """A client that came meanwhile is answered by the next one."""
    unit("WatchdogSec=2", "WatchdogSignal=SIGKILL")
    before = machine.property("latticed.service", "MainPID")
    machine.check("kill", "-STOP", before)
    assert json.loads(machine.check("latticectl", "status", "--format", "json"))
    assert until_again(machine, before)
    assert machine.journal("_PID=1", "UNIT=latticed.service", "--grep=[Ww]atchdog timeout")


@pytest.mark.parametrize(
    ("lines", "token", "fix"),
    [
        (["RestrictNamespaces=yes"], "isolated", "RestrictNamespaces=yes"),
        (["Delegate=no"], "cgroup", "Delegate=cpu memory pids"),
        (["SystemCallFilter=~@mount"], "isolated", "SystemCallFilter"),
    ],
    ids=["no namespaces", "no delegation", "no mounts"],
)
def test_unit_that_takes_too_much_away_says_what_to_change(machine, unit, lines, token, fix):
    """The daemon goes on without plugins that need it: `health` names the line of the unit."""
    unit(*lines)
    shown = json.loads(machine.run("latticectl", "health", "--format", "json").stdout)["sandbox"]
    (missing,) = [one for one in shown["missing"] if one["token"] == token]
    assert fix in missing["fix"], missing
    if token != "cgroup":
        refused = machine.run("latticectl", "restart", "acme.sleeper")
        assert "sandbox_unavailable" in refused.stderr + machine.run("latticectl", "info", "acme.sleeper").stdout


def test_unit_with_another_user_does_not_touch_the_state(machine, unit):
    """systemd gives the state directory to the other user; latticed refuses files of a stranger in it."""
    ran = unit("User=nobody", "Group=nogroup", "StateDirectory=", "RuntimeDirectory=")
    assert ran.returncode != 0
    last = machine.journal("_SYSTEMD_UNIT=latticed.service", "SYSLOG_IDENTIFIER=latticed")[-1]["MESSAGE"]
    assert "unusable" in last, last
