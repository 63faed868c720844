"""latticed-ui.service: a console that is always there, as a user who may read."""

from __future__ import annotations

import pytest

from tests.house import machines

UNIT = "latticed-ui.service"
BROWSE = """
import http.client, sys, urllib.parse
link = urllib.parse.urlsplit(sys.argv[1])
def ask(path, cookie=""):
    connection = http.client.HTTPConnection(link.hostname, link.port)
    connection.request("GET", path, headers={"Cookie": cookie})
    answer = connection.getresponse()
    return answer.getheader("Set-Cookie", "").partition(";")[0], answer.status, answer.read().decode()
cookie, _, _ = ask(link.path)
print(*ask("/" + link.path.split("/")[1] + sys.argv[2], cookie)[1:])
"""


@pytest.fixture
def console(machine):
    """The machine with that unit started."""
    machine.write("/etc/latticed/latticed.toml", f'{machines.SETTINGS}users = {{ latticed-ui = ["read"] }}\n')
    machine.check("latticectl", "status")
    machine.check("systemctl", "reload", "latticed.service")
    started = machine.run("systemctl", "start", UNIT)
    assert started.returncode == 0, machine.check("journalctl", "--no-pager", "-u", UNIT)
    yield machine
    machine.run("systemctl", "stop", UNIT)
    machine.write("/etc/latticed/latticed.toml", machines.SETTINGS)
    machine.check("systemctl", "reload", "latticed.service")


def test_unit_hands_links_to_its_group_and_names_the_scope_of_what_it_may_not_show(console):
    """Once it is started it has links; they are in no journal. What `read` gives is shown, and nothing else."""
    asking = ("latticectl", "ui", "link")
    member = ("setpriv", "--reuid=nobody", "--regid=latticed-ui", "--clear-groups")
    stranger = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
    links = [console.check(*who, *asking).strip() for who in ((), member, member)]
    assert len({one for one in links if "/open/" in one}) == 3, links
    refused = console.run(*stranger, *asking)
    assert (refused.returncode, refused.stdout) == (5, ""), refused
    pages = dict.fromkeys(("/", "/tasks", "/rejected"))
    for link, path in zip(links, pages, strict=True):
        pages[path] = console.check("python3", "-P", "-c", BROWSE, link, path)
    assert pages["/"].startswith("200 ")
    assert "reads only" in pages["/"]
    assert "the daemon is not running" not in pages["/"]
    assert "operate" in pages["/tasks"]
    assert "access_denied" not in pages["/rejected"]
    pid = console.property(UNIT, "MainPID")
    assert console.check("ps", "-o", "user=", "-p", pid).strip() == "latticed-ui"
    assert not [one for one in console.journal(f"_SYSTEMD_UNIT={UNIT}") if "/open/" in str(one["MESSAGE"])]
