"""packaging/tree.py: what it installs can be read by the daemon's user, however the checkout was made."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys

from tests.house import pages


def test_modes_are_not_those_of_the_checkout(tmp_path):
    """One of somebody with umask 077: an image or `make install` of it had a daemon that could not read itself."""
    source, root = tmp_path / "source", tmp_path / "root"
    (source / "packaging").mkdir(parents=True)
    shutil.copy(pages.CHECKOUT / "packaging/tree.py", source / "packaging")
    (source / "latticed/kit").mkdir(parents=True)
    (source / "latticed/kit/clock.py").touch()
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
