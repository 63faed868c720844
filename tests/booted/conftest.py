"""These tests boot Debian machines; none is skipped, see `make test-systemd`."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.house import machines


@pytest.fixture(scope="session", autouse=True)
def root_and_tools() -> None:
    """Fail, not skip: what is shown here is shown nowhere else."""
    missing = [package for name, package in machines.TOOLS.items() if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        need = "uid 0" if os.geteuid() != 0 else " and ".join(missing)
        packages = " ".join(dict.fromkeys(machines.TOOLS.values()))
        pytest.fail(f"tests/booted needs {need}: apt install {packages}, then as root make test-systemd", pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def made(root_and_tools: None) -> None:
    """Root file systems and dependencies, before the first test: they may take minutes."""
    for suite in machines.SUITES:
        machines.root(suite)
        machines.site(suite)


@pytest.fixture(scope="session", params=sorted(machines.SUITES))
def machine(request, tmp_path_factory):
    """One machine of each suite with latticed installed; tests share it, and leave it as they found it."""
    with machines.booted(request.param, tmp_path_factory.mktemp(request.param)) as found:
        found.install()
        found.check("systemctl", "enable", "--now", *machines.SOCKETS)
        yield found
