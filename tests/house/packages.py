"""Debian packages of latticed, built for tests, and machines without anything of latticed to install them on.

Wheels, and packages of earlier commits, are kept in `machines.CACHE`.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.house import machines

CHECKOUT = machines.CHECKOUT
EARLIER = "50454c7641e7b546601d6996484a43517a948c5c"
"""A commit whose ledger has fewer migrations than today's; packaged by today's files, as it had none."""
EARLIER_SCHEMA = 18
BUILD_S = 600.0


@functools.cache
def built(suite: str) -> Path:
    """The package of this checkout."""
    place = tempfile.mkdtemp(prefix="latticed-deb-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return _build(suite, CHECKOUT, Path(place))


def rebuilt(suite: str, output: Path) -> Path:
    """The same once more, in `output`, by `make deb`."""
    command = ["make", "-s", "-C", str(CHECKOUT), "deb", f"SUITE={suite}", f"VENV={sys.prefix}"]
    told = _run(command, {**_environment(suite, CHECKOUT), "OUTPUT": str(output)})
    return Path(told.splitlines()[-1])


def earlier_known() -> bool:
    """Whether the checkout has the history with EARLIER."""
    known = ["git", "-C", str(CHECKOUT), "cat-file", "-e", f"{EARLIER}^{{commit}}"]
    return subprocess.run(known, capture_output=True, check=False).returncode == 0


def earlier_source(place: Path) -> None:
    """Unpack the tree of EARLIER into an empty directory."""
    words = ["sh", "-c", 'git -C "$1" archive "$2" | tar -x -C "$3"', "sh", str(CHECKOUT), EARLIER, str(place)]
    subprocess.run(words, check=True)


def earlier(suite: str) -> Path | None:
    """The package of EARLIER, None without the history of the checkout."""
    if not earlier_known():
        return None
    packaging = sorted(path for path in (CHECKOUT / "packaging").rglob("*") if path.is_file())
    made_of = EARLIER + "".join(path.read_text(encoding="utf-8") for path in packaging if path.suffix != ".pyc")
    place = machines._kept(f"deb-{suite}", made_of, lambda fresh: _build_earlier(suite, fresh))
    return next(place.glob("*.deb"))


def _build_earlier(suite: str, place: Path) -> None:
    place.mkdir()
    with tempfile.TemporaryDirectory() as name:
        earlier_source(Path(name))
        _build(suite, Path(name), place, REVISION=f"~git20261129.{EARLIER[:7]}", SOURCE_DATE_EPOCH="1795951075")


def tree(suite: str, root: Path) -> None:
    """`make install DESTDIR=root`."""
    command = ["make", "-s", "-C", str(CHECKOUT), "install", f"DESTDIR={root}", f"SUITE={suite}", f"VENV={sys.prefix}"]
    _run(command, _environment(suite, CHECKOUT))


def _build(suite: str, source: Path, output: Path, **more: str) -> Path:
    command = [str(CHECKOUT / "packaging/deb"), suite, str(source)]
    told = _run(command, {**_environment(suite, source), "OUTPUT": str(output), **more})
    return Path(told.splitlines()[-1])


def _environment(suite: str, source: Path) -> dict[str, str]:
    # Not compressed: xz takes most of the time of a build.
    fast = {"DPKG_DEB_COMPRESSOR_TYPE": "none", "SOURCE_DATE_EPOCH": "1795951075"}
    return {"PATH": machines._PATH, "LANG": "C.UTF-8", "VENV": sys.prefix, "WHEELS": str(wheels(suite)), **fast}


def _run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=BUILD_S)
    assert done.returncode == 0, f"{command}: {done.stderr[-4_000:]}"
    return done.stdout


def wheels(suite: str) -> Path:
    """The wheels that packages of a suite bring."""
    pins = CHECKOUT / f"packaging/requirements/{suite}.txt"
    return machines._kept(f"wheels-{suite}", pins.read_text(), lambda place: _download(suite, pins, place))


def _download(suite: str, pins: Path, place: Path) -> None:
    python = f"--python-version={machines.SUITES[suite]}"
    platforms = [f"--platform={one}" for one in machines.WHEELS]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]
    options = ["--require-hashes", "--only-binary=:all:", "--implementation=cp", python, *platforms]
    subprocess.run([*pip, *options, "--dest", str(place), "--requirement", str(pins)], check=True, timeout=BUILD_S)


def put(machine: machines.Machine, package: Path) -> str:
    """Where the package is in a machine, which gets it."""
    place = f"/root/{package.name}"
    shutil.copyfile(package, f"/proc/{machine.leader}/root{place}")
    return place


def contents(package: Path, directory: Path) -> dict[str, bytes | str]:
    """What a package puts on a machine: bytes of files, targets of links, by path."""
    subprocess.run(["dpkg-deb", "--extract", str(package), str(directory)], check=True)
    return files(directory)


def files(root: Path) -> dict[str, bytes | str]:
    """Bytes of files, targets of links, below `root`."""
    found: dict[str, bytes | str] = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = os.path.normpath(os.path.join("/", Path(name).parent, os.readlink(path)))
        elif path.is_file():
            found[name] = path.read_bytes()
    return found
