"""systemd's own tools read our unit, user and directory files without complaint."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from latticed.client import control

CHECKOUT = Path(__file__).resolve().parents[2]
UNITS = CHECKOUT / "systemd"
EXIT_CODES_NOT_WORTH_A_RESTART = {"2", "74", "75", "78"}


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.fixture
def units(tmp_path):
    """The units with a program that exists here in the place of latticed, and of the core."""
    names = sorted(path.name for path in UNITS.iterdir() if path.suffix in {".service", ".socket"})
    for unit in names:
        text = (UNITS / unit).read_text()
        (tmp_path / unit).write_text(re.sub(r"/usr/local/bin/lattice[-a-z]*|/usr/bin/sing-box", "/bin/true", text))
    return [str(tmp_path / unit) for unit in names]


def test_systemd_reads_the_units_without_warnings(units):
    """stderr must be empty: for unknown keys systemd-analyze only warns."""
    ran = subprocess.run([_tool("systemd-analyze"), "verify", *units], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_unknown_key_in_a_unit_gives_a_warning(units):
    """This shows that the test above can fail."""
    with open(units[0], "a", encoding="utf-8") as unit:
        unit.write("\n[Service]\nRestartt=no\n")
    ran = subprocess.run([_tool("systemd-analyze"), "verify", *units], capture_output=True, text=True, check=False)
    assert "Restartt" in ran.stderr


def test_sysusers_and_tmpfiles_create_user_and_directory(tmp_path):
    """They are run on an empty root."""
    (tmp_path / "etc").mkdir()
    users = [_tool("systemd-sysusers"), f"--root={tmp_path}", str(UNITS / "latticed.sysusers")]
    ran = subprocess.run(users, capture_output=True, text=True, check=True)
    assert "latticed" in (tmp_path / "etc/passwd").read_text(), ran.stderr
    files = [_tool("systemd-tmpfiles"), f"--root={tmp_path}", "--create", str(UNITS / "latticed.tmpfiles")]
    subprocess.run(files, capture_output=True, text=True, check=True)
    assert (tmp_path / "var/lib/latticed-plugins").stat().st_mode & 0o777 == 0o755


def test_units_of_the_journal_reader_let_the_daemon_ask_and_nobody_else():
    """Its user may read the journal; the socket is the daemon's group's, in the daemon's runtime directory."""
    service, socket = configparser.RawConfigParser(strict=False), configparser.RawConfigParser(strict=False)
    service.read(UNITS / "latticed-journal.service")
    socket.read(UNITS / "latticed-journal.socket")
    assert socket["Socket"]["ListenStream"] == "/run/latticed/journal.sock"
    assert (socket["Socket"]["SocketGroup"], socket["Socket"]["SocketMode"]) == ("latticed", "0660")
    assert service["Service"]["SupplementaryGroups"] == "systemd-journal"
    assert service["Service"]["User"] == "latticed-journal"
    assert "LATTICED_RUNTIME_DIR=/run/latticed" in service["Service"]["Environment"]
    assert service["Service"]["RestartPreventExitStatus"].split() == ["2", "78"]


def test_units_have_the_settings_the_daemon_relies_on():
    """The socket's name and mode, the reload signal, and the exit codes that prevent a restart."""
    service, socket = configparser.RawConfigParser(strict=False), configparser.RawConfigParser(strict=False)
    service.read(UNITS / "latticed.service")
    socket.read(UNITS / "latticed.socket")
    assert socket["Socket"]["ListenStream"] == "/run/latticed/control.sock"
    assert socket["Socket"]["FileDescriptorName"] == "control"
    assert socket["Socket"]["SocketMode"] == "0660"
    assert service["Service"]["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert set(service["Service"]["RestartPreventExitStatus"].split()) == EXIT_CODES_NOT_WORTH_A_RESTART
    # A client that a daemon which hangs has kept waiting is answered by the next one.
    killed_s, again_s = (float(service["Service"][name]) for name in ("WatchdogSec", "RestartSec"))
    assert killed_s + again_s + 10 < control.READ_S
    assert "PrivateUsers" not in service["Service"]  # every peer but root would arrive as uid 65534
