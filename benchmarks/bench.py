"""What every bench is given: how much to do, where, and the two installations to compare."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY: Final = Path(__file__).resolve().parent.parent
SYSTEM_PYTHON: Final = "/usr/bin/python3"
_PACKAGE: Final = ("latticed", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
_GO_PACKAGES: Final = Path("/usr/share/gocode")
"""Where Debian keeps the sources of Go's packages."""
_SUPERVISOR: Final = ("supervisor>=4.2", "setuptools<81")  # supervisor asks setuptools for pkg_resources


class Unavailable(Exception):
    """A reference cannot be installed on this machine; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """`work` holds what benches share: the virtual environments and the compiled reference. `pairs` is at least 1."""

    work: Path
    quick: bool = False
    pairs: int = 9

    def some(self, full: int, quick: int) -> int:
        """How many: `full`, or `quick` when the run is to be short."""
        return quick if self.quick else full

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A directory of this bench alone; its path is short, because those of unix sockets hold 107 bytes."""
        path = Path(tempfile.mkdtemp(prefix="b-", dir=self.work))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def ours(self) -> Path:
        """The bin directory of an environment into which latticed was installed from a wheel of this tree."""
        return self._environment("ours", self._install_ours)

    def supervisor(self) -> Path:
        """The bin directory of an environment with supervisor."""
        return self._environment("supervisor", lambda pip: _run(*pip, "install", *_SUPERVISOR))

    def hash_loop(self) -> Path:
        """The compiled C reference; Unavailable without a compiler or OpenSSL's headers."""
        return self.compiled("hash_loop", "-pthread", "-lcrypto")

    def compiled(self, name: str, *options: str) -> Path:
        """The program of `references/<name>.c`; Unavailable when it cannot be compiled here."""
        compiler = shutil.which("cc")
        if compiler is None:
            raise Unavailable("there is no C compiler (cc)")
        return self._built(f"{name}.c", (compiler, "-O2"), options)

    def go_plugin(self) -> Path:
        """The program of `references/go_plugin.go`; Unavailable without Go, go-plugin and gRPC as Debian packs them."""
        compiler = shutil.which("go")
        if compiler is None:
            packages = "golang-go golang-github-hashicorp-go-plugin-dev golang-google-grpc-dev"
            raise Unavailable(f"there is no Go: apt-get install {packages}")
        env = {"GO111MODULE": "off", "GOPATH": str(_GO_PACKAGES), "GOCACHE": str(self.work / "go-cache")}
        return self._built("go_plugin.go", (compiler, "build"), (), env)

    def _built(
        self, source: str, compiler: tuple[str, ...], options: tuple[str, ...], env: dict[str, str] | None = None
    ) -> Path:
        target = self.work / Path(source).stem
        if not target.exists():
            fresh = target.with_suffix(".new")
            path = Path(__file__).parent / "references" / source
            try:
                _run(*compiler, "-o", str(fresh), str(path), *options, env=env)
            except subprocess.CalledProcessError as error:
                raise Unavailable(f"{source} does not compile: is all that it names there?") from error
            fresh.rename(target)
        return target

    def _environment(self, name: str, install: object) -> Path:
        home = self.work / name
        with open(self.work / f"{name}.lock", "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (home / "ready").exists():
                shutil.rmtree(home, ignore_errors=True)
                say(f"installing {name} into an environment of its own")
                _run(system_python(), "-m", "venv", str(home))
                assert callable(install)
                install((str(home / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"))
                (home / "ready").touch()
        return home / "bin"

    def _install_ours(self, pip: tuple[str, ...]) -> None:
        """Build the wheel from a copy: building in the tree would leave `build/` behind."""
        source, wheels = self.work / "source", self.work / "wheels"
        shutil.rmtree(source, ignore_errors=True)
        shutil.rmtree(wheels, ignore_errors=True)
        source.mkdir()
        for name in _PACKAGE:
            found = REPOSITORY / name
            if found.is_dir():
                shutil.copytree(found, source / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif found.exists():
                shutil.copy(found, source / name)
        _run(*pip, "wheel", "--no-deps", "--wheel-dir", str(wheels), str(source))
        (wheel,) = wheels.glob("latticed-*.whl")
        _run(*pip, "install", f"{wheel}[ui]")


def system_python() -> str:
    """The machine's own Python by its path: a shim in between would be measured with it."""
    return SYSTEM_PYTHON if os.access(SYSTEM_PYTHON, os.X_OK) else sys.executable


def say(what: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(f"bench: {what}\n")
    sys.stderr.flush()


def _run(*command: str, env: dict[str, str] | None = None) -> None:
    subprocess.run(
        command, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr, cwd="/", env={**os.environ, **(env or {})}
    )
