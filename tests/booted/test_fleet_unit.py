"""latticed-fleet.service: a host that joins a fleet by its package's own programs, under a real systemd."""

from __future__ import annotations

import os
import re
import signal
import tarfile
import time
from pathlib import Path

import pytest

from latticed.fleet import documents
from tests.house import bundles, enrolling, fleets, machines, processes

UNIT = "latticed-fleet.service"
NODE = "web-1"
LIMITS = '[market]\nimport_dir = "/var/lib/latticed-fleet/spool"\n'
MOST_MB = 45


@pytest.fixture
def fleet(machine, tmp_path):
    """A fleet whose server and controller are on the machine's own loopback."""
    with enrolling.opened(tmp_path / "fleet", network=f"/proc/{machine.leader}/ns/net") as opened:
        yield opened


@pytest.fixture
def host(machine, fleet):
    """The machine, which has joined; its agent is not started."""
    machine.write(
        "/etc/latticed/latticed.toml",
        f'{machines.SETTINGS}users = {{ latticed-fleet = ["operate", "host"] }}\n{LIMITS}',
    )
    # Of no fleet yet: starting the unit is no error, and starts nothing.
    machine.check("systemctl", "start", UNIT)
    assert machine.property(UNIT, "ActiveState") == "inactive"
    assert machine.property(UNIT, "ConditionResult") == "no"
    machine.write("/root/web-1.invitation", fleet.invitation(NODE).decode(), mode=0o600)
    joined = machine.check("latticed-fleet", "join", "/root/web-1.invitation")
    assert f"this host is {NODE} of the fleet home (role=web)" in joined
    machine.check("systemctl", "restart", "latticed.service")
    yield machine
    machine.run("systemctl", "stop", UNIT)
    machine.check("rm", "-rf", "/etc/latticed/fleet", "/var/lib/latticed-fleet", "/root/web-1.invitation")
    machine.write("/etc/latticed/latticed.toml", machines.SETTINGS)
    machine.check("systemctl", "restart", "latticed.service")


def status_text(host, wanted):
    def found():
        said = host.property(UNIT, "StatusText")
        return said if wanted in said else None

    return processes.until(found, what=f"{UNIT} to say {wanted!r}", deadline_s=machines.BOOT_S)


def pids(host):
    """{name: pid there} of both halves."""
    rows = host.run("ps", "-C", "fleet-node,fleet-link", "-o", "pid=,user:20=,comm=").stdout.split("\n")
    return {row.split()[2]: row.split()[:2] for row in rows if row.strip()}


def assigned(host, fleet, tmp_path):
    """A plugin of the machine's author, assigned to it."""
    made = bundles.drop(tmp_path, "acme.carried", id="acme.carried", author=machines.AUTHOR, version="1.0.0")
    path = tmp_path / "bundle.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("manifest.json", "artifact"):
            tar.add(tmp_path / "acme.carried" / name, name)
    intent = documents.Intent(
        fleet=enrolling.NAME,
        generation=1,
        selector=documents.Selector(labels={"role": "web"}, nodes=()),
        plugins=(fleets.plugin(made.id, identity=None, versions="1.0.0", publisher=machines.AUTHOR.publisher),),
        back_to=(),
        expires=int(time.time()) + 3_600,
    )
    fleet.desire(NODE, intent, {made.id: path})
    return made.id


def test_host_that_joined_carries_out_what_its_operator_signed(host, fleet, tmp_path):
    host.check("systemctl", "start", UNIT)
    status_text(host, "connected; nothing assigned yet")
    plugin = assigned(host, fleet, tmp_path)
    status_text(host, "generation 1 settled")
    assert "active" in host.check("latticectl", "list")
    assert plugin in host.check("latticectl", "list")
    found = pids(host)
    assert {name: user for name, (_, user) in found.items()} == {
        "fleet-node": "latticed-fleet",
        "fleet-link": "latticed-fleet",
    }
    assert found["fleet-node"][0] == host.property(UNIT, "MainPID")
    # Both are confined by more than the unit.
    for pid, _ in found.values():
        state = host.check("cat", f"/proc/{pid}/status")
        assert int(re.search(r"Seccomp_filters:\s+(\d+)", state)[1]) >= 2
    pss = sum(
        int(re.search(r"^Pss:\s+(\d+)", host.check("cat", f"/proc/{pid}/smaps_rollup"), re.MULTILINE)[1])
        for pid, _ in found.values()
    )
    print(f"PSS of both halves: {pss * 1024 / 1e6:.1f} MB")
    assert pss * 1024 / 1e6 <= MOST_MB
    # The agent stops; what it had the daemon run does not.
    host.check("systemctl", "stop", UNIT)
    assert pids(host) == {}
    assert "active" in host.check("latticectl", "list")


def test_halves_that_are_killed_are_started_again(host):
    host.check("systemctl", "start", UNIT)
    status_text(host, "connected;")
    for half in ("fleet-link", "fleet-node"):
        before = pids(host)
        host.check("kill", f"-{signal.SIGKILL.value}", before[half][0])

        def again(before=before):
            now = pids(host)
            return len(now) == 2 and not {one for one, _ in now.values()} & {one for one, _ in before.values()}

        processes.until(
            again, what=f"both halves to be others than before {half} was killed", deadline_s=machines.BOOT_S
        )
        status_text(host, "connected;")
    assert host.property(UNIT, "NRestarts") == "2"
    assert host.until_logged("LATTICED_EVENT=fleet_half_ended")


def test_log_of_both_halves_is_in_the_journal_with_its_fields(host):
    host.check("systemctl", "start", UNIT)
    status_text(host, "connected;")
    (ready, *_) = host.until_logged("LATTICED_EVENT=fleet_agent_ready", f"_SYSTEMD_UNIT={UNIT}")
    assert ready["_COMM"] == "fleet-node"
    assert {one["_COMM"] for one in host.until_logged("LATTICED_EVENT=connected", f"_SYSTEMD_UNIT={UNIT}")} == {
        "fleet-link"
    }
    seen = "".join(str(one["MESSAGE"]) for one in host.journal(f"_SYSTEMD_UNIT={UNIT}"))
    secret = Path(f"/proc/{host.leader}/root/var/lib/latticed-fleet/link/nats.creds").read_text()
    assert re.search(r"SU[A-Z2-7]{56}", secret)[0] not in seen
    assert os.path.exists(f"/proc/{host.leader}/root/var/lib/latticed-fleet/node/key")
