"""A real sshd in a journald's namespaces and a network of its own, with accounts and keys of the tests."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.house import journalds

CLIENTS = ("203.0.113.7", "203.0.113.8", "198.51.100.9", "2001:db8:7::1")
"""Addresses of clients; the server listens on all of the namespace's."""
SERVER = "192.0.2.1"

# In the journal's mount and pid namespaces: a network with the addresses of both sides, /dev/log, an sshd without PAM.
_SETUP = r"""
set -e
touch /run/net; unshare --net=/run/net true
ip="nsenter --net=/run/net ip"
$ip link set lo up
for address in {addresses}; do $ip address add $address dev lo; done
mkdir -p /run/sshd /run/dev
mount --rbind /dev /run/dev
mount -t tmpfs -o mode=755 tmpfs /dev
for name in null zero random urandom full tty; do touch /dev/$name; mount --bind /run/dev/$name /dev/$name; done
mkdir /dev/pts; mount --bind /run/dev/pts /dev/pts
ln -s /run/systemd/journal/dev-log /dev/log
"""
_CONFIG = """
Port 22
HostKey {home}/host
PidFile none
UsePAM no
AuthorizedKeysFile {home}/authorized
StrictModes no
PasswordAuthentication yes
PermitRootLogin yes
MaxStartups 100
UseDNS no
"""


@dataclass
class Server:
    """One sshd; `run` runs a client's command in its network."""

    journal: journalds.Journal
    home: Path

    def ssh(self, user: str, source: str, *, key: str = "known", options: str = "") -> None:
        """One attempt to log in, from `source`; it may fail."""
        server = SERVER if ":" not in source else source
        plain = "-o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=QUIET"
        command = f"ssh -n -F none {plain} -i {self.home}/{key} -o IdentitiesOnly=yes -b {source} {options}"
        self.journal.run(f"nsenter --net=/run/net timeout 30 {command} -l '{user}' {server} true; :")

    def guess(self, user: str, source: str) -> None:
        """One connection from `source` in which wrong passwords are tried; sshd tells of two of them at least."""
        plain = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=QUIET"
        tried = "-o PreferredAuthentications=password -o NumberOfPasswordPrompts=3"
        ask = "SSH_ASKPASS=/bin/true SSH_ASKPASS_REQUIRE=force"
        command = f"env {ask} timeout 30 ssh -n -F none {plain} {tried} -b {source} -l '{user}' {SERVER} true"
        self.journal.run(f"nsenter --net=/run/net {command}; :")

    def fingerprint(self, key: str = "known") -> str:
        shown = subprocess.run(
            ["ssh-keygen", "-lf", self.home / f"{key}.pub"], capture_output=True, text=True, check=True
        )
        return shown.stdout.split()[1]


@contextlib.contextmanager
def started(journal: journalds.Journal, home: Path) -> Iterator[Server]:
    """An sshd that takes the key `known` for root, and not the key `other`; skips where there is none."""
    if any(shutil.which(name) is None for name in ("sshd", "ssh", "ssh-keygen", "nsenter")):
        pytest.skip("sshd is not installed")
    if shutil.which("ip") is None:
        pytest.skip("needs ip(8) to make a network namespace")
    home.mkdir()
    for name in ("host", "known", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / name], check=True)
    shutil.copy(home / "known.pub", home / "authorized")
    config = home / "config"
    config.write_text(_CONFIG.format(home=home))
    widths = [f"{one}/{128 if ':' in one else 32}" for one in (SERVER, *CLIENTS)]
    setup = home / "setup"
    setup.write_text(_SETUP.format(addresses=" ".join(widths)))
    journal.run(f"sh {setup} 2>{home}/setup.log || {{ cat {home}/setup.log >&2; false; }}")
    sshd = shutil.which("sshd")
    journal.run(f"nsenter --net=/run/net {sshd} -D -f {config} 2>{home}/sshd.log & sshd=$!")
    journal.run(
        "for _ in $(seq 1000); do nsenter --net=/run/net ss -Hltn 'sport = :22' | grep -q . && break; sleep 0.01; done"
    )
    yield Server(journal=journal, home=home)
    journal.run("kill $sshd; :")
