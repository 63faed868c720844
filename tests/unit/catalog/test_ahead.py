"""A second process judges bundles ahead of the first scan; whatever becomes of it, the verdicts are the scan's own."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from latticed.bundle.read import ReadLimits
from latticed.catalog import ahead as ahead_module
from latticed.catalog import root as roots
from latticed.catalog.ahead import Ahead
from latticed.catalog.scanner import Judge
from latticed.kit.clock import SystemClock
from latticed.model.verdict import Verified
from latticed.trust import keys
from latticed.trust import policy as policies
from tests.house import bundles, catalogs
from tests.house.catalogs import HOST_VERSION, until

ACME = bundles.author()
MANY = 40


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A few bundles, which count as many here, written long enough ago to be compared."""
    monkeypatch.setattr(ahead_module, "MANY", 10)
    place = tmp_path / "plugins"
    place.mkdir()
    for number in range(MANY):
        bundles.drop(place, f"b{number:02}", author=ACME, id=f"acme.b{number:02}")
    return place


def judge() -> Judge:
    policy = policies.decode(bundles.policy_bytes(ACME))
    return Judge(limits=ReadLimits(), policy=lambda: policy, host_version=HOST_VERSION, clock=SystemClock())


async def found(plugins: Path, names: list[str]) -> Ahead:
    """An Ahead whose process has told of all these names but those that it cannot."""
    ahead = Ahead(plugins, judge())
    ahead.start(names)
    await until(lambda: ahead._child is not None and ahead._child.returncode is not None)
    return ahead


async def test_hashes_and_signatures_are_told_and_the_scan_uses_them(plugins: Path) -> None:
    """Each artifact's SHA-256 and size, and that each signature holds."""
    await until(lambda: scanned(plugins, "b00"))
    names = sorted(os.listdir(plugins))
    keys.take_held()
    ahead = await found(plugins, names)
    assert len(keys._HELD) == MANY
    for name in names:
        known = ahead.known(name)
        assert known is not None
        data = (plugins / name / "artifact").read_bytes()
        assert known.hashed == (hashlib.sha256(data).hexdigest(), len(data))
    ahead.stop()
    assert ahead.known("b00") is None


def scanned(plugins: Path, name: str) -> bool:
    """Whether a look at this bundle gives an entry that may be compared: its files are old enough."""
    root = roots.open_root(plugins)
    try:
        return judge().judge(name, root).fingerprint is not None
    finally:
        root.close()


async def test_what_changes_after_it_was_told_is_judged_anew(plugins: Path) -> None:
    """The fingerprint differs: the hash that was told counts no more."""
    await until(lambda: scanned(plugins, f"b{MANY - 1}"))
    ahead = await found(plugins, sorted(os.listdir(plugins)))
    (plugins / "b07" / "artifact").write_bytes(b"something else")
    root = roots.open_root(plugins)
    try:
        entry = judge().judge("b07", root, known=ahead.known("b07"))
    finally:
        root.close()
    assert catalogs.plain(entry.verdict) == "digest_mismatch"


async def test_files_that_cannot_be_read_are_left_to_the_scan(plugins: Path) -> None:
    """A FIFO, a directory without a manifest, a link: nothing is told of them, and the process goes on."""
    (plugins / "b01" / "artifact").unlink()
    os.mkfifo(plugins / "b01" / "artifact")
    (plugins / "b02" / "manifest.json").unlink()
    (plugins / "b03" / "manifest.json").write_bytes(b"{" * 100_000)
    await until(lambda: scanned(plugins, f"b{MANY - 1}"))
    ahead = await found(plugins, [*sorted(os.listdir(plugins)), "gone", "b\udcff"])
    assert all(ahead.known(name) is None for name in ("b01", "b02", "b03", "gone", "b\udcff"))
    assert ahead.known("b00") is not None


@pytest.mark.parametrize("moment", [0, 1, 2])
async def test_process_that_is_killed_costs_no_verdict(
    plugins: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Before its first frame, after one, and at its end."""
    monkeypatch.setattr(ahead_module, "MANY", 10)
    started: list[subprocess.Popen[bytes]] = []
    told = threading.Semaphore(0)
    real, hold = subprocess.Popen, keys.hold

    def start(*args: object, **named: object) -> subprocess.Popen[bytes]:
        started.append(real(*args, **named))  # type: ignore[call-overload]
        if moment == 0:
            started[-1].kill()
        return started[-1]

    def held(known: object) -> None:
        hold(known)  # type: ignore[arg-type]
        told.release()
        if moment == 1 and started:
            os.kill(started[-1].pid, signal.SIGSTOP)

    monkeypatch.setattr(ahead_module.subprocess, "Popen", start)
    monkeypatch.setattr(ahead_module.keys, "hold", held)
    async with catalogs.watching(plugins, ACME) as seen:
        assert len(seen.now) == MANY
        assert all(isinstance(verdict, Verified) for verdict in seen.now.values())
    await until(lambda: all(child.poll() is not None for child in started))


@pytest.mark.parametrize("said", [b"\xff\xff\xff\xff", b"\0\0\0\x02{}", b"\0\0", b"", b"\0\0\0\x09\x92\x91\x95"])
async def test_bytes_that_are_no_frame_end_the_conversation(plugins: Path, tmp_path: Path, said: bytes) -> None:
    """What was told before stays; the error is one of those that are logged."""
    (tmp_path / "said").write_bytes(said)
    ahead = Ahead(plugins, judge())
    says = "import sys; sys.stdin.read(); sys.stdout.buffer.write(open(sys.argv[1], 'rb').read())"
    with subprocess.Popen(
        [sys.executable, "-c", says, str(tmp_path / "said")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        if len(said) < 4:  # an end in the middle is an end
            ahead._converse(child, b"names")
        else:
            with pytest.raises(ValueError):
                ahead._converse(child, b"names")
    assert ahead.known("b00") is None


async def test_few_bundles_start_no_process(plugins: Path) -> None:
    ahead = Ahead(plugins, judge())
    ahead.start(["b00", "b01"])
    assert not any(thread.name == "latticed-ahead" for thread in threading.enumerate())
    ahead.stop()
