"""Confined children for tests, started by a process of its own: as root, or as somebody who is nobody.

    found = confined.run(program, [{"level": "isolated", "args": ["x"]}], user=processes.STRANGER)
    assert found["results"][0]["message"] == "exited 0"

Programs in C are compiled from this folder: `compiled("escapes")`.
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.house import processes

_HERE = Path(__file__).resolve().parent
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
        subprocess.run([compiler, *flags, "-o", program, _HERE / f"{name}.c", "-lrt"], check=True)
        return program.read_bytes()


def run(
    program: bytes,
    runs: Sequence[dict[str, Any]],
    *,
    user: processes.User | None = None,
    refuse: str | None = None,
    cgroup: Path | None = None,
) -> dict[str, Any]:
    """What the driver reports of `program`, run as each of `runs` says, in a process of `user` (None: our own).

    `refuse`: user namespaces are refused to it, by "seccomp" or "sysctl". `cgroup`: a group that it moves into first.
    """
    orders = {"runs": list(runs), "refuse": refuse, "cgroup": str(cgroup) if cgroup else None}
    source = (_HERE / "confined_driver.py").read_text()
    ids = {"user": user.uid, "group": user.gid, "extra_groups": []} if user else {}
    found = subprocess.run(
        [processes.reachable_python(), "-P", "-c", source, json.dumps(orders)],
        input=program,
        capture_output=True,
        check=False,
        timeout=DEADLINE_S,
        cwd="/",
        env={"PATH": "/usr/bin:/bin"},
        **ids,
    )
    assert found.returncode == 0, found.stderr.decode(errors="replace")
    report: dict[str, Any] = json.loads(found.stdout)
    return report
