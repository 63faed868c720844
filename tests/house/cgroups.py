"""Control groups of version 2 for tests."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house import processes


@contextlib.contextmanager
def delegated() -> Iterator[Path]:
    """A group below the version 2 hierarchy that has systemd's mark of delegation."""
    rows = [row.split() for row in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup2 " in row]
    if os.getuid() != 0 or not rows or not os.access(rows[0][4], os.W_OK):
        pytest.skip("no cgroup version 2 hierarchy here in which tests may make groups")
    group = Path(rows[0][4]) / f"latticed-test-{secrets.token_hex(4)}"
    group.mkdir()
    os.setxattr(group, "user.delegate", b"1")
    yield group
    for path in sorted(group.rglob("*/cgroup.kill"), reverse=True):
        path.write_text("1")
    for place in sorted((path.parent for path in group.rglob("*/cgroup.procs")), reverse=True):
        processes.until(lambda place=place: _gone(place), what=f"{place} to be empty")
    processes.until(lambda: _gone(group), what="the group to be empty")


def _gone(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
