"""latticed-controller.service: the controller of a fleet, by the files that `latticectl fleet init` makes."""

from __future__ import annotations

import json
import time

import pytest

from latticed.fleet import deployment, documents, new_fleet
from tests.house import fleets

UNIT = "latticed-controller.service"
PLACE = "/etc/latticed-controller"
ASK = """
import http.client, socket, sys
made = http.client.HTTPConnection("localhost")
made.sock = socket.socket(socket.AF_UNIX)
made.sock.connect("/run/latticed-controller/control.sock")
made.request(sys.argv[1], sys.argv[2], sys.stdin.read() or None)
answer = made.getresponse()
print(answer.status, answer.read().decode())
"""


@pytest.fixture
def controller(machine):
    """The machine with that unit started; no message system is there."""
    wanted = new_fleet.NewFleet(
        fleet="home",
        servers=(new_fleet.ServerAddress.parse("127.0.0.1:4222"),),
        operators=(fleets.public(fleets.OPERATOR),),
        controllers=("c1",),
        sizes=deployment.Sizes(nodes=10),
        files_at="/etc/latticed-nats",
        data_at="/var/lib/latticed-nats",
    )
    machine.check("install", "-d", "-m", "0700", PLACE)
    for one in new_fleet.files(wanted, now_s=int(time.time())):
        if one.path.startswith("controllers/c1/"):
            machine.write(f"{PLACE}/{one.path.rpartition('/')[2]}", one.data.decode(), mode=0o600)
    started = machine.run("systemctl", "start", UNIT)
    assert started.returncode == 0, machine.check("journalctl", "--no-pager", "-u", UNIT)
    yield machine
    machine.run("systemctl", "stop", UNIT)
    machine.check("rm", "-rf", PLACE, "/var/lib/latticed-controller")


def asked(machine, method, path, body=""):
    """Status and answer, of root."""
    status, _, answer = machine.check("python3", "-P", "-c", ASK, method, path, stdin=body).partition(" ")
    return int(status), json.loads(answer)


def test_unit_runs_as_its_own_user_on_roots_files_and_says_that_the_engine_is_away(controller):
    request = json.loads(controller.check("cat", f"{PLACE}/request.json"))
    status, fleet = asked(controller, "GET", "/api/fleet")
    assert (status, fleet["fleet"], fleet["controller"], fleet["leader"]) == (200, "home", "c1", False)
    assert fleet["certificate"]["key"] == request["controller_key"]
    assert fleet["certificate"]["state"] == "missing"
    assert fleet["engine"]["connected"] is False
    pid = controller.property(UNIT, "MainPID")
    assert controller.check("ps", "-o", "user:30=", "-p", pid).strip() == "latticed-controller"
    assert controller.check("stat", "-c", "%U %a", PLACE).split() == ["root", "700"]


def test_what_it_was_given_is_there_after_it_was_killed(controller):
    key = asked(controller, "GET", "/api/fleet")[1]["certificate"]["key"]
    made = documents.ControllerCertificate(
        fleet="home", controller="c1", controller_key=key, epoch=1, expires=int(time.time()) + 86_400
    )
    envelope = documents.sign(made, fleets.OPERATOR).decode()
    assert asked(controller, "POST", "/api/fleet/documents", envelope)[0] == 200
    before = controller.property(UNIT, "MainPID")
    controller.check("kill", "-9", before)
    deadline = time.monotonic() + 120
    # The process first: until systemd notices, the unit is active without one.
    while controller.property(UNIT, "MainPID") in {"0", before} or controller.property(UNIT, "ActiveState") != "active":
        assert time.monotonic() < deadline, controller.check("journalctl", "--no-pager", "-u", UNIT)
        time.sleep(0.2)
    assert asked(controller, "GET", "/api/fleet")[1]["certificate"]["state"] == "valid"
