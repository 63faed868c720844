"""The image and its compose file: docs/operate/container.md, played as written by real buildah, podman, podman-compose.

Tests share one container, in order: each leaves it running.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from latticed.settings import shapes
from tests.house import bundles, containers, long, machines, pages, processes

PAGE = pages.CHECKOUT / "docs/operate/container.md"
SITE = Path("/srv/latticed")
AUTHOR = bundles.author("tests")
NAME = "latticed_latticed_1"
UID = 64750
LATE_S = 20
"""The daemon's own end besides draining and plugins' grace: docs/operate/settings.md, signals."""


def _page(heading):
    """The shell blocks below a heading of the page."""
    below = PAGE.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"```sh norun\n(.*?)```", below, re.DOTALL)


def _asked(engine, *words):
    """What latticectl answers in the container."""
    command = " ".join(f"'{word}'" for word in words)
    return engine.type(f"docker compose exec -T latticed latticectl {command}", SITE)


def _plugin(engine, plugin_id="acme.demo"):
    return json.loads(_asked(engine, "info", plugin_id, "--format", "json"))["plugin"]


def _events(engine):
    done = engine.run(["podman", "logs", NAME])
    return [json.loads(line) for line in done.stdout.splitlines()]


def _healthy(engine):
    return engine.run(["podman", "healthcheck", "run", NAME]).returncode == 0


@pytest.fixture(scope="module", params=["trixie", *long.only("bookworm")])
def engine(request, tmp_path_factory):
    """An engine with the container of the page's first commands, and the page's plugin."""
    with containers.engine(tmp_path_factory.mktemp("engine"), request.param) as made:
        made.type(_page("Start it")[0], pages.CHECKOUT)
        made.type(_page("Add a plugin")[0], SITE)
        yield made


def test_container_has_no_privilege_and_nothing_to_write_but_its_state(engine):
    """As the kernel says of process 1, and as compose.yaml asks."""
    pid = engine.pid(NAME)
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert status["NSpid"].split()[-1] == "1"
    assert status["Uid"].split() == [str(UID)] * 4
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    mounts = [line.split() for line in Path(f"/proc/{pid}/mounts").read_text().splitlines()]
    written = {place for _, place, kind, options, *_ in mounts if options.split(",")[0] == "rw"}
    # What engines mount by themselves: of the kernel, of devices, and memory that processes share.
    assert written - {"/proc", "/dev", "/dev/pts", "/dev/mqueue", "/dev/shm"} == {"/run", "/var/lib/latticed"}
    (given_s,) = re.findall(
        r"^ +stop_grace_period: (\d+)s$", engine.home_file(SITE / "compose.yaml").read_text(), re.MULTILINE
    )
    longest = shapes.SupervisionSettings()
    assert int(given_s) >= longest.drain_s + 2 * longest.stop_grace_s + LATE_S


def test_plugin_of_the_mounted_directory_runs_at_the_level_that_the_engine_allows(engine):
    """And what is missing for the next level is said, with what helps."""
    found = _plugin(engine)
    assert (found["status"], found["runtime"]["sandbox"]) == ("active", "filtered")
    health = json.loads(_asked(engine, "health", "--format", "json"))
    assert (health["status"], health["sandbox"]["level"]) == ("ok", "filtered")
    assert any(row["token"] == "isolated" and row["fix"] for row in health["sandbox"]["missing"])
    doctor = engine.run(["podman", "exec", NAME, "latticectl", "doctor"]).stdout
    assert re.search(r"^sandbox .*no isolated: .*allow user mnt pid net ipc", doctor, re.MULTILINE), doctor


def test_log_is_json_on_stdout(engine):
    engine.type(_page("Logs and health")[0], SITE)
    assert "daemon_ready" in {entry["event"] for entry in _events(engine)}
    assert engine.run(["podman", "logs", NAME]).stderr == ""


def test_health_check_follows_the_daemons_health(engine):
    policy = engine.home_file(SITE / "config/trust.json")
    before = policy.read_bytes()
    assert _healthy(engine)
    policy.write_text("{")
    try:
        processes.until(lambda: not _healthy(engine), what="the health check to fail")
        checked = engine.run(["podman", "exec", NAME, "latticectl", "health", "--check"])
        assert (checked.returncode, "policy" in checked.stdout) == (3, True)
    finally:
        policy.write_bytes(before)
    processes.until(lambda: _healthy(engine), what="the health check to succeed again")


def test_process_1_reaps_what_it_inherits(engine):
    """A zombie would stay in /proc."""
    pid = engine.type(f"podman exec {NAME} sh -c 'sleep 3600 >/dev/null 2>&1 & echo $!'", SITE).strip()
    status = engine.type(f"podman exec {NAME} cat /proc/{pid}/status", SITE)
    assert re.search(r"^PPid:\s1$", status, re.MULTILINE)
    engine.type(f"podman exec {NAME} sh -c 'kill -9 {pid}'", SITE)
    gone = ["podman", "exec", NAME, "test", "!", "-e", f"/proc/{pid}"]
    processes.until(lambda: engine.run(gone).returncode == 0, what="the orphan to be reaped")


def test_invocation_under_way_is_answered_after_sigterm(engine):
    """`docker compose stop` while a plugin sleeps; then everything is there again."""
    edit = 'docker run --rm --network none --user 0 -v "$PWD/config:/etc/latticed" latticed'
    engine.type(f"{edit} latticectl trust add tests {AUTHOR.public}", SITE)
    bundles.drop(
        engine.home_file(SITE / "plugins"), "sleeper", author=AUTHOR, artifact=machines.SLEEPER, id="tests.sleeper"
    )
    _asked(engine, "wait", "tests.sleeper", "--for", "available")
    _asked(engine, "install", "tests.sleeper")
    _asked(engine, "activate", "tests.sleeper")
    _asked(engine, "kv", "set", "default", "kept", "over kill -9")
    children = Path(f"/proc/{(pid := engine.pid(NAME))}/task/{pid}/children")
    idle = len(children.read_text().split())
    invoke = ["podman", "exec", NAME, "latticectl", "invoke", "tests.sleeper", "sleep", "5"]
    with subprocess.Popen([*engine.inside(), *invoke], stdout=subprocess.PIPE, text=True) as asking:
        processes.until(lambda: len(children.read_text().split()) > idle, what="the plugin's process")
        engine.type("docker compose stop -t 90", SITE)
        assert json.loads(asking.communicate()[0]) == {"slept": 5}
    assert engine.inspect(NAME)["State"]["ExitCode"] == 0
    assert _events(engine)[-1]["event"] == "daemon_stopped"
    engine.type("docker compose start", SITE)
    processes.until(lambda: _healthy(engine), what="the daemon to be there again")


def test_state_is_there_after_kill_9(engine):
    engine.type(f"podman kill --signal KILL {NAME} && podman wait {NAME}", SITE)
    engine.type("docker compose up -d --wait", SITE)
    assert _asked(engine, "kv", "get", "default", "kept") == "over kill -9"
    _asked(engine, "wait", "tests.sleeper", "--for", "active")
    _asked(engine, "audit", "verify")


def test_upgrade_and_restore_drill_of_the_page(engine):
    """The container is replaced; a backup out of it becomes a second one, in its own volume, that knows the same."""
    before = engine.inspect(NAME)["Id"]
    build, upgrade = _page("Stop and upgrade")
    engine.type(build, pages.CHECKOUT)
    engine.type("touch before-upgrade.tar latticed.tar && chmod 644 before-upgrade.tar latticed.tar", SITE)
    engine.type(upgrade, SITE)
    assert engine.inspect(NAME)["Id"] != before
    assert engine.home_file(SITE / "before-upgrade.tar").stat().st_mode & 0o777 == 0o600
    engine.type("docker image inspect latticed:before", SITE)
    backup, drill = _page("Back up and restore")
    engine.type(backup, SITE)
    assert engine.home_file(SITE / "latticed.tar").stat().st_mode & 0o777 == 0o600
    *steps, down = drill.splitlines()
    engine.type("\n".join(steps), SITE)
    drilled = "docker compose -p drill exec -T latticed latticectl kv get default kept"
    assert engine.type(drilled, SITE) == "over kill -9"
    engine.type(down, SITE)
    volumes = engine.type("docker volume ls --format '{{.Name}}'", SITE)
    assert volumes.split() == ["latticed_state"]
    _asked(engine, "health", "--check")


def test_plugins_are_isolated_with_podmans_profile(engine):
    assert containers.PODMANS_PROFILE in PAGE.read_text(encoding="utf-8")
    engine.type(_page("Isolated plugins")[0], SITE)
    assert _plugin(engine)["runtime"]["sandbox"] == "isolated"
    assert "sandbox" in _asked(engine, "health")
