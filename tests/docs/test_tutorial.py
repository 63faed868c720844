"""docs/start/tutorial.md, as somebody does it: in a new virtual environment, as an ordinary user, in one shell."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.house import netns, pages, processes, transcripts

PAGE = pages.CHECKOUT / "docs/start/tutorial.md"
BLOCKS = [block for block in pages.blocks(PAGE) if block.words[1:2] == ("tutorial",)]
DAEMON = "tutorial-daemon"
DEBIANS = Path("/usr/lib/python3/dist-packages")
USEFUL = "latticectl activate acme.disks"
WHAT_INSTALLS = ("latticed", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(command, lines shown below it) of a block in which commands begin with `$ `."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


TYPED = [one for block in BLOCKS if block.language == "console" for one in commands(block.text)]


@dataclass
class Terminal:
    """One shell, in which each command is typed when the one before has ended."""

    shell: subprocess.Popen[bytes]
    screen: Path
    seen: int = 0
    typed: int = 0

    def type(self, command: str) -> tuple[int, list[str]]:
        """Its exit status, and what it printed."""
        assert self.shell.stdin
        self.typed += 1
        end = f"ended-{self.typed} "
        self.shell.stdin.write(f"{{ {command}\n}} </dev/null; printf '\\n{end}%s\\n' $?\n".encode())
        self.shell.stdin.flush()
        text = processes.until(lambda: self._until(end), what=command, deadline_s=240)
        printed, _, status = text.rpartition(f"\n{end}")
        return int(status), printed.strip("\n").split("\n") if printed.strip("\n") else []

    def _until(self, end: str) -> str:
        text = self.screen.read_text()[self.seen :]
        if not (end in text and text.endswith("\n")):
            assert self.shell.poll() is None, text
            return ""
        self.seen += len(text)
        return text


@dataclass(frozen=True, kw_only=True)
class Newcomer:
    """An ordinary user with a checkout, on a machine that has no network but loopback."""

    home: Path
    checkout: Path
    inside: list[str]

    @property
    def environment(self) -> dict[str, str]:
        path = f"{Path(processes.reachable_python()).parent}:{os.defpath}"
        plain = {"PATH": path, "HOME": str(self.home), "XDG_RUNTIME_DIR": str(self.home / "run"), "LANG": "C.UTF-8"}
        # What latticed needs is there already: nothing is fetched.
        return plain | {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    @contextlib.contextmanager
    def terminal(self) -> Iterator[Terminal]:
        screen = self.home.parent / "screen"
        with screen.open("wb") as output:
            shell = subprocess.Popen(
                [*self.inside, "/bin/bash"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=self.checkout,
            )
        try:
            yield Terminal(shell=shell, screen=screen)
        finally:
            processes.end(shell)

    @contextlib.contextmanager
    def second_terminal(self, command: str) -> Iterator[None]:
        """The daemon, once it says that it is ready."""
        log = self.home.parent / "daemon.log"
        shell = [*self.inside, "/bin/bash", "-c", f"exec {command}"]
        with processes.spawned(shell, env=self.environment, stdout=log, stderr=log.with_suffix(".err")) as run:
            processes.until(lambda: "daemon_ready" in log.read_text() or run.poll() is not None, what="latticed")
            assert run.poll() is None, log.read_text() + log.with_suffix(".err").read_text()
            yield

    def save(self, name: str, text: str) -> None:
        path = self.checkout / name
        path.write_text(text)
        _give(path)

    def lend(self, environment: Path) -> None:
        """The libraries of this test's own environment, and Debian's, so that pip finds all that it would fetch."""
        (packages,) = environment.glob("lib/python3*/site-packages")
        (packages / "lent.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n{DEBIANS}\n")
        _give(packages / "lent.pth")


def _give(path: Path) -> None:
    os.chown(path, processes.STRANGER.uid, processes.STRANGER.gid)


@contextlib.contextmanager
def _alone() -> Iterator[list[str]]:
    """How a command begins that runs as an ordinary user, in a network namespace with loopback alone."""
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep infinity"], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout
        assert holder.stdout.readline() == b"up\n"
        ids = (f"--reuid={processes.STRANGER.uid}", f"--regid={processes.STRANGER.gid}", "--clear-groups")
        yield ["nsenter", f"--net=/proc/{holder.pid}/ns/net", "setpriv", *ids]
    finally:
        processes.end(holder)


@pytest.fixture
def newcomer() -> Iterator[Newcomer]:
    if reason := netns.why_not():
        pytest.skip(reason)
    if not (DEBIANS / "wheel").is_dir():
        pytest.skip("needs setuptools and wheel of Debian to install without a network")
    parent = Path(tempfile.mkdtemp(prefix="latticed-start-", dir="/tmp"))  # socket paths are short
    try:
        with processes.home_of(processes.STRANGER, parent) as home, _alone() as inside:
            checkout = home / "checkout"
            checkout.mkdir()
            (home / "run").mkdir(mode=0o700)
            for name in WHAT_INSTALLS:
                source = pages.CHECKOUT / name
                if source.is_dir():
                    shutil.copytree(source, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(source, checkout / name)
            for path in home.rglob("*"):
                _give(path)
            yield Newcomer(home=home, checkout=checkout, inside=inside)
    finally:
        shutil.rmtree(parent, ignore_errors=True)


@pytest.mark.daemon
@pytest.mark.slow
def test_the_tutorial_runs_as_printed_and_prints_what_it_shows(newcomer):
    """Command by command; then its schedule has run, and its page shows the disks."""
    with newcomer.terminal() as terminal, contextlib.ExitStack() as stack:
        for block in pages.blocks(PAGE):
            if block.words[:2] == ("console", DAEMON):
                (only,) = commands(block.text)
                stack.enter_context(newcomer.second_terminal(only[0]))
            elif block.words[:2] == ("console", "tutorial"):
                for command, shown in commands(block.text):
                    status, printed = terminal.type(command)
                    assert status == 0, "\n".join([command, *printed])
                    wrong = transcripts.differing(shown, printed)
                    assert wrong is None, f"$ {command}\n{wrong}"
                    if command == TYPED[0][0]:
                        newcomer.lend(newcomer.home / "latticed")
            else:
                newcomer.save(block.words[2], block.text)

        def ran() -> bool:
            return any(": ok" in line for line in terminal.type("latticectl info acme.disks")[1])

        processes.until(ran, what="the schedule to have run")
        (page,) = terminal.type("curl --silent http://127.0.0.1:8787/acme.disks/")[1]
        assert "<meter" in page


def test_the_tutorial_takes_less_than_15_commands_to_the_useful_plugin():
    """Each of a line joined by `&&` counts, and so does the daemon's."""
    typed = [command for command, _ in TYPED]
    until_useful = typed[: typed.index(USEFUL) + 1]
    assert sum(len(line.split(" && ")) for line in until_useful) + 1 < 15
