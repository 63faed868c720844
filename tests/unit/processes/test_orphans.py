"""processes.orphans, which the daemon calls every second."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from latticed.processes import orphans


def test_reap_without_free_descriptors_leaves_the_orphan_to_the_next_call(tmp_path: Path) -> None:
    """EMFILE must not raise: that would end the daemon."""
    script = (
        "import os; os.fork() or os._exit(0); import time, latticed.processes.orphans as o; from pathlib import Path"
    )
    script += f"\nos.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT); print(o.reap(Path({str(tmp_path)!r})), o.reap())"
    said = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, check=True, env=dict(os.environ))
    assert said.stdout.split() == [b"0", b"1"]
    assert orphans.reap(tmp_path) == 0
