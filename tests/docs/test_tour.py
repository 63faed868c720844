"""`make run` and `make demo`, with a real daemon, in any checkout."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from tests.house import pages, processes, terminal_picture
from tests.house.transcripts import plain

pytestmark = [pytest.mark.daemon, pytest.mark.slow, pytest.mark.timeout(1_500)]

_HASH = r"\b[0-9a-f]{16,}\b"


def _shows(transcript: list[str], output: list[str]) -> str | None:
    """The first line of the transcript that the output does not have at its place; `…` stands for anything."""
    place, skipping = 0, True
    for line in transcript:
        if line == "…":
            skipping = True
            continue
        wanted = line.partition("…")
        while place < len(output) and not _same(wanted, output[place]):
            if not skipping:
                return line
            place += 1
        if place == len(output):
            return line
        place, skipping = place + 1, line == ""  # between two sections a whole one may be missing
    return None


def _same(wanted: tuple[str, str, str], found: str) -> bool:
    """Digests are compared as far as the transcript shows them, and whole ones not at all."""
    start, cut, _ = wanted
    if cut:
        return plain(found).startswith(plain(start))
    return re.sub(_HASH, "HASH", plain(start)) == re.sub(_HASH, "HASH", plain(found))


def _left(checkout: Path) -> list[str]:
    """Processes whose directory is in `checkout`, which may be removed."""
    return [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit() and str(checkout) in _place(entry)]


def _place(process: Path) -> str:
    try:
        return str((process / "cwd").readlink())
    except OSError:
        return ""


def test_demo_prints_the_transcript_of_its_page(tour):
    """It exits with 0 and leaves no process and no directory."""
    done = tour.play("demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("# Every step went as told.\n")
    assert not tour.home.exists()
    (transcript,) = [block for block in pages.named("console") if block.page == terminal_picture.TRANSCRIPT]
    missing = _shows(transcript.text.splitlines(), done.stdout.splitlines())
    assert missing is None, f"not in the demo's output any more:\n{missing}\n\n{done.stdout}"


def test_the_readmes_picture_of_a_terminal_is_that_of_the_transcript():
    """Otherwise: python -P tests/house/terminal_picture.py"""
    assert terminal_picture.PICTURE.read_text(encoding="utf-8") == terminal_picture.draw(terminal_picture.lines())


def test_demo_fails_at_the_first_unexpected_step(tour):
    """A missing sample ends it with the step, the log, and exit status 1; its daemon is stopped."""
    shutil.rmtree(tour.checkout / "plugins-sample" / "hello-wasm")
    done = tour.play("demo")
    assert done.returncode == 1
    assert "not as told: latticectl list: expected 'sample.hello-wasm' in its output" in done.stderr
    assert "latticed's log:" in done.stderr
    assert _left(tour.checkout) == []
    assert not tour.home.exists()


def test_demo_stops_its_daemon_on_sigterm(tour):
    """No process and no directory is left."""
    log = tour.checkout / "demo.log"
    with processes.spawned(tour.command("demo"), stdout=log, stderr=log.with_suffix(".err")) as process:
        processes.until(
            lambda: "latticectl list" in log.read_text(),
            what="the demo to be on its way",
            deadline_s=processes.LONG_PATIENCE_S,
        )
        assert _left(tour.checkout), "the daemon, while it runs"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=processes.PATIENCE_S) == 1
    assert _left(tour.checkout) == []
    assert not tour.home.exists()


@pytest.mark.parametrize("why", ["a path that is too long for a socket", "a parent that others can change"])
def test_tour_falls_back_to_another_directory_and_says_why(tour, why):
    """The demo succeeds there and removes it afterwards."""
    unfit = tour.checkout / ("x" * 100 if "long" in why else "shared")
    unfit.mkdir()
    unfit.chmod(0o755 if "long" in why else 0o777)
    shutil.move(tour.checkout / "plugins-sample", unfit / "plugins-sample")
    moved = type(tour)(checkout=unfit, directory=tour.directory)
    elsewhere = tour.directory / "tmp"
    elsewhere.mkdir(mode=0o700)
    done = moved.play("demo", TMPDIR=str(elsewhere), XDG_RUNTIME_DIR="")
    assert done.returncode == 0, done.stdout + done.stderr
    expected = "107 is the limit" if "long" in why else "writable by others (mode 0777)"
    assert expected in done.stdout.splitlines()[0]
    assert list(elsewhere.iterdir()) == []
    assert not moved.home.exists()


def test_make_run_keeps_its_state_across_restarts(tour):
    """Active plugins are armed again; key, state and settings are private."""
    for status in ("verified", "active"):
        log = tour.checkout / f"{status}.log"
        with processes.spawned(tour.command("run"), stdout=log, stderr=log.with_suffix(".err")) as process:
            processes.until(
                lambda: (tour.home / "env").exists() and tour.type("latticectl status").returncode == 0,
                what="latticed to answer",
                deadline_s=processes.LONG_PATIENCE_S,
            )
            listed = tour.type("latticectl list").stdout
            assert re.search(rf"sample\.hello-system +1\.0\.0 +system +{status}", listed), listed
            again = tour.play("run")
            assert (again.returncode, "make run is already running" in again.stderr) == (1, True)
            if status == "verified":
                done = tour.type("latticectl install sample.hello-system && latticectl activate sample.hello-system")
                assert done.returncode == 0, done.stderr
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=processes.PATIENCE_S) == 0, log.read_text()
    for path in (tour.home, tour.home / "author.key", tour.home / "state", tour.home / "latticed.toml"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_make_run_and_demo_start_the_tour():
    """The README names the Makefile's targets."""
    for what in ("run", "demo"):
        planned = subprocess.run(
            ["make", "-n", "-C", str(pages.CHECKOUT), "VENV=/nowhere", what],
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"/nowhere/bin/python -P plugins-sample/tour.py {what}" in planned.stdout
