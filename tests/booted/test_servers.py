"""nginx and a proxy core on a booted machine, as the root helper's hardened unit starts them, after reboots too.

The core is run by a unit, `apply.proxy.unit`; nginx is Debian's own.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.house import cores, machines, processes

SETTINGS = machines.SETTINGS.replace('kinds = ["nft"]', 'kinds = ["nginx", "proxy"]\nrestore = ["nginx", "proxy"]')
SITES = """
[listen]
addresses = ["127.0.0.1"]
http = 80
https = 443

[[sites]]
name = "shop"
domains = ["shop.example.org"]
redirect = {to = "https://www.example.org"}
"""
PROXY = """
host = "127.0.0.1"
secret_name = "PROXY_USERS"
api = {port = 9180, secret = "${secret:PROXY_API}"}

[[inbounds]]
tag = "ss"
protocol = "shadowsocks"
port = 444
listen = "127.0.0.2"
password = "${secret:PROXY_USERS#ss}"

[[users]]
id = "anna"
"""
UNIT = "latticed-proxy.service"
ASK = "import http.client as h; c = h.HTTPConnection('127.0.0.1', 80); c.request('GET', '/', headers={'Host': '%s'})"


def applied(machine, plugin, text):
    """A configuration that is approved, applied and confirmed."""
    machine.write("/root/wanted.toml", text)
    before = {one["sha256"] for one in plans(machine)}
    # The first call prints the review and ends with 1.
    machine.run("latticectl", "apply", plugin, "-f", "/root/wanted.toml")
    (plan,) = {one["sha256"] for one in plans(machine)} - before
    shown = json.loads(machine.check("latticectl", "plan", "show", plan, "--format", "json"))
    machine.check("latticectl", "plan", "approve", plan, shown["review"])
    machine.check("latticectl", "plan", "apply", plan)
    machine.check("latticectl", "plan", "confirm", plan)


def plans(machine):
    return json.loads(machine.check("latticectl", "plan", "list", "--format", "json"))["plans"]


def site(machine):
    """The status that nginx answers with, 0 while it does not run."""
    asked = machine.run("python3", "-c", f"{ASK % 'shop.example.org'}; print(c.getresponse().status)")
    return int(asked.stdout or 0)


def core(machine):
    """Pid and user of the process that has the core's port, both empty while there is none."""
    for line in machine.check("ss", "-Hltnp").splitlines():
        if "127.0.0.2:444 " in line:
            pid = line.partition("pid=")[2].partition(",")[0]
            return pid, machine.run("ps", "-o", "user=", "-p", pid).stdout.strip()
    return "", ""


def until(holds, what):
    return processes.until(holds, what=what, deadline_s=machines.BOOT_S)


@pytest.mark.skipif(cores.sing_box() is None, reason=cores.NO_SING_BOX)
def test_nginx_and_a_core_of_a_unit_are_served_and_back_after_a_kill_and_a_reboot(tmp_path):
    with machines.booted("bookworm", tmp_path, "nginx-light") as machine:
        machine.install()
        machine.check("systemctl", "disable", "--now", "nginx.service")
        shutil.copy2(cores.sing_box(), f"/proc/{machine.leader}/root/usr/bin/sing-box")
        Path(f"/proc/{machine.leader}/root/usr/bin/sing-box").chmod(0o755)
        machine.write(f"/etc/systemd/system/{UNIT}", (machines.CHECKOUT / "systemd" / UNIT).read_text())
        machine.check("systemctl", "daemon-reload")
        machine.write("/etc/latticed/latticed.toml", f'{SETTINGS}[apply.proxy]\nunit = "{UNIT}"\n')
        machine.check("systemctl", "enable", "--now", *machines.SOCKETS, "latticed.service")
        for plugin in ("latticed.nginx", "latticed.proxy"):
            machine.check("latticectl", "install", plugin, "--accept", "network:plan", "--accept", "network:apply")
            machine.check("latticectl", "activate", plugin)
        for name in ("PROXY_USERS", "PROXY_API"):
            machine.check("latticectl", "secret", "set", name, stdin="a-secret-that-is-long-enough-for-it")
            machine.check("latticectl", "secret", "bind", name, "latticed.proxy")
        applied(machine, "latticed.nginx", SITES)
        applied(machine, "latticed.proxy", PROXY)
        assert site(machine) == 308
        before, user = core(machine)
        assert (machine.property(UNIT, "MainPID"), user) == (before, "latticed-proxy")
        # Neither has anything to do with the helper's life.
        machine.check("systemctl", "restart", "latticed-apply.service")
        assert (site(machine), core(machine)[0]) == (308, before)
        machine.check("kill", "-KILL", before)
        until(lambda: core(machine)[0] not in {"", before}, "the core that systemd starts again")
        hanging = core(machine)[0]
        machine.check("kill", "-STOP", hanging)
        until(lambda: core(machine)[0] not in {"", hanging}, "the core that the helper starts for one that hangs")
        # A unit of another user is not run.
        machine.write(f"/etc/systemd/system/{UNIT}.d/test.conf", "[Service]\nUser=nobody\n")
        machine.check("systemctl", "daemon-reload")
        machine.check("systemctl", "stop", UNIT)
        machine.until_logged("LATTICED_EVENT=plan_restore_failed", "_UID=0")
        assert core(machine) == ("", "")
        machine.check("rm", f"/etc/systemd/system/{UNIT}.d/test.conf")
        machine.check("systemctl", "daemon-reload")
        until(lambda: core(machine)[0], "the core that the helper puts back")
        machine.power_off()
    with machines.booted("bookworm", tmp_path, "nginx-light") as machine:
        until(lambda: site(machine) == 308, "the site after a reboot")
        assert until(lambda: core(machine)[0] and core(machine), "the core after a reboot")[1] == "latticed-proxy"
        assert machine.property("latticed-apply-boot.service", "Result") == "success"
