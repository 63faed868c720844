"""packaging/tree.py: what it installs, however the checkout was made, and over what is there."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house import pages


@pytest.fixture
def source(tmp_path) -> Path:
    """A checkout with one module, and the settings of the package."""
    made: Path = tmp_path / "source"
    (made / "packaging").mkdir(parents=True)
    for name in ("tree.py", "latticed.toml"):
        shutil.copy(pages.CHECKOUT / "packaging" / name, made / "packaging")
    (made / "latticed/kit").mkdir(parents=True)
    (made / "latticed/kit/clock.py").touch()
    return made


def installed(source: Path, root: Path) -> None:
    """Everything but libraries and documents, which take pip and the whole source."""
    script = (
        "import runpy, sys; from pathlib import Path; made = runpy.run_path(sys.argv[1]); root = Path(sys.argv[2]);"
    )
    script += "made['write_programs']('trixie', root); made['_settings'](root)"
    command = [sys.executable, "-I", "-c", script, source / "packaging/tree.py", root]
    subprocess.run(command, check=True)


def test_modes_are_not_those_of_the_checkout(source, tmp_path):
    """One of somebody with umask 077: an image or `make install` of it had a daemon that could not read itself."""
    root = tmp_path / "root"
    for path in (source / "latticed/kit/clock.py", source / "latticed/kit", source / "latticed"):
        path.chmod(path.stat().st_mode & 0o700)
    command = [sys.executable, "-I", source / "packaging/tree.py", "--programs", "trixie", root]
    subprocess.run(command, check=True, umask=0o077)
    found = {path: stat.S_IMODE(path.lstat().st_mode) for path in root.rglob("*") if not path.is_symlink()}
    assert any(path.name == "clock.py" for path in found)
    wrong = {
        path: oct(mode) for path, mode in found.items() if mode not in ({0o755} if path.is_dir() else {0o644, 0o755})
    }
    assert wrong == {}


def test_installing_again_replaces_the_programs_and_keeps_the_settings(source, tmp_path):
    """As an upgrade by `make install`: nothing of the version before is left among the modules."""
    root = tmp_path / "root"
    installed(source, root)
    settings = root / "etc/latticed/latticed.toml"
    assert settings.read_text() == (pages.CHECKOUT / "packaging/latticed.toml").read_text()
    settings.write_text("# mine\n")
    (source / "latticed/kit/clock.py").rename(source / "latticed/kit/time.py")
    installed(source, root)
    assert settings.read_text() == "# mine\n"
    assert [path.name for path in root.rglob("kit/*.py")] == ["time.py"]


@pytest.mark.parametrize("program", ["latticed", "latticed-fleet", "latticed-controller"])
def test_program_does_not_start_on_modules_of_two_versions(source, tmp_path, program):
    """After an upgrade that was broken off; it says what to do. The root helper starts all the same."""
    installed(source, tmp_path)
    home = tmp_path / "usr/lib/latticed"
    (home / "upgrading").touch()
    for name, code, said in ((program, 75, "dpkg --configure -a"), ("latticed-apply", 1, "No module named")):
        script = (home / "bin" / name).read_text().replace("/usr/lib/latticed/", f"{home}/")
        command = [sys.executable, "-I", "-S", "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
