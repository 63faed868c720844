"""latticed-journal as a process of its own, on an auth.log: who may ask, what is answered, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from latticed.host.call import HostError
from latticed.host.node import journal_client
from latticed.kit import unix_listener
from latticed.model.hostcall import Denial
from tests.house import journalds, processes

OLD = "Jan  2 03:04:05 host sshd[77]: Accepted password for root from 192.0.2.1 port 22 ssh2\n"
NEW = "2026-01-02T03:04:05.250000+01:00 host sshd-session[78]: Failed password for bob from 192.0.2.2 port 23 ssh2\n"
NOISE = [
    "Jan  2 03:04:05 host sudo[5]: Accepted password for root from 192.0.2.7 port 22 ssh2\n",
    "Jan  2 03:04:05 host cron[5]: host sshd[77]: Accepted password for root from 192.0.2.7 port 22\n",
    "Jan  2 03:04:05 host sshd: no process id\n",
    "Jan  2 03:04:05 host sshd2[9]: another program\n",
    "-- sshd[77]: no time\n",
]


@dataclass
class Place:
    """A runtime directory, settings and a log; `started` runs a reader on them."""

    home: Path
    run: Path

    @property
    def socket(self) -> Path:
        return self.run / "journal.sock"

    @property
    def auth_log(self) -> Path:
        return self.home / "auth.log"

    def write(self, *lines: str | bytes) -> None:
        with self.auth_log.open("ab") as file:
            file.writelines(line.encode() if isinstance(line, str) else line for line in lines)

    @contextmanager
    def started(self, source: str = "auth.log") -> Iterator[subprocess.Popen[bytes]]:
        config = self.home / "latticed.toml"
        config.write_text(f'runtime_dir = "{self.run}"\n[node]\nauth_log = "{self.auth_log}"\n')
        with processes.spawned(
            journalds.reader_command(config, "--source", source), stdout=self.home / "log"
        ) as reader:
            processes.until(self.socket.exists, what="the journal reader to listen")
            yield reader

    async def ask(self, wanted: str = "sshd", cursor: str = "", limit: int = 100) -> dict[str, Any]:
        request = {"filter": wanted, "cursor": cursor, "limit": limit}
        return await journal_client.ask(self.socket, request, readers=lambda: frozenset({os.getuid()}))

    async def refused(self, **asked: Any) -> HostError:
        with pytest.raises(HostError) as caught:
            await self.ask(**asked)
        return caught.value


@pytest.fixture
def place() -> Iterator[Place]:
    home = Path(tempfile.mkdtemp(prefix="latticed-a-", dir="/tmp"))  # socket paths are short
    try:
        home.chmod(0o755)
        found = Place(home=home, run=home)
        found.write()
        yield found
    finally:
        shutil.rmtree(home)


@pytest.fixture
def reader(place: Place) -> Iterator[subprocess.Popen[bytes]]:
    with place.started() as found:
        yield found


async def test_only_lines_of_sshd_are_returned(place: Place, reader: object) -> None:
    """They come in both forms of time stamp, marked as untrusted; unknown fields are null."""
    start = await place.ask()
    assert start["entries"] == []
    place.write(*NOISE, OLD, *NOISE, NEW)
    answer = await place.ask(cursor=start["cursor"])
    found = answer["entries"]
    assert not answer["gap"]
    assert [entry["message"].split(" from ")[0] for entry in found] == [
        "Accepted password for root",
        "Failed password for bob",
    ]
    assert found[0]["at"].endswith("Z")
    assert found[1].pop("id") != found[0]["id"]
    assert found[1] == {
        "at": "2026-01-02T02:04:05.250000Z",
        "unit": None,
        "comm": "sshd-session",
        "pid": 78,
        "uid": None,
        "priority": None,
        "message": "Failed password for bob from 192.0.2.2 port 23 ssh2",
        "trusted": False,
        "dropped": 0,
    }
    newest = await place.ask(limit=1)
    assert [entry["pid"] for entry in newest["entries"]] == [78]
    assert (await place.ask(cursor=newest["cursor"]))["entries"] == []


async def test_cursor_stays_valid_over_restart_and_rotation(place: Place) -> None:
    """No line is lost or repeated."""
    with place.started():
        cursor = (await place.ask(limit=0))["cursor"]
        place.write(*(OLD.replace("[77]", f"[{number}]") for number in range(10)))
        first = await place.ask(cursor=cursor, limit=4)
        place.auth_log.rename(place.home / "auth.log.1")
        place.write(*(OLD.replace("[77]", f"[{number}]") for number in range(10, 13)))
    with place.started():
        second = await place.ask(cursor=first["cursor"])
        third = await place.ask(cursor=second["cursor"])
    pids = [entry["pid"] for answer in (first, second, third) for entry in answer["entries"]]
    assert pids == list(range(13))


async def test_entries_have_ids_of_their_own_that_outlive_restart_and_rotation(place: Place) -> None:
    """Whoever acts on an entry recognises it when it comes once more."""
    with place.started():
        cursor = (await place.ask(limit=0))["cursor"]
        place.write(OLD, NEW, OLD.replace("[77]", "[79]"))
        first = [entry["id"] for entry in (await place.ask(cursor=cursor))["entries"]]
    shutil.copy(place.auth_log, place.home / "auth.log.1")
    place.auth_log.write_bytes(b"")
    with place.started():
        again = [entry["id"] for entry in (await place.ask(cursor=cursor))["entries"]]
    assert again == first
    assert len(set(first)) == 3


async def test_cursor_whose_place_is_gone_gives_a_gap_once(place: Place, reader: object) -> None:
    """Its part of the log was removed, or compressed: lines may be missing."""
    place.write(OLD)
    cursor = (await place.ask())["cursor"]
    place.auth_log.unlink()
    place.write(NEW)
    answer = await place.ask(cursor=cursor)
    assert answer["gap"]
    assert [entry["pid"] for entry in answer["entries"]] == [78]
    assert not (await place.ask(cursor=answer["cursor"]))["gap"]


async def test_hostile_log_lines_are_escaped_cut_and_bounded(place: Place, reader: object) -> None:
    """Control characters are escaped, bytes that are not UTF-8 replaced; impossible times are null."""
    cursor = (await place.ask(limit=0))["cursor"]
    place.write(b"Jan  2 03:04:05 host sshd[1]: Invalid user \x1b[2J\xff\r from 192.0.2.1\n")
    place.write("Jan  2 03:04:05 host sshd[2]: " + "x" * 40_000 + "\n")
    place.write("Jan 32 99:99:99 host sshd[3]: no such day\n", "9999-99-99T99:99:99Z host sshd[4]: nor this one\n")
    found = (await place.ask(cursor=cursor))["entries"]
    assert found[0]["message"] == "Invalid user \\x1b[2J\ufffd\\x0d from 192.0.2.1"
    assert 16_000 < len(found[1]["message"]) <= 16 << 10
    assert [entry["at"] for entry in found[2:]] == [None, None]
    cursor = (await place.ask(limit=0))["cursor"]
    place.write(*("Jan  2 03:04:05 host sshd[1]: " + "é" * 7_000 + f" {number}\n" for number in range(100)))
    seen: list[str] = []
    while len(seen) < 100:
        answer = await place.ask(cursor=cursor, limit=500)
        assert 0 < len(answer["entries"]) < 30
        seen += [entry["message"].split()[-1] for entry in answer["entries"]]
        cursor = answer["cursor"]
    assert seen == [str(number) for number in range(100)]


async def test_unit_or_cursor_that_auth_log_lacks_is_bad_params(place: Place, reader: object) -> None:
    """So is too high a limit; a missing log is service_unavailable with the reason."""
    assert (await place.refused(wanted="ssh.service")).code is Denial.BAD_PARAMS
    assert (await place.refused(wanted="")).code is Denial.BAD_PARAMS
    assert (await place.refused(limit=501)).code is Denial.BAD_PARAMS
    assert (await place.refused(cursor="j:s=1;i=1;b=1;m=1;t=1;x=1")).code is Denial.BAD_PARAMS
    assert (await place.refused(cursor="f:../../etc/shadow")).code is Denial.BAD_PARAMS
    place.auth_log.unlink()
    gone = await place.refused()
    assert gone.code is Denial.SERVICE_UNAVAILABLE
    assert gone.reason == "auth.log cannot be read: No such file or directory"


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"[]\n",
        b"{}\n",
        b"\xff\n",
        b'{"filter":"sshd","filter":"x"}\n',
        b'{"filter":"sshd","path":"/"}\n',
        b"[" * 5000 + b"\n",
    ],
)
async def test_malformed_request_is_bad_params(place: Place, reader: object, line: bytes) -> None:
    """The next one is served."""
    stream, writer = await asyncio.open_unix_connection(os.fspath(place.socket))
    writer.write(line)
    assert json.loads(await stream.readline())["code"] == "bad_params"
    writer.close()
    await writer.wait_closed()
    assert "cursor" in await place.ask()


async def test_silent_or_flooding_clients_do_not_delay_others(place: Place, reader: object) -> None:
    """A request line that is too long is disconnected."""
    silent = [await asyncio.open_unix_connection(os.fspath(place.socket)) for _ in range(5)]
    stream, writer = await asyncio.open_unix_connection(os.fspath(place.socket))
    writer.write(b"x" * 100_000)
    assert await stream.read() == b""
    assert "cursor" in await place.ask()
    for _, one in [*silent, (stream, writer)]:
        one.close()
        await asyncio.gather(one.wait_closed(), return_exceptions=True)


@pytest.mark.root
def test_client_of_another_uid_gets_no_answer(place: Place, reader: object) -> None:
    """The socket's mode lets it connect."""
    place.socket.chmod(0o666)
    script = (
        "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
        's.sendall(b\'{"filter":"sshd"}\\n\'); print(len(s.recv(99)))'
    )
    command = [processes.reachable_python(), "-c", script, place.socket]
    with processes.spawned(command, user=processes.STRANGER) as stranger:
        out, err = stranger.communicate(timeout=processes.PATIENCE_S)
    assert out.strip() in {b"0", b""}
    assert out or b"BrokenPipeError" in err or b"ConnectionResetError" in err
    # Log lines are written by a thread of their own (kit.nonblocking_writer).
    log = place.home / "log"
    processes.until(lambda: b"journal_request_refused" in log.read_bytes(), what="the refusal in the log")


@pytest.mark.root
def test_daemon_of_another_user_may_connect(place: Place) -> None:
    """The socket has the group of the daemon's runtime directory, which that user owns; others may not."""
    place.run = place.home / "run"
    place.run.mkdir()
    os.chown(place.run, processes.STRANGER.uid, processes.STRANGER.gid)
    with place.started():
        assert place.socket.stat().st_gid == processes.STRANGER.gid
        assert stat.S_IMODE(place.socket.stat().st_mode) == 0o660
        script = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
        script += 's.sendall(b\'{"filter":"sshd"}\\n\'); print(s.recv(12))'
        command = [processes.reachable_python(), "-c", script, place.socket]
        for user, answers in ((processes.STRANGER, True), (processes.OTHER_STRANGER, False)):
            with processes.spawned(command, user=user) as asking:
                out, err = asking.communicate(timeout=processes.PATIENCE_S)
            assert (out.strip() == b"b'{\"entries\": '") is answers, out + err
            assert (b"PermissionError" in err) is not answers, err


async def test_socket_is_private_and_removed_at_sigterm(place: Place) -> None:
    """Mode 0660; one left by a killed reader is replaced."""
    with place.started() as reader:
        assert stat.S_IMODE(place.socket.stat().st_mode) == 0o660
        reader.send_signal(signal.SIGKILL)
        reader.wait(processes.PATIENCE_S)
    assert place.socket.exists()
    assert (await place.refused()).code is Denial.SERVICE_UNAVAILABLE
    inode = place.socket.stat().st_ino
    with place.started() as reader:
        processes.until(lambda: place.socket.stat().st_ino != inode, what="a new socket")
        assert "cursor" in await place.ask()
        reader.send_signal(signal.SIGTERM)
        assert reader.wait(processes.PATIENCE_S) == 0
    assert not place.socket.exists()


def test_socket_passed_by_service_manager_is_used_and_kept(place: Place) -> None:
    """Passed as descriptor 3; its name stays when the reader ends."""
    config = place.home / "latticed.toml"
    config.write_text(f'runtime_dir = "{place.home}"\n[node]\nauth_log = "{place.auth_log}"\n')
    passed = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_FDS'] = '1'; "
        "os.environ['LISTEN_PID'] = str(os.getpid()); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
    )
    with unix_listener.listen(place.socket) as listening:
        rest = journalds.reader_command(config, "--source", "auth.log")[1:]
        command = [sys.executable, "-c", passed, str(listening.fileno()), *rest]
        with processes.spawned(command, pass_fds=[listening.fileno()]) as reader:
            answer = asyncio.run(place.ask())
            assert answer["entries"] == []
            reader.send_signal(signal.SIGTERM)
            assert reader.wait(processes.PATIENCE_S) == 0
    assert place.socket.exists()


def test_announced_socket_that_is_not_open_is_told(place: Place) -> None:
    """LISTEN_FDS with descriptor 3 closed, or a file, or with more than are open."""
    config = place.home / "latticed.toml"
    config.write_text(f'runtime_dir = "{place.home}"\n')
    for count, opened in ((1, "<&-"), (1, "</dev/null"), (50, "<&-")):
        shell = f'export LISTEN_FDS={count} LISTEN_PID=$$; exec 3{opened}; exec "$@"'
        command = ["/bin/sh", "-c", shell, "sh", *journalds.reader_command(config)]
        ran = subprocess.run(command, capture_output=True, check=False, timeout=processes.PATIENCE_S)
        words = b"latticed-journal: socket_unusable: expected a listening unix socket at"
        assert (ran.returncode, ran.stderr.startswith(words)) == (1, True), ran.stderr
        assert b"Traceback" not in ran.stderr


def test_failed_start_prints_its_reason(place: Place) -> None:
    """There is no directory to listen in, or the settings are bad; each has its exit status."""
    config = place.home / "latticed.toml"
    for text, code, words in (
        (f'runtime_dir = "{place.home}/absent"\n', 1, b"socket_unusable: cannot listen at"),
        ('[node]\njournal_units = "all"\n', os.EX_CONFIG, b"node.journal_units: expected a list of texts"),
    ):
        config.write_text(text)
        ran = subprocess.run(
            journalds.reader_command(config), capture_output=True, check=False, timeout=processes.PATIENCE_S
        )
        assert (ran.returncode, words in ran.stderr) == (code, True), ran.stderr
        assert b"Traceback" not in ran.stderr


# The daemon's side, when what listens is not what it should be.


@contextmanager
def impostor(path: Path, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    """Another server on the socket, which answers one connection."""
    import threading

    with unix_listener.listen(path) as listening:
        listening.setblocking(True)

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(10_000)
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"{",
        b"{}\n",
        b"[]\n",
        b'{"entries":{},"cursor":"","gap":false}\n',
        b'{"entries":[],"cursor":1,"gap":false}\n',
        b'{"entries":[],"cursor":""}\n',
        b'{"code":"no_such","message":""}\n',
        b"x" * 200_000,
        b'{"entries":[],"cursor":"","entries":[]}\n',
    ],
)
async def test_malformed_answer_is_service_unavailable(place: Place, said: bytes) -> None:
    """Nothing of it reaches the plugin."""
    with impostor(place.socket, lambda connection: connection.sendall(said)):
        error = await place.refused()
    assert error.code is Denial.SERVICE_UNAVAILABLE


async def test_socket_served_by_another_uid_is_not_asked(place: Place) -> None:
    """The kernel says who listens."""
    with impostor(place.socket, lambda _: None), pytest.raises(HostError) as caught:
        await journal_client.ask(place.socket, {"filter": "sshd"}, readers=lambda: frozenset({os.getuid() + 1}))
    assert caught.value.reason == "what listens as the journal reader is somebody else"


async def test_missing_reader_is_service_unavailable_with_a_hint(place: Place) -> None:
    """The hint says what to start, and names no path."""
    error = await place.refused()
    assert error.code is Denial.SERVICE_UNAVAILABLE
    assert error.reason == "the journal reader is not running: the operator starts latticed-journal"


async def test_hanging_reader_is_deadline_exceeded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_client, "DEADLINE_S", 0.05)
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hang(connection: socket.socket) -> None:
        connection.recv(1)  # until the other side has gone
        loop.call_soon_threadsafe(done.set)

    with impostor(place.socket, hang):
        error = await place.refused()
        await asyncio.wait_for(done.wait(), processes.PATIENCE_S)
    assert error.code is Denial.DEADLINE_EXCEEDED
