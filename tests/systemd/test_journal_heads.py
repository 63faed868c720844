"""Rollback of a whole state directory is detected by the signed heads in the real journal."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.house import bundles, journalds

# systemd-cat makes the stream as PID 1 does, but leaves it to PID 1 to announce it.
DAEMON = """
import os, sys
from latticed import daemon
stream = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{stream.st_dev}:{stream.st_ino}"
sys.exit(daemon.main(sys.argv[1:]))
"""
ROLLED_BACK = os.EX_IOERR


@pytest.fixture
def host(tmp_path):
    """(what runs a shell command beside a journald, where the daemon's directories are)"""
    acme = bundles.author()
    for name in ("plugins", "state", "run"):
        (tmp_path / name).mkdir(mode=0o700)
    bundles.drop(tmp_path / "plugins", "demo", author=acme, id="acme.demo", capabilities=["kv:read"])
    (tmp_path / "trust.json").write_bytes(bundles.policy_bytes(acme))
    (tmp_path / "daemon.py").write_text(DAEMON)
    places = {"plugin_dir": "plugins", "state_dir": "state", "runtime_dir": "run", "trust": "trust.json"}
    settings = [f'{key} = "{tmp_path / name}"' for key, name in places.items()]
    (tmp_path / "latticed.toml").write_text("\n".join([*settings, '[runners]\nsystem = "noop"', ""]))
    with journalds.started(tmp_path) as journal:
        yield journal.run, tmp_path


def started(home: Path, *options: str) -> str:
    """The command that starts the daemon with its log in the journal."""
    words = [sys.executable, "-P", str(home / "daemon.py"), "--config", str(home / "latticed.toml"), *options]
    return f"systemd-cat -t latticed {' '.join(words)}"


UP = "for _ in $(seq 400); do [ -S {0}/run/control.sock ] && break; sleep 0.05; done; [ -S {0}/run/control.sock ]"


def live(run, home: Path, *decisions: str, options: tuple[str, ...] = ()) -> None:
    """Run the daemon once, and latticectl with these arguments meanwhile."""
    run(f"{started(home, *options)} & echo $! >{home}/pid")
    run(UP.format(home))
    for words in decisions:
        run(f"{sys.executable} -P -m latticed.ctl.main --socket {home}/run/control.sock {words}")
    run(f"kill $(cat {home}/pid) && wait $(cat {home}/pid)")
    run("journalctl --sync")


@pytest.mark.root
@pytest.mark.slow
def test_old_state_directory_with_matching_floors_is_refused(host):
    """Ledger, floors and key are rolled back together, so only the journal shows it. An option starts it anyway."""
    run, home = host
    live(run, home, "install acme.demo")
    run(f"cp -a {home}/state {home}/old")
    live(run, home, "activate acme.demo", "disable acme.demo")
    run(f"rm -rf {home}/state && mv {home}/old {home}/state")
    run(f"timeout 30 {started(home)} 2>{home}/said; [ $? = {ROLLED_BACK} ]")
    live(run, home, "audit query | grep -q rollback_accepted", options=("--accept-rollback",))
    live(run, home)
