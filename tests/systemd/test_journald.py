"""The real journald: what latticed logs can be queried, and hostile text stays text."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import latticed

JOURNALD = Path("/lib/systemd/systemd-journald")

# journald alone, without PID 1, in its own mount and pid namespace; `systemd-cat` gives the program a journal stream.
SETUP = r"""
set -eu
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log # or a journal that the host keeps would be read, and written
mkdir -p /run/systemd/journal /run/log/journal /run/systemd/journald.conf.d
printf '[Journal]\nReadKMsg=no\n' >/run/systemd/journald.conf.d/here.conf # the kernel log is the host's
"$1" >/dev/null 2>&1 &
for _ in $(seq 500); do
  [ -S /run/systemd/journal/socket ] && [ -S /run/systemd/journal/stdout ] && break
  sleep 0.01
done
systemd-cat -t elsewhere "$2" -c "$3"
journalctl --sync
for query in "-t latticed LATTICED_PLUGIN_ID=acme.demo" "-t latticed LATTICED_EVENT=verdict_refused" "PRIORITY=0"; do
  journalctl -q -o json --all --no-pager $query
  echo "--"
done
"""

# systemd-cat makes the stream as PID 1 does, but leaves it to PID 1 to announce it.
PROGRAM = r"""
import os
from latticed.kit import logs
stream = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{stream.st_dev}:{stream.st_ino}"
logs.configure("info")
log = logs.get_logger()
hostile = "x\nPRIORITY=0\nLATTICED_PLUGIN_ID=acme.other\r\x1b[2J\u2028\x00"
log.info("plugin_armed", plugin_id="acme.demo", runner="wasm")
log.warning("verdict_refused", plugin_id="acme.demo", code="digest_mismatch", reason=hostile)
log.info("payload_seen", plugin_id="acme.demo", blob=["y" * 8000] * 60)
try:
    raise ValueError(hostile)
except ValueError:
    log.error("plugin_start_failed", plugin_id="acme.demo", exc_info=True)
"""


@pytest.fixture(scope="module")
def queried():
    """The entries of each query, read back with journalctl."""
    if not JOURNALD.exists() or shutil.which("journalctl") is None or shutil.which("unshare") is None:
        pytest.skip("systemd-journald is not installed")
    if os.getuid() != 0:
        pytest.skip("journald in its own namespaces needs uid 0")
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(Path(latticed.__file__).parents[1])}
    unshare = ["unshare", "-mpf", "--mount-proc", "--kill-child", "sh", "-c", SETUP, "sh"]
    command = [*unshare, str(JOURNALD), sys.executable, PROGRAM]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=50)
    assert ran.returncode == 0, ran.stderr
    return [[json.loads(line) for line in part.splitlines()] for part in ran.stdout.split("--\n")[:3]]


def test_journal_entries_have_the_plugin_id_as_a_field(queried):
    """`journalctl -t latticed LATTICED_PLUGIN_ID=acme.demo` finds all four entries, in order, large ones included."""
    by_plugin = queried[0]
    events = [entry["LATTICED_EVENT"] for entry in by_plugin]
    assert events == ["plugin_armed", "verdict_refused", "payload_seen", "plugin_start_failed"]
    assert [entry["PRIORITY"] for entry in by_plugin] == ["6", "4", "6", "3"]
    assert len(by_plugin[2]["MESSAGE"]) > 400_000
    assert by_plugin[0]["LATTICED_RUNNER"] == "wasm"
    assert by_plugin[0]["MESSAGE"] == "plugin armed: plugin_id=acme.demo runner=wasm"


def test_hostile_text_injects_neither_fields_nor_lines_into_the_journal(queried):
    """It is one escaped line, and no entry has the priority that it tried to set."""
    _, by_event, emergencies = queried
    assert [entry["LATTICED_CODE"] for entry in by_event] == ["digest_mismatch"]
    assert "x\\x0aPRIORITY=0\\x0aLATTICED_PLUGIN_ID=acme.other\\x0d\\x1b[2J\\u2028\\x00" in by_event[0]["MESSAGE"]
    assert emergencies == []


def test_traceback_is_kept_in_its_own_journal_field(queried):
    """Its line breaks are kept, its control characters are not."""
    rows = queried[0][3]["LATTICED_EXCEPTION"].split("\n")
    assert rows[0] == "Traceback (most recent call last):"
    assert rows[-1] == "LATTICED_PLUGIN_ID=acme.other\\x0d\\x1b[2J\\u2028\\x00"
