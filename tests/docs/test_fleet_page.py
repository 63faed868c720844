"""docs/operate/fleet.md, and commands for a fleet of fleet-controller.md, typed as written.

A real nats-server, a real controller, three real daemons with their agents.

What is not of this machine is led elsewhere by `fleet_shims`: ssh and scp to directories, the compose file's services
to processes. Tests share one fleet, in the order of the page.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from latticed.fleet import written
from latticed.trust import key_files
from tests.house import bundles, fleet_sites, pages, processes, prometheus, raw_http
from tests.house.fleet_sites import NODES

pytestmark = [pytest.mark.daemon, pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(1_800)]

PAGE = pages.CHECKOUT / "docs/operate/fleet.md"
OF_CONTROLLER = PAGE.with_name("fleet-controller.md")
ID = "acme.demo"
BEGINNING = "Three hosts in ten commands"
LATE_S = 240.0
"""A lease of before has to end, and a connection to be made anew."""


def below(heading: str, language: str = "sh", *, page: Path = PAGE) -> list[str]:
    """The blocks for a fleet below a heading of the page."""
    text = page.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(rf"^```{language} fleet\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[str]:
    return [line for line in block.splitlines() if line and not line.startswith("#")]


def versions(site, plugin: str = ID) -> dict[str, str]:
    """What each host runs of a plugin, by its own daemon; empty where it does not run."""
    found = {}
    for node, daemon in site.daemons.items():
        record = daemon.plugin(plugin) or {}
        runs = record.get("status") == "active" and record["runtime"]["state"] == "armed"
        found[node] = record["version"] if runs else ""
    return found


def everywhere(version: str, *nodes: str) -> dict[str, str]:
    return dict.fromkeys(nodes or NODES, version)


@pytest.fixture(scope="module")
def site():
    """The fleet of the page's ten commands, all of them typed."""
    author = bundles.author("acme")
    with fleet_sites.site(author) as site:
        # Of the page's operator: his publisher's key, which the hosts trust, and a bundle.
        key_files.create(site.operator / "acme.key", author.key, b"")
        site.type(f"latticectl new system {ID} && latticectl sign --key acme.key --publisher acme {ID}")
        for text in below(BEGINNING, "toml"):
            (site.operator / "web.toml").write_text(text)
        for block in below(BEGINNING):
            site.type(block)
        yield site


def typed(site, heading: str, page: Path = PAGE) -> list[str]:
    return [site.type(block) for block in below(heading, page=page)]


def test_the_page_has_ten_commands():
    assert sum(len(commands(block)) for block in below(BEGINNING)) == 10


def test_every_block_for_a_fleet_is_typed_here():
    here = Path(__file__).read_text(encoding="utf-8")
    for page, calls in (
        (PAGE, r'typed\(site, "([^"]+)"\)'),
        (OF_CONTROLLER, r'typed\(site, "([^"]+)", OF_CONTROLLER\)'),
    ):
        tested = [BEGINNING, *re.findall(calls, here)]
        found = [block.text for block in pages.blocks(page) if block.words == ("sh", "fleet")]
        assert found
        assert sorted(found) == sorted(text for one in dict.fromkeys(tested) for text in below(one, page=page))


def test_what_the_page_has_signed_is_an_intent():
    (text,) = below(BEGINNING, "toml")
    assert written.read(tomllib.loads(text), "the page").plugins[0].id == ID


def test_ten_commands_have_a_plugin_run_on_three_hosts(site):
    """By each host's own daemon, which recorded that its agent asked for it; and all are settled."""
    assert versions(site) == everywhere("0.1.0")
    for daemon in site.daemons.values():
        asked = [one for one in daemon.events(target=ID) if one["action"] == "plugin.status"]
        assert {one["actor"].split()[0] for one in asked} == {f"uid:{fleet_sites.AGENT.uid}"}
    assert [(one["name"], one["state"]) for one in site.fleet("nodes")] == [(node, "settled") for node in NODES]


def test_an_invitation_counts_once(site):
    """Whoever has it later gets nothing, also with a host of his own."""
    spare = site.host("web-3")
    host = f"--settings {spare}/etc/none.toml --pinned {spare}/etc/token --state {spare}/var/lib/other"
    join = f"join {site.host('web-1')}/root/web-1.invitation --user {fleet_sites.AGENT_NAME}"
    done = site.type(f"{processes.reachable_python()} -P -m latticed.fleet.agent {host} {join} 2>&1 || true")
    assert "enrolment_used" in done, done


def test_looking_shows_what_the_hosts_say(site):
    shown = "".join(typed(site, "Look"))
    for said in ("3: 3 settled", "role=web", ID, "0.1.0"):
        assert said in shown


def test_alerts_and_dashboard_are_about_what_a_controller_shows(site):
    socket = site.host(fleet_sites.SERVER) / "srv/fleet/run/control.sock"
    shown = prometheus.exposed(raw_http.ask(socket, "GET", "/metrics", b"").body.decode())
    for expression in prometheus.expressions(prometheus.FLEET_RULES, prometheus.FLEET_DASHBOARD):
        for name, labels in prometheus.used(expression).items():
            assert name in shown, expression
            assert labels <= (shown[name] or {"code"}), expression


def test_a_new_version_goes_out_in_waves(site):
    said = "".join(typed(site, "A new version, in waves"))
    assert "upgrade" in said
    assert versions(site) == everywhere("0.2.0")
    assert [one["nodes"] for one in site.fleet("roll", "--follow", "v2")["waves"]] == [1, 2]


def test_a_rollout_is_halted_goes_on_and_goes_back(site):
    typed(site, "Halt, go on, go back")
    assert versions(site) == everywhere("0.2.0")
    # A host that was away while it went back is given what it had once it is there again.
    processes.until(
        lambda: len({one["intent"] for one in _nodes(site)}) == 1, what="all to have what they had", deadline_s=LATE_S
    )


def test_a_revoked_host_is_given_nothing_any_more(site):
    typed(site, "Revoke")
    (site.operator / "web.toml").write_text((site.operator / "web.toml").read_text() + 'status = "disabled"\n')
    site.type("latticectl fleet sign web.toml --fleet home --key operator.key --yes")
    site.type("latticectl fleet roll web.intent --name after")
    assert versions(site) == {**everywhere(""), "web-3": "0.2.0"}


def test_the_message_system_is_fit_for_a_fleet(site):
    (said,) = typed(site, "Three servers, or a NATS of your own")
    assert "has what a fleet needs" in said


def test_a_check_says_nothing_but_what_it_found(site):
    said = "the message system has what a fleet needs, and lets a node do nothing else\n"
    assert site.type("latticectl fleet check --fleet home 2>&1") == said


def test_status_is_for_programs_too(site):
    typed(site, "Replace a controller")


def test_podman_compose_reads_the_compose_file(tmp_path):
    program = shutil.which("podman-compose")
    if program is None:
        pytest.skip("podman-compose is not installed here")
    shutil.copy(fleet_sites.COMPOSE, tmp_path / "compose.yaml")
    environment = tmp_path / "servers/nats-1/nats-server.env"
    environment.parent.mkdir(parents=True)
    environment.write_text("GOMEMLIMIT=1\n")
    # Older ones have no `config`, and ask podman for volumes and networks in a dry run, too.
    command = [program, "--podman-path", "true", "--dry-run", "-f", "compose.yaml", "up", "-d"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    for service in yaml.safe_load(fleet_sites.COMPOSE.read_text())["services"].values():
        assert f"{service['image']} {' '.join(service['command'])}" in said


# The last three: what they start anew they end themselves.


def test_the_message_system_is_away_and_nothing_stops(site):
    """Hosts run on, are operated by hand, and come back by themselves."""
    before = versions(site)
    site.end("nats", 9)
    processes.until(lambda: _status(site).get("engine", {}).get("connected") is False, what="that to be said")
    assert versions(site) == before
    assert site.daemons["web-3"].ctl("restart", ID).returncode == 0
    with site.services():
        processes.until(
            lambda: _status(site).get("leader") and states(site)[:2] == ["settled"] * 2,
            what="all to be back",
            deadline_s=LATE_S,
        )


def test_a_controller_is_backed_up_and_goes_on_after_a_kill(site):
    with site.services():
        processes.until(lambda: _status(site).get("leader"), what="the controller to act", deadline_s=LATE_S)
        (said,) = typed(site, "Back up the controller")
        assert "SHA-256" in said
        intents = {one["name"]: one["assigned"] for one in _nodes(site)}
        site.end("controller", 9)
        site.start_services()
        processes.until(lambda: _status(site).get("leader"), what="the controller to act again", deadline_s=LATE_S)
        assert {one["name"]: one["assigned"] for one in _nodes(site)} == intents


def test_servers_are_set_up_anew_for_the_same_fleet(site):
    """After a controller's files were stolen: hosts believe its key no more, and have what they had."""
    before = versions(site)
    stolen = json.loads((site.operator / "home/controllers/c1/request.json").read_text())["controller_key"]
    with site.services():
        typed(site, "New servers for the same fleet", OF_CONTROLLER)
        assert versions(site) == before
        assert states(site) == ["settled"] * 2
        for node in ("web-1", "web-2"):
            state = json.loads((site.host(node) / "var/lib/latticed-fleet/node/state").read_text())
            assert stolen in state["revoked"]


def _status(site) -> dict[str, Any]:
    """What the controller says; nothing while it is not there."""
    said = site.type("latticectl fleet status --format json || true")
    return json.loads(said) if said else {}


def states(site) -> list[str]:
    """Of the nodes, in the order of their names."""
    return [one["state"] for one in _nodes(site)]


def _nodes(site) -> list[dict[str, Any]]:
    return site.fleet("nodes")
