"""axe-core, which finds what keeps people from using a page: one file of npm, fetched once and pinned."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.house.machines import CACHE

VERSION = "4.10.3"
INTEGRITY = "Xm7bpRXnDSX2YE2YFfBk2FnF0ep6tmG7xPh8iHee8MIcrgq762Nkce856dYtJYLkuIoYZvGfTs/PbZhideTcEg=="
"""SHA-512 of the package, as the registry and every lock file have it."""
_FETCH_S = 300


def script() -> str:
    """axe.min.js; skips where it is not cached and npm cannot fetch it."""
    package = CACHE / f"axe-core-{VERSION}.tgz"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "axe-core.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not package.exists():
            _fetch(package)
    digest = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
    assert digest == INTEGRITY, f"{package} is not axe-core {VERSION}: sha512-{digest}"
    with tarfile.open(package) as tar:
        found = tar.extractfile("package/axe.min.js")
        assert found is not None
        return found.read().decode()


def _fetch(package: Path) -> None:
    if not shutil.which("npm"):
        pytest.skip("npm is not installed here, and axe-core is not cached")
    place = package.with_suffix(f".{os.getpid()}")
    place.mkdir()
    try:
        command = ["npm", "pack", f"axe-core@{VERSION}", "--silent", "--pack-destination", str(place)]
        done = subprocess.run(command, cwd=place, capture_output=True, check=False, timeout=_FETCH_S)
        if done.returncode:
            pytest.skip("axe-core is not cached, and npm cannot fetch it")
        next(place.glob("*.tgz")).rename(package)
    finally:
        shutil.rmtree(place, ignore_errors=True)
