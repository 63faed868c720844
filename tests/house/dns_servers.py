"""Real name servers of the tests, BIND and Knot: a zone that takes signed updates, on a port of loopback."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import dns.message
import dns.query
import dns.rdatatype
import dns.rrset
import dns.tsig
import dns.update

from tests.house import ports

ZONE = "dyn.example.org"
FAILING = "failing.example.org"
"""A zone whose primary cannot be reached: SERVFAIL."""
KEY, OTHER_KEY = "house-key", "other-key"
VALUES = {KEY: base64.b64encode(b"k" * 32).decode(), OTHER_KEY: base64.b64encode(b"o" * 32).decode()}
START_S = 20.0

_ZONE_FILE = f"""$ORIGIN {ZONE}.
$TTL 300
@ IN SOA ns.{ZONE}. hostmaster.{ZONE}. 1 3600 600 86400 60
@ IN NS ns
ns IN A 192.0.2.53
alias IN CNAME ns
away IN CNAME elsewhere.example.net.
several 300 IN A 198.51.100.1
several 300 IN A 198.51.100.2
*.wild 300 IN A 198.51.100.9
*.many 300 IN A 198.51.100.7
*.many 300 IN A 198.51.100.8
*.aliases 300 IN CNAME elsewhere.example.net.
"""

# The second key may read and not write.
_NAMED = """options {{
    directory "{place}"; pid-file none; session-keyfile none; managed-keys-directory "{place}";
    listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
    recursion no; dnssec-validation no; allow-transfer {{ none; }}; notify no;
}};
controls {{ }};
key "{key}" {{ algorithm hmac-sha256; secret "{value}"; }};
key "{other}" {{ algorithm hmac-sha256; secret "{other_value}"; }};
zone "{zone}" {{ type primary; file "{place}/zone"; update-policy {{ grant {key} zonesub ANY; }}; }};
zone "{failing}" {{ type secondary; file "{place}/failing"; primaries {{ 127.0.0.1 port 1; }}; }};
"""

_KNOT = """server:
    rundir: "{place}"
    listen: 127.0.0.1@{port}
    udp-workers: 1
    tcp-workers: 2
    background-workers: 1
database:
    storage: "{place}"
    journal-db-max-size: 16M
    timer-db-max-size: 1M
control:
    listen: "{place}/control.sock"
log:
  - target: stderr
    any: info
key:
  - id: {key}
    algorithm: hmac-sha256
    secret: {value}
  - id: {other}
    algorithm: hmac-sha256
    secret: {other_value}
acl:
  - id: writers
    key: {key}
    action: update
  - id: readers
    key: {other}
    action: transfer
remote:
  - id: gone
    address: 127.0.0.1@1
zone:
  - domain: {zone}
    storage: "{place}"
    file: zone
    acl: [writers, readers]
    zonefile-load: whole
  - domain: {failing}
    master: gone
    acl: [writers]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NameServer:
    """A running server; `start` after `stop` keeps port and zone."""

    kind: str
    port: int
    process: subprocess.Popen

    def addresses(self, name: str, kind: str = "A") -> list[tuple[str, int]]:
        """(address, TTL) of each record that it serves, asked with dig and no code of latticed."""
        question = dns.message.make_query(name, kind)
        answer = dns.query.tcp(question, "127.0.0.1", port=self.port, timeout=5)
        return sorted((one.to_text(), rrset.ttl) for rrset in answer.answer for one in rrset)

    def remove(self, name: str) -> None:
        """Remove all records of that name."""
        update = dns.update.UpdateMessage(ZONE, keyring=dns.tsig.Key(KEY, VALUES[KEY]))
        update.delete(name + ".")
        assert dns.query.tcp(update, "127.0.0.1", port=self.port, timeout=5).rcode() == 0


def installed(kind: str) -> str | None:
    """The path of the program of `bind` or `knot`; None if it is not installed."""
    paths = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin"))
    return shutil.which({"bind": "named", "knot": "knotd"}[kind], path=paths)


@contextlib.contextmanager
def serving(kind: str, place: Path) -> Iterator[NameServer]:
    """The server, while the block lasts."""
    server = _started(kind, place)
    try:
        yield server
    finally:
        _stop(server.process)


def _started(kind: str, place: Path) -> NameServer:
    """Tries another port if the chosen one is in use by now."""
    (place / "zone").write_text(_ZONE_FILE)
    for _ in range(5):
        port = ports.free()
        server = NameServer(kind=kind, port=port, process=_spawned(kind, place, port))
        process = server.process
        if _until(lambda: process.poll() is not None or _answers(server)) and process.poll() is None:  # noqa: B023
            return server
        _stop(process)
    raise AssertionError(f"{kind} did not start: {(place / 'log').read_text()[-2_000:]}")


def _spawned(kind: str, place: Path, port: int) -> subprocess.Popen:
    config = place / "config"
    names = {"key": KEY, "value": VALUES[KEY], "other": OTHER_KEY, "other_value": VALUES[OTHER_KEY]}
    zones = {"zone": ZONE, "failing": FAILING}
    config.write_text({"bind": _NAMED, "knot": _KNOT}[kind].format(place=place, port=port, **names, **zones))
    command = {"bind": ["-g", "-n", "1", "-c", str(config)], "knot": ["-c", str(config)]}[kind]
    with open(place / "log", "wb") as log:
        return subprocess.Popen(
            [str(installed(kind)), *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=place
        )


def _stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _answers(server: NameServer) -> bool:
    try:
        return bool(server.addresses(f"ns.{ZONE}"))
    except (OSError, EOFError):
        return False


def _until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + START_S
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found
