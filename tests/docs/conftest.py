"""The checkout's samples in a private directory with a short path, and `tour.py run` on them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.house import pages, processes

CALL_S = 10 * processes.PATIENCE_S
"""For a whole tour or script: a demo is some seventy commands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tour:
    """`checkout` holds plugins-sample; `directory` is an empty directory to work in."""

    checkout: Path
    directory: Path

    @property
    def home(self) -> Path:
        return self.checkout / ".run"

    def elsewhere(self, name: str) -> Tour:
        """The same tour, with an empty directory of this name to work in."""
        there = self.directory.with_name(name)
        there.mkdir(mode=0o755)
        there.joinpath("plugins-sample").symlink_to(self.checkout / "plugins-sample")
        return replace(self, directory=there)

    def command(self, what: str) -> list[str]:
        return [sys.executable, "-P", str(self.checkout / "plugins-sample" / "tour.py"), what]

    def play(self, what: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the tour to its end."""
        return subprocess.run(
            self.command(what),
            env={**os.environ, **variables},
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            timeout=CALL_S,
        )

    def type(self, script: str) -> subprocess.CompletedProcess[str]:
        """A second terminal: a shell that ends at the first failure, after it has read the tour's env file."""
        script = f'set -e\n. "{self.home}/env"\n{script}'
        return subprocess.run(
            ["/bin/sh", "-c", script], cwd=self.directory, capture_output=True, text=True, check=False, timeout=CALL_S
        )


@contextlib.contextmanager
def made() -> Iterator[Tour]:
    """Samples in a fresh checkout, not started."""
    parent = Path(tempfile.mkdtemp(prefix="latticed-docs-", dir="/tmp"))  # socket paths are short
    try:
        place = Tour(checkout=parent / "check out", directory=parent / "directory")
        place.checkout.mkdir(mode=0o755)
        shutil.copytree(pages.CHECKOUT / "plugins-sample", place.checkout / "plugins-sample")
        for path in (place.checkout / "plugins-sample").rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)  # whatever umask the checkout was made under
        (place.checkout / "plugins-sample").chmod(0o755)
        yield place.elsewhere("directory")
    finally:
        shutil.rmtree(parent)


@contextlib.contextmanager
def started(tour: Tour) -> Iterator[Tour]:
    """The tour while `run` is in the foreground and answers."""
    log = tour.checkout / "run.log"
    with processes.spawned(tour.command("run"), stdout=log, stderr=log.with_suffix(".err")) as process:

        def answers() -> bool:
            assert process.poll() is None, log.read_text() + log.with_suffix(".err").read_text()
            return (tour.home / "env").exists() and tour.type("latticectl status").returncode == 0

        processes.until(answers, what="latticed to answer", deadline_s=processes.LONG_PATIENCE_S)
        yield tour


@pytest.fixture
def tour() -> Iterator[Tour]:
    with made() as tour:
        yield tour


@pytest.fixture(scope="module")
def shared() -> Iterator[Tour]:
    """One that runs, for several tests."""
    with made() as tour, started(tour):
        yield tour
