"""Requests while the daemon is restarted over and over: nobody is refused, and nothing is lost of the audit record."""

from __future__ import annotations

import json
import time

import pytest

from tests.house import long, machines, processes

HAMMER = """
import json, os, sys, threading, time
from latticed.client.control import ControlClient
from latticed.model.errors import Problem

asked, failed, lock = [0], [], threading.Lock()

def ask(name):
    client, turn = ControlClient("/run/latticed/control.sock"), 0
    while not os.path.exists("/root/enough"):
        turn += 1
        began = time.monotonic()
        try:
            client.get("status")
            client.put_bytes("kv", "restarts", name, body=b"%d" % turn)
            assert client.get_bytes("kv", "restarts", name) == b"%d" % turn
        except (Problem, AssertionError) as error:
            failed.append(repr(error))
        with lock:
            asked[0] += 3
        # Ten clients with three requests each, 200 in a second as far as the machine goes.
        time.sleep(max(0, 0.15 - (time.monotonic() - began)))

threads = [threading.Thread(target=ask, args=(f"client-{n}",)) for n in range(10)]
[one.start() for one in threads]
[one.join() for one in threads]
print(json.dumps({"asked": asked[0], "failed": failed}))
"""


def test_every_idempotent_request_is_answered_over_restarts(machine):
    """By systemctl, which stops and starts; by a crash while one is answered a GET alone is asked again."""
    machine.write("/root/hammer.py", HAMMER)
    machine.check("rm", "-f", "/root/enough")
    with machine.started("python3", "-P", "/root/hammer.py") as hammer:
        for _ in range(long.times(2, 10)):
            before = machine.property("latticed.service", "MainPID")
            machine.check("systemctl", "restart", "latticed.service")
            processes.until(
                lambda before=before: machine.property("latticed.service", "MainPID") not in {"0", before},
                what="another daemon",
                deadline_s=machines.BOOT_S,
            )
            time.sleep(0.5)  # some requests between two restarts
        machine.write("/root/enough", "")
        out, _ = hammer.communicate(timeout=machines.BOOT_S)
    done = json.loads(out)
    assert done["failed"] == []
    assert done["asked"] > 100
    machine.check("latticectl", "audit", "verify", "--whole")


@pytest.mark.parametrize("unit", ["latticed-apply.service", "latticed-journal.service"])
def test_helper_that_is_killed_again_and_again_is_back_each_time(machine, unit):
    """More often than systemd starts anything by default (five times in ten seconds)."""
    machine.check("systemctl", "start", unit)
    for _ in range(8):
        before = machine.property(unit, "MainPID")
        machine.check("kill", "-9", before)
        processes.until(
            lambda before=before: (
                machine.property(unit, "MainPID") not in {"0", before}
                and machine.property(unit, "ActiveState") == "active"
            ),
            what="another process",
            deadline_s=machines.BOOT_S,
        )
    assert machine.property(unit.replace("service", "socket"), "ActiveState") == "active"
