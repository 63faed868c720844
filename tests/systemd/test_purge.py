"""`postrm purge` that fails or is killed half-way, and runs again: what was to stay stays."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

POSTRM = Path(__file__).resolve().parents[2] / "packaging/debian/latticed.postrm"
# The n-th removal kills the script instead, as a power cut or a directory that something is mounted on ends it.
ENDS = """#!/bin/sh
echo >>"$COUNTER"
[ "$(wc -l <"$COUNTER")" != "$ENDS_AT" ] || { kill -9 $PPID; exit 1; }
PATH=/usr/sbin:/usr/bin:/sbin:/bin exec NAME "$@"
"""
KEPT = ("var/lib/latticed", "etc/credstore/latticed-secrets.key")
GONE = (
    *("etc/latticed", "etc/latticed-controller", "var/lib/latticed-plugins", "var/lib/latticed-apply"),
    *("var/lib/latticed-nginx", "var/lib/latticed-fleet", "var/lib/latticed-controller", "var/backups/latticed"),
)

REMOVALS = 10
"""Commands of a purge that remove something."""


@pytest.fixture
def host(tmp_path):
    """A tree with everything of the package, and its script for it; its other programs do nothing."""
    root, programs = tmp_path / "root", tmp_path / "bin"
    for name in (*KEPT[:1], *GONE):
        (root / name).mkdir(parents=True)
        (root / name / "one").write_text("content")
    (root / "etc/credstore").mkdir()
    (root / KEPT[1]).write_text("key")
    (root / "etc/latticed/keep-on-purge").write_text("".join(f"{root}/{name}\n" for name in KEPT))
    programs.mkdir()
    for name in ("rm", "find", "rmdir"):
        (programs / name).write_text(ENDS.replace("NAME", name))
    for name in ("userdel", "systemctl"):
        (programs / name).write_text(f"#!/bin/sh\necho {name} $* >>{tmp_path}/called\n")
    for path in programs.iterdir():
        path.chmod(0o755)
    script = tmp_path / "postrm"
    script.write_text(re.sub(r"(?<![\w/])/(?=etc/|var/|run/|usr/)", f"{root}/", POSTRM.read_text()))
    return tmp_path


def purge(host, ends_at):
    (host / "counter").unlink(missing_ok=True)
    environment = {"PATH": f"{host}/bin:{os.environ['PATH']}", "COUNTER": f"{host}/counter", "ENDS_AT": str(ends_at)}
    return subprocess.run(["sh", host / "postrm", "purge"], env=environment, check=False).returncode


@pytest.mark.parametrize("ends_at", range(1, REMOVALS + 1))
def test_purge_that_ended_half_way_keeps_what_was_asked_when_it_runs_again(host, ends_at):
    assert purge(host, ends_at) != 0
    assert purge(host, 0) == 0
    assert [name for name in KEPT if not (host / "root" / name).exists()] == []
    assert [name for name in GONE if (host / "root" / name).exists()] == []
    assert not (host / "called").exists(), "a user whose files stay does too"


def test_purge_removes_all_else_at_once(host):
    assert purge(host, 0) == 0
    assert len((host / "counter").read_text().splitlines()) == REMOVALS, "each of them is to be tried above"
    assert [name for name in KEPT if not (host / "root" / name).exists()] == []
    assert [name for name in GONE if (host / "root" / name).exists()] == []
