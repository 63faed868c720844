"""A real journald in namespaces of its own, with programs that log to it and a real latticed-journal beside it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import latticed
from tests.house import processes

JOURNALD = Path("/lib/systemd/systemd-journald")
SLICE = f"latticed_tests{os.getpid()}.slice"  # of this run: others may be under way

# Each line of stdin is run as a command, and answered with its status: the programs it leaves running go with the
# pid namespace. /usr/local/sbin is a place of its own there, so that there can be an sshd in it.
SETUP = r"""
set -eu
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log # or a journal that the host keeps would be read, and written
mount -t tmpfs tmpfs /usr/local/sbin
cp "$(readlink -f "$(command -v logger)")" /usr/local/sbin/sshd
mkdir -p /run/systemd/journal /run/log/journal /run/systemd/journald.conf.d
printf '[Journal]\nReadKMsg=no\n' >/run/systemd/journald.conf.d/here.conf # the kernel log is the host's
"$1" >/dev/null 2>&1 &
journald=$!
for _ in $(seq 500); do
  [ -S /run/systemd/journal/socket ] && [ -S /run/systemd/journal/dev-log ] && break
  sleep 0.01
done
set +e
echo up
while IFS= read -r line; do eval "$line" </dev/null >/dev/null; echo "$?"; done
"""


@dataclass
class Journal:
    """One journald; `run` runs a shell command beside it."""

    shell: subprocess.Popen[str]
    home: Path
    speakers: list[Speaker] = field(default_factory=list)

    def run(self, command: str) -> None:
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        print(command, file=self.shell.stdin, flush=True)
        assert self.shell.stdout.readline().strip() == "0", command

    def restart(self, *options: str) -> None:
        """End journald and start it anew, with `options` in its configuration; speakers must be started after."""
        sockets = "/run/systemd/journal/socket /run/systemd/journal/dev-log"
        for option in options:
            self.run(f"echo {option} >>/run/systemd/journald.conf.d/here.conf")
        self.run("kill $journald; wait $journald; :")
        self.run(f"rm -f {sockets}; {JOURNALD} >/dev/null 2>&1 & journald=$!")
        self.run(f"for one in {sockets}; do until [ -S $one ]; do sleep 0.01; done; done")

    def speaker(self, program: str, *, uid: int = 0, tag: str = "sshd", cgroup: Path | None = None) -> Speaker:
        """A running copy of logger, which logs each line it is given, as `tag`."""
        pipe = self.home / f"speaker-{len(self.speakers)}"
        os.mkfifo(pipe, 0o666)
        pipe.chmod(0o666)
        into = f"echo 0 > {cgroup}/cgroup.procs; " if cgroup else ""
        drop = f"setpriv --reuid {uid} --clear-groups " if uid else ""
        socket = "--socket /run/systemd/journal/dev-log --socket-errors=on"
        self.run(
            f"({into}exec {drop}{program} {socket} --size 65536 -p authpriv.info -t {tag} <{pipe} >/dev/null 2>&1) &"
        )
        self.speakers.append(Speaker(pipe=pipe))
        return self.speakers[-1]


@dataclass
class Speaker:
    """Writes what its program logs. Whoever reads the journal waits for it: nothing says when it has arrived."""

    pipe: Path
    _file: int = -1

    def say(self, *lines: bytes | str) -> None:
        if self._file < 0:
            self._file = os.open(self.pipe, os.O_WRONLY | os.O_CLOEXEC)
        for line in lines:
            os.write(self._file, (line.encode() if isinstance(line, str) else line) + b"\n")

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


@contextlib.contextmanager
def started(home: Path) -> Iterator[Journal]:
    """A journald with an empty journal; skips where there is none, or no right to start one."""
    if not JOURNALD.exists() or shutil.which("journalctl") is None or shutil.which("unshare") is None:
        pytest.skip("systemd-journald is not installed")
    if os.getuid() != 0:
        pytest.skip("journald in its own namespaces needs uid 0")
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(Path(latticed.__file__).parents[1])}
    command = ["unshare", "-mpf", "--mount-proc", "--kill-child", "sh", "-c", SETUP, "sh", str(JOURNALD)]
    shell = subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    found = Journal(shell=shell, home=home)
    try:
        assert shell.stdout is not None
        assert shell.stdout.readline() == "up\n"
        yield found
    finally:
        for one in found.speakers:
            one.close()
        _end(shell)


def _end(shell: subprocess.Popen[str]) -> None:
    """End of input ends the shell, and its pid namespace with it."""
    assert shell.stdin is not None
    assert shell.stdout is not None
    shell.stdin.close()
    try:
        shell.wait(10)
    except subprocess.TimeoutExpired:
        shell.kill()
        shell.wait()
    shell.stdout.close()


@contextlib.contextmanager
def unit(name: str) -> Iterator[Path]:
    """A control group that journald takes for that of the unit `name`; skips where none can be made."""
    for root in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")):
        if (root / "cgroup.controllers").exists() and os.access(root, os.W_OK):
            break
    else:
        pytest.skip("no cgroup version 2 hierarchy here in which tests may make groups")
    place = root / SLICE / name
    try:
        place.mkdir(parents=True)
    except OSError as error:
        pytest.skip(f"no cgroup version 2 hierarchy here in which tests may make groups: {error.strerror}")
    try:
        yield place
    finally:
        with contextlib.suppress(OSError):
            (place / "cgroup.kill").write_text("1")

        def removed() -> bool:
            with contextlib.suppress(OSError):
                place.rmdir()
            return not place.exists()

        processes.until(removed, what="the group to be empty")
        with contextlib.suppress(OSError):
            place.parent.rmdir()


def reader_command(config: Path, *more: str) -> list[str]:
    return [sys.executable, "-P", "-m", "latticed.journal", "--config", str(config), *more]
