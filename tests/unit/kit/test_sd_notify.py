"""kit.sd_notify on a real datagram socket, as the service manager has one."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import closing

import pytest

from latticed.kit import sd_notify


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """(socket of the manager, value of $NOTIFY_SOCKET)."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listening:
        listening.settimeout(5)
        if request.param == "path":
            listening.bind(str(tmp_path / "notify"))
            yield listening, str(tmp_path / "notify")
        else:
            listening.bind(f"\0latticed-test-{os.getpid()}")
            yield listening, f"@latticed-test-{os.getpid()}"


def test_notify_states_are_sent_as_in_the_manual_page(manager):
    """READY, STATUS, WATCHDOG and STOPPING to a path and to an abstract address; the variable is removed."""
    listening, address = manager
    environ = {"NOTIFY_SOCKET": address}
    notifier = sd_notify.from_environment(environ)
    assert environ == {}
    notifier.ready("serving 3 plugins")
    notifier.watchdog()
    notifier.stopping()
    received = [listening.recv(4096) for _ in range(3)]
    assert received == [b"READY=1\nSTATUS=serving 3 plugins", b"WATCHDOG=1", b"STOPPING=1"]


def test_reloading_state_has_the_monotonic_time(manager):
    """Type=notify-reload pairs RELOADING=1 with MONOTONIC_USEC of the same message."""
    listening, address = manager
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    sd_notify.from_environment({"NOTIFY_SOCKET": address}).reloading()
    first, second = listening.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    name, _, stamp = second.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(stamp) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_notify_status_cannot_inject_a_variable(manager):
    """Line breaks in it are escaped."""
    listening, address = manager
    sd_notify.from_environment({"NOTIFY_SOCKET": address}).ready("x\nREADY=1\u2028MAINPID=1")
    assert listening.recv(4096) == b"READY=1\nSTATUS=x\\x0aREADY=1\\u2028MAINPID=1"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "@"}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_no_state_is_sent_without_a_service_manager(environ):
    """There is no address, or one of an unsupported kind: no call fails."""
    notifier = sd_notify.from_environment(environ)
    notifier.ready("x")
    notifier.reloading()


def test_notifying_a_missing_service_manager_is_no_error(tmp_path):
    """A socket that nothing listens at is ignored, as sd_notify(3) recommends."""
    sd_notify.from_environment({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready()


def test_full_queue_of_service_manager_does_not_block(manager):
    _, address = manager
    notifier = sd_notify.from_environment({"NOTIFY_SOCKET": address})
    for _ in range(5_000):
        notifier.watchdog()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_watchdog_interval_is_half_the_limit(environ, expected):
    """It is used only when $WATCHDOG_PID is this process; the variables are removed."""
    assert sd_notify.watchdog_interval_s(environ, pid=7) == expected
    assert environ == {}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "control"},
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDS": "one", "LISTEN_PID": str(os.getpid())},
        {"LISTEN_FDS": "-1", "LISTEN_PID": str(os.getpid())},
    ],
)
def test_passed_descriptors_for_another_process_are_ignored(environ):
    """A wrong pid or count gives none; the variables are removed."""
    assert sd_notify.listen_fds(environ) == ()
    assert environ == {}


def test_passed_sockets_are_named_and_not_inherited(tmp_path):
    """A real process with descriptors 3 and 4, as in sd_listen_fds(3)."""
    program = textwrap.dedent("""
        import os, sys
        from latticed.kit import sd_notify
        os.environ["LISTEN_PID"] = str(os.getpid())
        for passed in sd_notify.listen_fds(os.environ):
            print(passed.fd, passed.name, os.get_inheritable(passed.fd))
        print([name for name in os.environ if name.startswith("LISTEN_")])
    """)
    with closing(socket.socket(socket.AF_UNIX)) as one:
        one.bind(str(tmp_path / "one"))
        shell = f'exec 3<&{one.fileno()} 4<&{one.fileno()}; exec "$0" -c "$1"'
        env = dict(os.environ) | {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "control"}
        command = ["/bin/bash", "-c", shell, sys.executable, program]
        ran = subprocess.run(command, env=env, pass_fds=[one.fileno()], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["3 control False", "4 unknown False", "[]"]


def test_state_that_did_not_fit_the_queue_is_sent_later(manager):
    """A later `watchdog` call sends it; watchdog pings themselves are not sent again."""
    listening, address = manager
    notifier = sd_notify.from_environment({"NOTIFY_SOCKET": address})
    for _ in range(2_000):  # more than net.unix.max_dgram_qlen and its buffer take
        notifier.watchdog()
    notifier.ready("ready")
    notifier.watchdog()
    listening.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            assert listening.recv(4096) == b"WATCHDOG=1"
    notifier.watchdog()
    assert [listening.recv(4096) for _ in range(2)] == [b"READY=1\nSTATUS=ready", b"WATCHDOG=1"]


def test_notify_states_are_sent_later_when_no_descriptor_is_free(manager, monkeypatch):
    """The caller is not blocked and gets no error."""
    listening, address = manager
    notifier = sd_notify.from_environment({"NOTIFY_SOCKET": address})

    def refused(*_: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as scarce:
        scarce.setattr(sd_notify.socket, "socket", refused)
        notifier.ready("ready")
        notifier.watchdog()
    notifier.ready("well")
    assert [listening.recv(100) for _ in range(2)] == [b"READY=1\nSTATUS=ready", b"READY=1\nSTATUS=well"]
