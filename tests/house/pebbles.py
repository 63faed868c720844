"""An ACME server on loopback, Debian's `pebble`, and certificates that Debian's `uacme` gets from it (RFC 8555)."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import trustme

from tests.house import ports, processes

PEBBLE = "/usr/bin/pebble"
NAMES = "/usr/bin/pebble-challtestsrv"
"""A DNS server that says 127.0.0.1 for every name."""
UACME = "/usr/bin/uacme"
HOOK = "/usr/share/uacme/uacme.sh"
_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


@dataclass
class Pebble:
    """A running one; what uacme keeps is below `directory` too."""

    directory: Path
    port: int

    def certificate(self, domain: str, webroot: Path) -> tuple[Path, Path]:
        """The certificate and key that uacme has got for `domain`, or renewed, by files below `webroot`."""
        challenges = webroot / ".well-known/acme-challenge"
        challenges.mkdir(parents=True, exist_ok=True)
        kept = self.directory / "uacme"
        if not kept.exists():
            self._uacme("-y", "new")
        self._uacme("-f", "-h", HOOK, "issue", domain, challenges=challenges)
        return kept / domain / "cert.pem", kept / "private" / domain / "key.pem"

    def _uacme(self, *words: str, challenges: Path = Path("/nonexistent")) -> None:
        # libcurl with GnuTLS knows one bundle of authorities, which is not the machine's own here.
        script = f'mount --bind "$1" {_BUNDLE} && shift && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", script, "sh", str(self.directory / "ca.pem"), UACME]
        command += ["-v", "-a", f"https://127.0.0.1:{self.port}/dir", "-c", str(self.directory / "uacme"), *words]
        env = {"PATH": os.defpath, "UACME_CHALLENGE_PATH": str(challenges)}
        ended = subprocess.run(command, check=False, capture_output=True, env=env, timeout=processes.PATIENCE_S)
        assert ended.returncode == 0, ended.stderr.decode()[-2_000:]


@contextlib.contextmanager
def pebble(directory: Path, *, http: int, days: int) -> Iterator[Pebble]:
    """An ACME server that asks for challenges at port `http`, and whose certificates end in `days`."""
    port, management, dns, dns_management = (ports.free() for _ in range(4))
    authorities = trustme.CA()
    made = authorities.issue_cert("127.0.0.1")
    authorities.cert_pem.write_to_path(directory / "ca.pem")
    made.private_key_pem.write_to_path(directory / "key.pem")
    made.cert_chain_pems[0].write_to_path(directory / "certificate.pem")
    settings = {
        "listenAddress": f"127.0.0.1:{port}",
        "managementListenAddress": f"127.0.0.1:{management}",
        "certificate": str(directory / "certificate.pem"),
        "privateKey": str(directory / "key.pem"),
        "httpPort": http,
        "tlsPort": 1,
        "ocspResponderURL": "",
        "certificateValidityPeriod": days * 86_400,
    }
    (directory / "pebble.json").write_text(json.dumps({"pebble": settings}))
    none = [word for name in ("http01", "https01", "tlsalpn01") for word in (f"-{name}", "")]
    names = [NAMES, *none, "-dns01", f"127.0.0.1:{dns}", "-management", f"127.0.0.1:{dns_management}"]
    server = [PEBBLE, "-config", str(directory / "pebble.json"), "-dnsserver", f"127.0.0.1:{dns}"]
    log = directory / "pebble.log"
    # It waits for seconds before each challenge otherwise, and refuses some nonces, to be a nuisance.
    env = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"}
    with (
        processes.spawned([*names, "-defaultIPv6", ""], env={}, stdout=directory / "dns.log", stderr=subprocess.STDOUT),
        processes.spawned(server, env=env, stdout=log, stderr=subprocess.STDOUT),
    ):
        processes.until(lambda: "Listening on" in log.read_text(), what="pebble")
        yield Pebble(directory, port)
