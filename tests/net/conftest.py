"""These tests load real tables, and run real tunnels, in network namespaces that they make; none is skipped, see
`make test-net`.
"""

from __future__ import annotations

import os
import shutil

import pytest

PACKAGES = {
    "nft": "nftables",
    "ip": "iproute2",
    "wg": "wireguard-tools",
    "wireguard-go": "wireguard-go",
    "ping": "iputils-ping",
    "nginx": "nginx-light",
    "pebble": "pebble",
    "uacme": "uacme",
}


@pytest.fixture(scope="session", autouse=True)
def root_and_tools() -> None:
    """Fail, not skip: what is shown here is shown nowhere else."""
    missing = [name for name in PACKAGES if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        need = "uid 0" if os.geteuid() != 0 else " and ".join(missing)
        packages = " ".join(dict.fromkeys(PACKAGES.values()))
        pytest.fail(f"tests/net needs {need}: apt install {packages}, then as root make test-net", pytrace=False)
