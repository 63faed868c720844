"""The real root helper with the kind of `file_kind`, in directories of root's, and a plain client of its socket."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latticed.plans import protocol
from tests.house import processes

DAEMON = processes.User(uid=64_101, gid=64_101)
APPROVER = processes.User(uid=64_102, gid=64_102)
STRANGER = processes.STRANGER
BASE = {"allow": ["admin"]}
WIDE = {"allow": ["admin", "ada", "bob"]}
LATE_S = 2.0
"""How long after its deadline an unconfirmed change may be there still."""
LOOK_S = 0.02


@dataclass
class Place:
    """Where one helper lives; `live` is the file that its kind `file` owns. Settings may be changed before a start."""

    home: Path
    settings: dict[str, Any] = field(default_factory=dict)
    before: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=lambda: {"LANG": "C"})

    def __post_init__(self) -> None:
        self.settings = {
            "socket": str(self.home / "run/apply.sock"),
            "state_dir": str(self.home / "state"),
            "daemon_user": str(DAEMON.uid),
            "approvers": [str(APPROVER.uid)],
            "kinds": ["file", "other"],
            "confirm_within_s": 30,
            "poll_s": 0.2,
            **self.settings,
        }

    @property
    def live(self) -> Path:
        return self.home / "live/file.target"

    @property
    def state(self) -> Path:
        return self.home / "state"

    @property
    def config(self) -> Path:
        return self.home / "latticed.toml"

    def content(self) -> str | None:
        # It may be removed at any moment: by the dead-man, for example.
        try:
            return self.live.read_text()
        except FileNotFoundError:
            return None

    def order(self, **orders: Any) -> None:
        fresh = self.home / "live/orders.fresh"
        fresh.write_text(json.dumps(orders))
        fresh.rename(fresh.with_suffix(".json"))  # the helper may be reading

    def write_settings(self) -> None:
        lines = [f"{key} = {json.dumps(value)}" for key, value in self.settings.items() if not isinstance(value, dict)]
        for table, values in self.settings.items():
            if isinstance(values, dict):
                lines += [f"[apply.{table}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
        self.config.write_text("\n".join(["[log]", 'level = "debug"', "[apply]", *lines, ""]))

    def command(self, *options: str) -> list[str]:
        script = self.home / "code/file_kind.py"
        return [sys.executable, "-I", str(script), str(self.home / "live"), "--config", str(self.config), *options]

    def own(self, path: Path) -> None:
        """Root's, as everything here (`faults.attached`)."""
        path.chmod(0o600)

    def log(self) -> str:
        return (self.home / "log").read_text()

    @contextlib.contextmanager
    def running(self, *options: str, wait: bool = True) -> Iterator[subprocess.Popen[bytes]]:
        """The helper, ready to answer; dead-men of it are ended with the place."""
        self.write_settings()
        log = self.home / "log"
        command = [*self.before, *self.command(*options)]
        with processes.spawned(command, env=self.env, stdout=log, stderr=subprocess.STDOUT) as helper:
            if wait:
                processes.until(lambda: helper.poll() is not None or self.is_up(), what=f"the helper\n{self.log()}")
                assert helper.poll() is None, self.log()
            yield helper

    def is_up(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self.settings["socket"])
            return True
        return False

    def ask(self, request: protocol.Request, *, user: processes.User | None = None) -> protocol.Answer:
        """The answer, asked as root or as `user`."""
        line = exchanged(self.settings["socket"], protocol.encode(request), user=user)
        return protocol.decode_answer(line, request)

    def ask_all(self, requests: Sequence[protocol.Request], user: processes.User | None) -> list[protocol.Answer]:
        """The answers, asked one after the other."""
        if user is None:
            return [self.ask(request) for request in requests]
        lines = exchanged_as(user, self.settings["socket"], [protocol.encode(request) for request in requests])
        return [protocol.decode_answer(line, request) for line, request in zip(lines, requests, strict=True)]

    def offer(self, intent: dict[str, Any], *, kind: str = "file", secrets: Any = (), user: Any = DAEMON) -> str:
        """The name of a plan that was taken."""
        answer = self.ask(protocol.Offer(kind=kind, intent=intent, secrets=tuple(secrets)), user=user)
        assert isinstance(answer, protocol.Moved), answer
        return answer.plan

    def review(self, plan: str) -> protocol.Reviewed:
        answer = self.ask(protocol.Review(plan=plan))
        assert isinstance(answer, protocol.Reviewed), answer
        return answer

    def approved(self, intent: dict[str, Any], *, kind: str = "file", secrets: Any = (), user: Any = DAEMON) -> str:
        """The name of a plan that `user` has offered and root has approved."""
        plan = self.offer(intent, kind=kind, secrets=secrets, user=user)
        answer = self.ask(protocol.Approve(plan=plan, review=self.review(plan).review))
        assert isinstance(answer, protocol.Moved), answer
        return plan

    def applied(self, intent: dict[str, Any], *, kind: str = "file", secrets: Any = ()) -> str:
        """The name of a plan that is applied and confirmed."""
        plan = self.approved(intent, kind=kind, secrets=secrets)
        for request in (protocol.Apply(plan=plan, confirm_within_s=60), protocol.Confirm(plan=plan)):
            answer = self.ask(request)
            assert isinstance(answer, protocol.Moved), answer
        return plan

    def late_s(self, kind: str = "file") -> float:
        """How long ago the armed deadline of a kind was; negative before it, and when there is none."""
        armed = json.loads((self.state / f"targets/{kind}.json").read_text())["armed"]
        return (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - armed["deadline_ns"]) / 1e9 if armed else -1.0

    def until_back(self, is_back: Callable[[], bool], kind: str = "file") -> float:
        """Wait until nothing of a kind is armed any more and no dead-man is left: from LATE_S after the deadline on all
        is as it was. How late it was seen not to be, in seconds.

        What this loop overslept is granted to the dead-man too: the machine did not run either of them.
        """
        latest_s = granted_s = 0.0
        patience = time.monotonic() + 60
        while (late_s := self.late_s(kind)) != -1.0 or self.dead_men():
            # Looked at after the moment was taken, so that a pause between the two makes nobody late.
            if late_s > 0 and not is_back():
                latest_s = max(latest_s, late_s)
                assert late_s < LATE_S + granted_s, f"{late_s:.2f} s after the deadline, {granted_s:.2f} s granted"
            assert time.monotonic() < patience, self.log()
            before_s = time.monotonic()
            time.sleep(LOOK_S)
            granted_s += time.monotonic() - before_s - LOOK_S
        assert is_back()
        return latest_s

    def state_of(self, plan: str) -> str:
        (found,) = [one for one in self.observed().plans if one.plan == plan]
        return str(found.state)

    def observed(self, **asked: Any) -> protocol.Observed:
        answer = self.ask(protocol.Observe(**asked))
        assert isinstance(answer, protocol.Observed), answer
        return answer

    def steps(self) -> tuple[protocol.Step, ...]:
        return self.observed(steps_after=0).steps

    def dead_men(self) -> list[int]:
        """Processes that are dead-men of this place."""
        found = []
        for name in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
                if b"--dead-man" in words and str(self.config).encode() in words:
                    state = Path(f"/proc/{name}/stat").read_text().rsplit(")", 1)[1].split()[0]
                    if state not in "ZX":
                        found.append(int(name))
        return found


def is_answered(sock: socket.socket, helper: subprocess.Popen[bytes]) -> bool:
    """Whether a request is answered, be it by a refusal: nothing is under way for it any more.

    Else a dead-man has killed the helper, which held the lock beyond the deadline: its machine is overloaded.
    """
    if sock.recv(1):
        return True
    assert helper.wait(processes.PATIENCE_S) == -signal.SIGKILL
    return False


def exchanged(path: str, line: bytes, *, user: processes.User | None = None, timeout_s: float = 60.0) -> bytes:
    """What comes back for a line, until the end; as another user by a child that changes its ids."""
    if user is not None:
        return exchanged_as(user, path, [line], timeout_s=timeout_s)[0]
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)  # without a timeout, which would fail where others wait to be accepted (unix(7), EAGAIN)
        sock.settimeout(timeout_s)
        sock.sendall(line)
        chunks = []
        while chunk := sock.recv(1 << 16):
            chunks.append(chunk)
        return b"".join(chunks)


_EXCHANGES = """
import json, socket, sys
answers = []
for line in json.load(sys.stdin):
    s, answer = socket.socket(socket.AF_UNIX), b""
    s.connect(sys.argv[1])
    s.settimeout(60)
    try:
        s.sendall(line.encode("latin-1"))
    except OSError:
        pass
    try:
        while d := s.recv(65536):
            answer += d
    except OSError:
        pass
    s.close()
    answers.append(answer.decode("latin-1"))
json.dump(answers, sys.stdout)
"""


def exchanged_as(user: processes.User, path: str, lines: Sequence[bytes], *, timeout_s: float = 60.0) -> list[bytes]:
    """What comes back for each line, one connection after the other, by one child with the ids of `user`."""
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", _EXCHANGES, path],
        input=json.dumps([line.decode("latin-1") for line in lines]).encode(),
        capture_output=True,
        user=user.uid,
        group=user.gid,
        extra_groups=list(user.groups),
        timeout=timeout_s,
        check=True,
        cwd="/",
    )
    return [answer.encode("latin-1") for answer in json.loads(done.stdout)]


@contextlib.contextmanager
def place(parent: Path | None = None, **settings: Any) -> Iterator[Place]:
    """A fresh place below /tmp that everybody may pass through, and root alone can change."""
    home = Path(tempfile.mkdtemp(prefix="apply-", dir=parent))
    made = Place(home=home, settings=settings)
    try:
        home.chmod(0o755)
        (home / "live").mkdir()
        (home / "code").mkdir()
        shutil.copy(Path(__file__).with_name("file_kind.py"), home / "code/file_kind.py")
        yield made
    finally:
        for pid in made.dead_men():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(home, ignore_errors=True)


def secret(reference: str, value: str) -> protocol.SecretValue:
    return protocol.SecretValue(reference=reference, form="password", value=value)


def words(steps: Sequence[protocol.Step]) -> list[str]:
    """The actions of steps, in order."""
    return [step.action for step in steps]


def pause(seconds: float) -> None:
    """For what takes real time."""
    time.sleep(seconds)
