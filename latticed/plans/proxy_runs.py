"""Who keeps a proxy core running: a child of the helper in a session of its own, or a unit of systemd.

Both run `CORE run -c DIRECTORY/started.json` as an unprivileged user. A child goes on when the helper ends, and nobody
but the helper starts it again; a unit is in a cgroup of its own with what its file says, and systemd starts it again.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

from latticed.kit import files
from latticed.model.errors import Problem
from latticed.plans.effects import ran, signalled

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from latticed.plans.kind import Tools

PACKAGES: Final = MappingProxyType({"start-stop-daemon": "dpkg", "systemctl": "systemd"})
START_S: Final = 8.0
"""For a core to become the process that is found as ours."""
END_S: Final = 3.0
"""For a process that was killed to be gone."""
STARTED: Final = "started.json"
"""What a core is started with, beside its pid."""
_RUNS: Final = frozenset({"active", "reloading"})


class Runs(Protocol):
    """One way. Problems tool_missing, tool_failed, apply_failed."""

    @property
    def programs(self) -> Mapping[str, str]:
        """As `Kind.programs`."""
        ...

    def pid(self, tools: Tools) -> int:
        """Of the core, 0 where none runs."""
        ...

    def start(self, words: tuple[str, ...], tools: Tools) -> None:
        """Start it, by an absolute path and what follows; a unit has words of its own."""
        ...

    def stop(self, tools: Tools, *, at_once: bool = False) -> None:
        """End it, whether it runs or not; `at_once`: without the time to end by itself."""
        ...

    def ended(self, tools: Tools) -> bool:
        """Whether what was started is no more."""
        ...


@dataclass(frozen=True, slots=True)
class Child:
    """Started by start-stop-daemon(8), which writes its pid to `pidfile`."""

    pidfile: Path
    user: str

    @property
    def programs(self) -> Mapping[str, str]:
        return {"start-stop-daemon": "/usr/sbin/start-stop-daemon"}

    def pid(self, tools: Tools) -> int:
        """A pid that somebody else has by now is of another user, or another group."""
        if not self._read():
            return 0
        words = ("--status", "--pidfile", str(self.pidfile), "--user", self.user)
        ended = ran(tools, PACKAGES, "start-stop-daemon", *words, ends=(0, 1, 3, 4))
        return int(self._read() or b"0") if ended.status == 0 else 0

    def start(self, words: tuple[str, ...], tools: Tools) -> None:
        # One that a killed helper was about to start has no pid in the file yet, or never gets one.
        self._end_strays()
        ran(
            tools,
            PACKAGES,
            "start-stop-daemon",
            *("--start", "--background", "--make-pidfile", "--pidfile", str(self.pidfile), "--chdir", "/"),
            *("--startas", words[0], "--", *words[1:]),
            stays=True,
        )
        # Until setpriv(1) has given up root it would not be found as ours, and be started a second time.
        until = time.monotonic() + START_S
        while not self.pid(tools) and not self.ended(tools) and time.monotonic() < until:
            time.sleep(0.01)

    def stop(self, tools: Tools, *, at_once: bool = False) -> None:
        if self.pid(tools):
            signals = "KILL/3" if at_once else "TERM/3/KILL/3"
            words = ("--stop", "--oknodo", "--retry", signals, "--pidfile", str(self.pidfile))
            ran(tools, PACKAGES, "start-stop-daemon", *words, "--user", self.user)
        self._end_strays()
        self.pidfile.unlink(missing_ok=True)

    def ended(self, tools: Tools) -> bool:
        del tools
        pid = self._read().decode("ascii", "replace").strip()
        return pid.isdecimal() and not Path("/proc", pid).exists()

    def _end_strays(self) -> None:
        """Kill whatever was started with our file, or is about to become that: start-stop-daemon(8), setpriv(1)."""
        for pid in self._strays():
            signalled(pid, signal.SIGKILL, lambda pid=pid: pid in self._strays())  # type: ignore[misc]
        until = time.monotonic() + END_S
        while self._strays() and time.monotonic() < until:
            time.sleep(0.01)

    def _strays(self) -> list[int]:
        """The processes of ours or of root whose last words are those of a core."""
        file = os.fsencode(self.pidfile.with_name(STARTED))
        with contextlib.suppress(KeyError):  # a user who is gone has no processes that could be told from others
            ours = {0, pwd.getpwnam(self.user).pw_uid}
            return [pid for pid, uid, words in _processes() if uid in ours and b"run" in words and words[-1] == file]
        return []

    def _read(self) -> bytes:
        with contextlib.suppress(FileNotFoundError):
            return files.read_at_most(self.pidfile, 64)
        return b""


def _processes() -> Iterator[tuple[int, int, list[bytes]]]:
    """Pid, uid and words of each process there is."""
    for one in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield int(one.name), one.stat().st_uid, Path(one, "cmdline").read_bytes().rstrip(b"\0").split(b"\0")


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit that root has written, which says the same user."""

    name: str
    user: str

    @property
    def programs(self) -> Mapping[str, str]:
        return {"systemctl": "/usr/bin/systemctl"}

    def pid(self, tools: Tools) -> int:
        shown = self._shown(tools)
        return int(shown.get("MainPID", "0")) if shown.get("ActiveState") in _RUNS else 0

    def start(self, words: tuple[str, ...], tools: Tools) -> None:
        """Problem apply_failed for a unit of another user: the core has no more rights than the settings say."""
        del words
        found = self._shown(tools)
        if found.get("LoadState") != "loaded":
            hint = f"systemctl status {self.name}; latticed has systemd/latticed-proxy.service"
            raise Problem("tool_missing", f"apply.proxy.unit: there is no unit {self.name}", hint)
        if found.get("User") != self.user:
            whose = f"apply.proxy.unit: {self.name} has the user {found.get('User') or 'root'}"
            raise Problem(
                "apply_failed", f"{whose}, expected {self.user}", f"systemctl edit {self.name}: User={self.user}"
            )
        # One that failed too often is not started before that.
        self._control(tools, "reset-failed", ends=(0, 1))
        self._control(tools, "restart")

    def stop(self, tools: Tools, *, at_once: bool = False) -> None:
        if at_once:
            # 1: there is no process of it.
            self._control(tools, "kill", "--signal=KILL", ends=(0, 1, 5))
        # 5: there is no such unit.
        self._control(tools, "stop", ends=(0, 5))

    def ended(self, tools: Tools) -> bool:
        return self._shown(tools).get("ActiveState") not in _RUNS

    def _shown(self, tools: Tools) -> dict[str, str]:
        asked = "--property=LoadState,ActiveState,MainPID,User"
        shown = ran(tools, PACKAGES, "systemctl", "show", "--no-pager", asked, "--", self.name).stdout
        return dict(line.split("=", 1) for line in shown.decode("utf-8", "replace").splitlines() if "=" in line)

    def _control(self, tools: Tools, verb: str, *options: str, ends: tuple[int, ...] = (0,)) -> None:
        words = (verb, "--quiet", "--no-ask-password", *options, "--", self.name)
        ran(tools, PACKAGES, "systemctl", *words, ends=ends)
