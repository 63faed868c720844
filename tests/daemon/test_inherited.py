"""Process attributes inherited at start: ignored and blocked signals, closed descriptors, limits, umask, HOME."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys

import pytest

from tests.house import hosting, processes, programs

pytestmark = pytest.mark.daemon

BEGIN = """
import os, resource, signal, sys
closed, limit, *command = sys.argv[1:]
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.umask(0o777)
if int(limit):
    resource.setrlimit(resource.RLIMIT_NPROC, (int(limit), int(limit)))
    resource.setrlimit(resource.RLIMIT_STACK, (4 << 20, 4 << 20))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
for fd in map(int, closed):
    os.close(fd)
os.execv(command[0], command)
"""
CRASHER = (
    programs.SDK
    + b"""
    def do_die(self, payload):
        os._exit(payload)

    def do_limits(self, payload):
        return [resource.getrlimit(one) for one in (resource.RLIMIT_NPROC, resource.RLIMIT_STACK)]

Test().run()
"""
)


def started_badly(closed="", limit=0):
    return (sys.executable, "-c", BEGIN, closed, str(limit))


def test_daemon_resets_inherited_process_attributes(place, acme):
    """Every signal is ignored and blocked, 0 to 2 are closed, at most 3,900 processes, umask 0777, HOME is root's."""
    place.before = started_badly("012", 3_900)
    place.env["HOME"] = "/root"
    with place.running() as daemon:
        host = hosting.Host(daemon=daemon, author=acme)
        host.up("acme.demo", CRASHER)
        assert host.result("acme.demo", "limits") == [[32, 32], [4 << 20, 4 << 20]]
        assert host.invoke("acme.demo", "die", 7).json()["code"] == "exited"
        daemon.until(lambda: "failed exited" in host.story("acme.demo"), "its end to be seen")
        assert "7" in host.runtime("acme.demo")["last_error"]["message"]
        assert stat.S_IMODE(place.socket.lstat().st_mode) == 0o660
        if os.getuid() == 0:
            held = {os.readlink(f"/proc/{daemon.process.pid}/fd/{number}") for number in (0, 1, 2)}
            assert held == {"/dev/null"}
        ignored = (*("USR1", "USR2", "ALRM", "IO", "VTALRM", "PROF", "PWR", "STKFLT"),)
        for name in ignored:
            daemon.signal(signal.Signals[f"SIG{name}"])
        for number in (signal.SIGRTMIN, signal.SIGRTMAX):
            daemon.process.send_signal(number)
        daemon.signal(signal.SIGHUP)
        daemon.expect_notice("STATUS=reloaded")
        assert daemon.stop() == 0
    for path in place.state.rglob("*"):
        assert not path.lstat().st_mode & 0o077, path
        assert path.lstat().st_mode & stat.S_IRUSR, path


def test_plugin_starts_under_a_hard_limit_of_the_file_size(place, acme):
    """1 MiB: the child's /dev/zero, a file without end, is no larger."""
    place.before = ("prlimit", f"--fsize={1 << 20}:{1 << 20}")
    with place.running() as daemon:
        host = hosting.Host(daemon=daemon, author=acme)
        host.up("acme.demo", CRASHER)
        assert host.result("acme.demo", "limits")[0] == [32, 32]


@pytest.mark.root
@pytest.mark.parametrize("most", [1, 3])
def test_start_that_may_not_make_threads_names_the_limit(place, most):
    """RLIMIT_NPROC at what the user has already; it does not hold for root."""
    ran = place.ran(["prlimit", f"--nproc={most}:{most}", *place.command()])
    assert ran.returncode == 1, ran
    assert "cannot start a thread: raise the limit of processes (RLIMIT_NPROC, TasksMax)\n" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_latticectl_resets_inherited_process_attributes(daemon):
    """It answers, SIGTERM ends it though it was blocked, and closed output is reported as an error."""
    place = daemon.place
    for closed in ("", "0", "2"):
        ran = place.ran([*started_badly(closed), *daemon.ctl_command("status")])
        assert (ran.returncode, "state     ok" in ran.stdout) == (0, True), ran
    ran = place.ran([*started_badly("1"), *daemon.ctl_command("status")])
    assert (ran.returncode, ran.stderr) == (1, "error: cannot write the output: Bad file descriptor\n")
    assert place.ran([*started_badly("012"), *daemon.ctl_command("status")]).returncode == 1
    waiting = [*started_badly(), *daemon.ctl_command("events")]
    with processes.spawned(waiting, user=place.user, env=place.environment()) as follower:
        status = f"/proc/{follower.pid}/status"
        term = 1 << (signal.SIGTERM - 1)

        def deaf():
            with open(status) as lines:
                masks = dict(line.split(":\t") for line in lines if line.startswith(("SigBlk", "SigIgn", "SigCgt")))
            return any(int(masks[name], 16) & term for name in ("SigBlk", "SigIgn"))

        processes.until(lambda: not deaf(), what="latticectl to hear SIGTERM")
        follower.terminate()
        assert follower.wait(timeout=processes.PATIENCE_S) != 0


def test_latticectl_keeps_sighup_ignored_under_nohup(daemon):
    """SIGHUP and SIGINT are ignored on purpose there; the daemon resets them all the same."""
    code = "import signal; from latticed.kit import process_start; signal.signal(signal.SIGHUP, signal.SIG_IGN);"
    code += " signal.signal(signal.SIGTERM, signal.SIG_IGN); process_start.reset_for_command();"
    code += " print(*(int(signal.getsignal(one) is signal.SIG_IGN) for one in (signal.SIGHUP, signal.SIGTERM)))"
    ran = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "1 0\n"


def test_journal_reader_resets_inherited_signals(place):
    command = [*place.python(), "-m", "latticed.journal", "--config", str(place.config), "--source", "auth.log"]
    name = f"@latticed-journal-test-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        notices = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        notices.bind("\0" + name[1:])
        notices.settimeout(20)
        env = {**place.environment(), "NOTIFY_SOCKET": name}
        reader = stack.enter_context(processes.spawned([*started_badly("0"), *command], user=place.user, env=env))
        assert b"READY=1" in notices.recv(4096)
        reader.send_signal(signal.SIGUSR1)
        reader.terminate()
        assert reader.wait(timeout=processes.PATIENCE_S) == 0
