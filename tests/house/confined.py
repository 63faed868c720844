"""Confined children for tests, started by a process of its own: as root, or as another user.

    found = confined.run(program, [{"level": "isolated", "args": ["x"]}], user=processes.STRANGER)
    assert found["results"][0]["message"] == "exited 0"

Programs in C are compiled from this folder: `compiled("escapes")`.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import latticed
from tests.house import processes

HERE = Path(__file__).resolve().parent
DEADLINE_S = 50.0


@functools.cache
def compiled(name: str) -> bytes:
    """The program of `name`.c beside this file; skips the test without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("programs that try to escape are written in C: no compiler (cc) here")
    with tempfile.TemporaryDirectory() as place:
        program = Path(place) / name
        flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-static"]
        subprocess.run([compiler, *flags, "-o", program, HERE / f"{name}.c", "-lrt"], check=True)
        return program.read_bytes()


def run(
    program: bytes,
    runs: Sequence[dict[str, Any]],
    *,
    user: processes.User | None = None,
    refuse: str | None = None,
    cgroup: Path | None = None,
    together: bool = False,
    memfd_noexec: int | None = None,
    without: str | None = None,
    stub: bool = False,
) -> dict[str, Any]:
    """What the driver reports of `program`, run as each of `runs` says, in a process of `user` (None: our own).

    `refuse`: user namespaces are refused to it, by "seccomp" or "sysctl". `cgroup`: a group that it moves into first.
    `together`: all at once. `memfd_noexec`: the sysctl of that name, in a pid namespace of their own (needs uid 0).
    `without`: a capability that root does not have, such as sys_admin. `stub`: started by the stub, as where
    nothing in memory may be executed.
    """
    before: list[str] = []
    if memfd_noexec is not None:
        if os.getuid() != 0 or not Path("/proc/sys/vm/memfd_noexec").exists():
            pytest.skip("this kernel has no sysctl vm.memfd_noexec, or it is not ours to set")
        script = f'echo {memfd_noexec} > /proc/sys/vm/memfd_noexec; exec "$@"'
        before = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", script, "sh"]
    if without is not None:
        before = ["setpriv", f"--bounding-set=-{without}", f"--inh-caps=-{without}"]
    orders = {"runs": list(runs), "refuse": refuse, "cgroup": str(cgroup) if cgroup else None, "together": together}
    orders |= {"stub": stub, "launchers": (HERE / "launchers.py").read_text()}
    source = (HERE / "confined_driver.py").read_text()
    ids = {"user": user.uid, "group": user.gid, "extra_groups": []} if user else {}
    found = subprocess.run(
        [*before, processes.reachable_python() if user else sys.executable, "-P", "-c", source, json.dumps(orders)],
        input=program,
        capture_output=True,
        check=False,
        timeout=DEADLINE_S,
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(latticed.__file__).parents[1])},
        **ids,
    )
    assert found.returncode == 0, found.stderr.decode(errors="replace")
    report: dict[str, Any] = json.loads(found.stdout)
    return report
