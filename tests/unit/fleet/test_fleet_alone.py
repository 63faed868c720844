"""Without the extra `fleet` everything else works, and nothing looks for NATS' client."""

from __future__ import annotations

import subprocess
import sys

_REFUSES = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "nats":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import latticed.app, latticed.ctl.main
assert not [name for name in sys.modules if name.startswith("latticed.fleet")], "imported at the daemon's start"
import latticed.fleet.deployment, latticed.fleet.engine, latticed.fleet.messages, latticed.fleet.nkeys
"""


def test_nothing_but_the_connection_imports_nats():
    found = subprocess.run([sys.executable, "-P", "-c", _REFUSES], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
