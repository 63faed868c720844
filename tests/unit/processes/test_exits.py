"""How a child ended, in stable codes and plain words."""

from __future__ import annotations

import pytest

from latticed.processes.exits import Exit


@pytest.mark.parametrize(
    ("exit_", "code", "message"),
    [
        (Exit(status=0), "exited", "exited 0"),
        (Exit(status=3), "exited", "exited 3"),
        (Exit(killed_by=9), "killed", "killed by SIGKILL (out of memory?)"),
        (Exit(killed_by=9, asked=True), "killed", "killed by SIGKILL"),
        (Exit(killed_by=9, out_of_memory=True), "out_of_memory", "killed by SIGKILL (out of memory)"),
        (Exit(killed_by=15), "killed", "killed by SIGTERM"),
        (Exit(killed_by=11), "crashed", "killed by SIGSEGV (a memory access that is not allowed)"),
        (Exit(killed_by=31), "forbidden_call", "killed by SIGSYS (it made a system call of a foreign kind)"),
        (Exit(killed_by=25), "file_too_large", "killed by SIGXFSZ (it wrote more to a file than it may)"),
        (Exit(killed_by=40), "killed", "killed by signal 40"),
    ],
)
def test_each_exit_has_a_code_and_message(exit_, code, message):
    """One row for each kind of exit."""
    assert (exit_.code, exit_.message) == (code, message)
