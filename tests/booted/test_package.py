"""The Debian package on machines that have nothing of latticed and no network: docs/operate/package.md, played."""

from __future__ import annotations

import filecmp
import gzip
import json
import os
import random
import re
import secrets
import subprocess

import pytest

from latticed.fleet.controller import database
from latticed.ledger import migrations
from latticed.plans import undo_timers
from tests.booted import test_restarts
from tests.house import bundles, long, machines, packages, pages, processes

PAGE = pages.CHECKOUT / "docs/operate/package.md"
FRESH = ("bookworm", *long.only("trixie"))
"""Suites on which the package is installed first, and removed."""
UPGRADED = ("trixie", *long.only("bookworm"))
"""Suites on which it replaces an earlier version."""
PLUGINS = long.times(3, 50)
KILLS = long.times(1, 4)
"""Of each script of the package, and of dpkg itself."""
SCRIPTS = ("latticed.postinst", *long.only("latticed.prerm", "tmp.ci/preinst", "latticed.postrm", "dpkg"))
KILLER = """
import os, signal, subprocess, sys, time
name, delay_s, command, killed = sys.argv[1], float(sys.argv[2]), sys.argv[3:], 0

def named(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as line:
            return any(os.fsdecode(word).endswith(name) for word in line.read().split(b"\\0")[:2])
    except OSError:
        return False  # it has ended

running = subprocess.Popen(command, stdin=subprocess.DEVNULL)
while running.poll() is None and not killed:
    for pid in filter(named, filter(str.isdigit, os.listdir("/proc"))):
        time.sleep(delay_s)
        try:
            os.kill(int(pid), signal.SIGKILL)
            killed += 1
        except ProcessLookupError:
            pass  # it was faster
running.wait()
"""
"""`python3 - SCRIPT DELAY COMMAND...`: run a command, and kill the script that it runs so long after it was seen."""
COMMANDS = 10
"""Most commands from nothing to an active plugin."""
OTHER = {"bookworm": "trixie", "trixie": "bookworm"}


def _page(heading):
    """The first shell block below a heading of the page."""
    below = PAGE.read_text(encoding="utf-8").partition(f"## {heading}\n")[2]
    return re.search(r"```sh norun\n(.*?)```", below, re.DOTALL)[1]


def _type(machine, commands):
    machine.check("sh", "-ec", f"cd /root\n{commands}", within_s=packages.BUILD_S)


def _apt(machine, *words):
    return machine.run("apt-get", "-q", "-y", *words, within_s=packages.BUILD_S)


def _version(machine):
    return machine.check("dpkg-query", "-W", "-f", "${Version}", "latticed")


def _schema(machine, state="/var/lib/latticed"):
    """The number of migrations that the ledger of a stopped daemon has taken."""
    return int(machine.check("od", "-An", "-tu4", "--endian=big", "-j60", "-N4", f"{state}/ledger.sqlite3"))


def _left(machine):
    """What is there of latticed, on disk and among users and units."""
    found = machine.check(
        "find", "/etc", "/usr", "/var", "/run", "-xdev", "-name", "*lattice*", "-not", "-path", "/var/lib/dpkg/*",
        "-not", "-path", "/var/log/*",
    )  # fmt: skip
    users = re.findall(r"^latticed[^:]*", machine.check("cat", "/etc/passwd", "/etc/group"), re.MULTILINE)
    units = machine.check("systemctl", "list-units", "--all", "--plain", "--no-legend", "latticed*")
    return [*found.splitlines(), *users, *units.splitlines()]


@pytest.fixture(scope="module", params=FRESH)
def fresh(request, tmp_path_factory):
    """A machine with the package, installed as the page says, and the page's plugin; tests use it up in order."""
    with machines.booted(request.param, tmp_path_factory.mktemp("fresh"), bare=True) as machine:
        packages.put(machine, packages.built(request.param))
        assert _left(machine) == []
        commands = _page("Install, and a first plugin")
        _type(machine, commands)
        yield machine


def test_first_plugin_is_active_after_the_pages_commands(fresh):
    """Isolated, in the hardened unit, by a daemon whose own user has no rights."""
    assert len(_page("Install, and a first plugin").splitlines()) <= COMMANDS
    shown = json.loads(fresh.check("latticectl", "info", "acme.demo", "--format", "json"))["plugin"]
    assert (shown["status"], shown["runtime"]["sandbox"]) == ("active", "isolated+cgroup")
    assert "own_user = false" in fresh.check("latticed", "--check-config")
    fresh.check("latticectl", "secret", "set", "TOKEN", stdin="sealed with the key that the installation made")
    fresh.check("latticectl", "health", "--check")
    enabled = [*machines.SOCKETS, "latticed.service", "latticed-apply-boot.service"]
    fresh.check("systemctl", "is-enabled", *enabled)
    fresh.check("systemctl", "is-active", *machines.SOCKETS, "latticed.service")
    verified = fresh.run("systemd-analyze", "verify", *(f"/usr/lib/systemd/system/{one}" for one in machines.UNITS))
    assert (verified.returncode, verified.stderr) == (0, "")
    newer = "Type=notify-reload" in fresh.check("systemctl", "cat", "latticed.service")
    assert newer is (machines.VERSIONS[fresh.suite] >= 257)
    helper = fresh.run("latticectl", "plan", "list")
    assert helper.returncode == 0, helper
    # The console waits for an operator to enable it; the tests below stop it with the rest.
    assert fresh.run("systemctl", "is-enabled", "latticed-ui.service").stdout.strip() == "disabled"
    fresh.check("systemctl", "start", "latticed-ui.service")
    assert "/open/" in fresh.check("latticectl", "ui", "link")


def test_python_goes_only_together_with_the_package(fresh):
    """As the authorities that `https` is checked by. The package of another suite, whose Python is not there, is not
    installed.
    """
    python = f"python{machines.SUITES[fresh.suite]}"
    refused = fresh.run("dpkg", "--remove", python)
    assert refused.returncode != 0
    assert f"latticed depends on {python}" in refused.stderr
    for needed in (python, "ca-certificates"):
        assert "Remv latticed " in _apt(fresh, "--simulate", "remove", needed).stdout
    other = packages.put(fresh, packages.built(OTHER[fresh.suite]))
    foreign = _apt(fresh, "install", other)
    fresh.check("rm", other)
    assert foreign.returncode != 0
    assert f"Depends: python{machines.SUITES[OTHER[fresh.suite]]}" in foreign.stdout
    fresh.check("latticectl", "health", "--check")


def test_upgrade_whose_script_is_killed_is_completed_by_configure(fresh):
    """Or, where dpkg has not got as far as that, by the same command once more. Nobody is left waiting for a daemon."""
    seed = os.environ.get("LATTICED_CRASH_SEED") or secrets.token_hex(4)
    print(f"LATTICED_CRASH_SEED={seed}")
    chance = random.Random(seed)
    deb = f"/root/{packages.built(fresh.suite).name}"
    for name in SCRIPTS * KILLS:
        delay_s = chance.uniform(0, 1.5)
        upgrade = ("dpkg", "--install", deb)
        fresh.run("python3", "-", name, f"{delay_s}", *upgrade, stdin=KILLER, within_s=packages.BUILD_S)
        fresh.run("dpkg", "--configure", "-a", within_s=packages.BUILD_S)
        if fresh.check("dpkg-query", "-W", "-f", "${Status}", "latticed") != "install ok installed":
            fresh.check(*upgrade, within_s=packages.BUILD_S)
        fresh.check("latticectl", "wait", "acme.demo", "--for", "active", "--timeout", "120")
        fresh.check("latticectl", "health", "--check")
        held = ("-name", "latticed-upgrade*", "-o", "-path", "/usr/lib/latticed/upgrading")
        assert fresh.check("find", "/run", "/usr/lib/latticed", *held) == "", (name, delay_s)
    fresh.check("latticectl", "audit", "verify", "--whole")


def test_removal_in_the_middle_of_an_upgrade_is_one(fresh):
    """Refused while dpkg is at work; between unpacking and configuring everything goes but the state."""
    deb = f"/root/{packages.built(fresh.suite).name}"
    fresh.check("dpkg", "--unpack", deb, within_s=packages.BUILD_S)
    removed = _apt(fresh, "remove", "latticed")
    assert removed.returncode == 0, removed
    assert "lattice" not in fresh.check("ps", "-e", "-o", "user:32,args")
    assert fresh.check("find", "/run", "-name", "latticed*", "-not", "-path", "*/.git/*") == ""
    _type(fresh, _page("Upgrade"))
    fresh.check("latticectl", "wait", "acme.demo", "--for", "active", "--timeout", "120")


def test_package_goes_while_plugins_run_and_state_stays(fresh):
    """A new installation goes on with it."""
    before = fresh.check("sha256sum", "/etc/credstore/latticed-secrets.key")
    assert _apt(fresh, "remove", "latticed").returncode == 0
    assert "lattice" not in fresh.check("ps", "-e", "-o", "user:32,args")
    for gone in ("/usr/lib/latticed", "/run/latticed", "/usr/bin/latticectl"):
        assert fresh.run("test", "-e", gone).returncode != 0, gone
    _type(fresh, _page("Upgrade"))
    fresh.check("latticectl", "wait", "acme.demo", "--for", "active", "--timeout", "60")
    assert fresh.check("sha256sum", "/etc/credstore/latticed-secrets.key") == before


def test_purge_leaves_nothing(fresh):
    _type(fresh, _page("Remove"))
    assert _left(fresh) == []


@pytest.fixture(scope="module", params=UPGRADED)
def upgraded(request, tmp_path_factory):
    """A machine with plugins that run, whose package was replaced while clients asked; tests use it up in order."""
    earlier = packages.earlier(request.param)
    if earlier is None:
        pytest.skip("this checkout has no history to build an earlier package of")
    with machines.booted(request.param, tmp_path_factory.mktemp("upgraded"), bare=True) as machine:
        packages.put(machine, earlier)
        _type(machine, "apt-get install -y ./latticed_*.deb && mv latticed_*.deb earlier.deb")
        machine.write("/etc/latticed/trust.json", json.dumps(bundles.policy(machines.AUTHOR)))
        for number in range(PLUGINS):
            machine.drop(_name(number), machines.SLEEPER, wait=number == PLUGINS - 1)
        every = " ".join(map(_name, range(PLUGINS)))
        _type(machine, f"for one in {every}; do latticectl install $one; latticectl activate $one; done")
        new = packages.put(machine, packages.built(request.param))
        # Clients of their own, as the libraries are what is replaced; they wait longer, for slow machines.
        _type(machine, f"dpkg-deb --extract {new} clients && rm -f enough")
        # They read alone: the earlier daemon could close a connection on what it was writing when it was stopped.
        asking = re.sub(r"client\.put_bytes.*\n.*get_bytes.*", 'client.get("plugins")', test_restarts.HAMMER)
        asking = asking.replace('control.sock")', 'control.sock", connect_s=600, read_s=600)')
        machine.write("/root/hammer.py", asking)
        libraries = f"/root/clients/usr/lib/latticed/lib/python{machines.SUITES[request.param]}/site-packages"
        with machine.started("env", f"PYTHONPATH={libraries}", "python3", "-P", "/root/hammer.py") as hammer:
            try:
                _type(machine, _page("Upgrade"))
            finally:
                machine.write("/root/enough", "")
            out, _ = hammer.communicate(timeout=machines.BOOT_S)
        yield machine, json.loads(out)


def _name(number):
    return f"acme.sleeper-{number}"


def _until_active(machine):
    """Wait until all plugins are, in their turns, as after every start of a daemon."""
    _type(
        machine,
        f"for one in {' '.join(map(_name, range(PLUGINS)))}; do latticectl wait $one --for active --timeout 120; done",
    )


def test_upgrade_migrates_a_copied_ledger_and_answers_everybody(upgraded):
    machine, told = upgraded
    assert told["failed"] == []
    assert told["asked"] > PLUGINS
    assert _version(machine).startswith("0.1.0+")
    _until_active(machine)
    now = len(migrations.MIGRATIONS)
    assert now > packages.EARLIER_SCHEMA
    copy = f"/var/backups/latticed/schema-{packages.EARLIER_SCHEMA}-before-{now}"
    assert _schema(machine, copy) == packages.EARLIER_SCHEMA
    machine.check("latticectl", "audit", "verify", "--whole")
    machine.check("systemctl", "stop", "latticed.service")
    assert _schema(machine) == now
    _until_active(machine)
    assert json.loads(machine.check("latticectl", "invoke", _name(0), "sleep", "0")) == {"slept": 0}
    assert machine.run("find", "/run", "-name", "latticed-upgrade*").stdout == ""


@pytest.fixture
def patient(upgraded):
    """A plugin that may take ten minutes, far longer than the drain."""
    machine, _ = upgraded
    settings = machine.check("cat", "/etc/latticed/latticed.toml")
    machine.write("/etc/latticed/latticed.toml", f"{settings}\n[plugin_limits]\nmax_invoke_timeout_s = 600\n")
    machine.check("systemctl", "reload", "latticed.service")
    runtime = {"protocol": "stdio-json-v1", "limits": {"invoke_timeout_s": 600}}
    machine.drop("acme.patient", machines.SLEEPER, v2=True, runtime=runtime)
    machine.check("latticectl", "install", "acme.patient")
    machine.check("latticectl", "activate", "acme.patient")
    yield "acme.patient"
    machine.check("rm", "-r", "/var/lib/latticed-plugins/acme.patient")
    machine.check("latticectl", "disable", "acme.patient")
    machine.write("/etc/latticed/latticed.toml", settings)  # or dpkg would ask about it


def test_everybody_is_answered_over_restarts_and_a_reinstallation(upgraded, patient):
    """Clients that write, too. An invocation that takes longer than the drain is told why it ended."""
    machine, _ = upgraded
    hammer = test_restarts.HAMMER.replace('control.sock")', 'control.sock", connect_s=600, read_s=600)')
    machine.write("/root/hammer.py", hammer)
    machine.check("rm", "-f", "/root/enough")
    libraries = f"/root/clients/usr/lib/latticed/lib/python{machines.SUITES[machine.suite]}/site-packages"
    group = f"/sys/fs/cgroup{machine.property('latticed.service', 'ControlGroup')}/plugins/{patient}"
    at_work = f"ps -o args= -p $(cat {group}/child-*/cgroup.procs | paste -sd,) | grep -q python"
    with machine.started("env", f"PYTHONPATH={libraries}", "python3", "-P", "/root/hammer.py") as asking:
        try:
            for _ in range(long.times(1, 10)):
                machine.check("systemctl", "restart", "latticed.service")
            machine.check("latticectl", "wait", patient, "--for", "active", "--timeout", "120")
            with machine.started("sh", "-c", f"latticectl invoke {patient} sleep 500 2>&1") as sleeping:
                processes.until(
                    lambda: machine.run("sh", "-c", at_work).returncode == 0,
                    what="the invocation to be under way",
                    deadline_s=machines.BOOT_S,
                )
                _type(machine, "apt-get install -y --reinstall ./latticed_*.deb")
                told, _ = sleeping.communicate(timeout=machines.BOOT_S)
        finally:
            machine.write("/root/enough", "")
        out, _ = asking.communicate(timeout=machines.BOOT_S)
    done = json.loads(out)
    assert done["failed"] == []
    assert done["asked"] > 100
    assert "the daemon stops and does not wait any longer" in told, told
    assert int(machine.check("latticectl", "kv", "get", "restarts", "client-0")) > 1
    machine.check("latticectl", "audit", "verify", "--whole")


def test_change_that_waits_to_be_confirmed_keeps_the_package_as_it_is(upgraded):
    machine, _ = upgraded
    unit = undo_timers.unit("a" * 8)
    machine.check("systemd-run", f"--unit={unit}", "--on-active=3600", "true")
    for words in (["--reinstall", "install", "./latticed_*.deb"], ["remove", "latticed"]):
        refused = machine.run("sh", "-c", f"cd /root && apt-get -y {' '.join(words)}")
        assert refused.returncode != 0
        assert "waits to be confirmed" in refused.stdout
        machine.check("latticectl", "health", "--check")
    machine.check("systemctl", "stop", f"{unit}.timer")


if long.LONG:

    def test_daemon_that_somebody_started_by_hand_keeps_the_package_as_it_is(upgraded):
        """It goes on with the state, which no other version touches meanwhile; afterwards the units have it again."""
        machine, _ = upgraded
        machine.check("systemctl", "stop", "latticed.socket", "latticed.service")
        machine.check("systemd-run", "--unit=by-hand", "--uid=latticed", "/usr/bin/latticed")
        pid = machine.property("by-hand.service", "MainPID")
        processes.until(
            lambda: machine.journal("LATTICED_EVENT=daemon_ready", f"_PID={pid}"),
            what="it to be ready",
            deadline_s=60.0,
        )
        refused = machine.run("sh", "-c", "cd /root && apt-get -y --reinstall install ./latticed_*.deb")
        assert refused.returncode != 0
        assert "a latticed that is no unit of this package uses /var/lib/latticed" in refused.stdout + refused.stderr
        assert machine.check("dpkg-query", "-W", "-f", "${Status}", "latticed") == "install ok installed"
        assert machine.property("by-hand.service", "MainPID") == pid
        machine.check("systemctl", "stop", "by-hand.service")
        machine.check("systemctl", "restart", "latticed.socket", "latticed.service")
        _until_active(machine)
        machine.check("latticectl", "audit", "verify", "--whole")


def test_earlier_version_is_refused_and_the_way_out_works(upgraded):
    """Nothing is changed by the attempt; the commands of the refusal bring back the state from before the upgrade."""
    machine, _ = upgraded
    attempt = "cd /root && apt-get install -y --allow-downgrades ./earlier.deb"
    refused = machine.run("sh", "-c", attempt, within_s=packages.BUILD_S)
    assert refused.returncode != 0
    now = len(migrations.MIGRATIONS)
    assert f"is of schema {now}, and this version reads up to {packages.EARLIER_SCHEMA}" in refused.stdout
    assert _version(machine).startswith("0.1.0+")
    machine.check("latticectl", "health", "--check")
    _until_active(machine)
    way_out = refused.stdout.partition("go back to the state")[2]
    back, _, accepting = way_out.partition("then install this version again")
    commands = re.findall(r"^  (\w.*?)\r?$", back, re.MULTILINE)
    assert [one.split()[0] for one in commands[:3]] == ["systemctl", "mv", "cp"]
    _type(machine, "\n".join([*commands, attempt]))
    again, accept, start = re.findall(r"^  (\w.*?)\r?$", accepting, re.MULTILINE)[:3]
    assert "~git" in _version(machine)
    # The journal may know the newer state, or not have told it in time; accepting it does no harm then.
    ended = "until latticectl status >/dev/null 2>&1; do sleep 0.5; done; kill -INT $!; wait $!"
    _type(machine, f"{again}\n{accept.partition(' #')[0]} & {ended}\n{start}")
    _until_active(machine)
    machine.check("systemctl", "stop", "latticed.service")
    assert _schema(machine) == packages.EARLIER_SCHEMA


def test_purge_keeps_what_was_asked_to_stay(upgraded):
    """With the user whose it is."""
    machine, _ = upgraded
    machine.write("/etc/latticed/keep-on-purge", "/var/lib/latticed\n/etc/credstore/latticed-secrets.key\n")
    _type(machine, _page("Remove"))
    machine.check("test", "-e", "/var/lib/latticed/ledger.sqlite3")
    machine.check("test", "-e", "/etc/credstore/latticed-secrets.key")
    assert machine.check("stat", "-c", "%U", "/var/lib/latticed/ledger.sqlite3").strip() == "latticed"
    for gone in ("/etc/latticed", "/var/lib/latticed-plugins", "/var/backups/latticed"):
        assert machine.run("test", "-e", gone).returncode != 0, gone


@pytest.mark.parametrize("suite", FRESH)
def test_make_install_gives_the_tree_of_the_package(suite, tmp_path):
    """Byte for byte; debhelper adds the copyright and its changelog, and compresses man pages."""
    packages.tree(suite, tmp_path / "tree")
    installed, packaged = packages.files(tmp_path / "tree"), packages.contents(packages.built(suite), tmp_path / "deb")
    added = {f"usr/share/doc/latticed/{name}" for name in ("changelog.gz", "copyright")}
    overrides = "usr/share/lintian/overrides/latticed"
    plain = {
        name.removesuffix(".gz"): gzip.decompress(content) if name.endswith(".gz") else content
        for name, content in packaged.items()
        if name not in {*added, overrides}
    }
    assert sorted(plain) == sorted(installed)
    assert [name for name, content in plain.items() if content != installed[name]] == []
    # What it compares a ledger and a controller's database with.
    command = ["dpkg-deb", "--info", str(packages.built(suite)), "preinst"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    told = re.findall(r" schema=(\S+)$", shown, re.MULTILINE)
    assert told == [str(len(one)) for one in (migrations.MIGRATIONS, database.MIGRATIONS)]
    # Once more over it, as an upgrade: settings stay, libraries of before do not.
    library = f"usr/lib/latticed/lib/python{machines.SUITES[suite]}/site-packages/of_before.py"
    mine = {"etc/latticed/latticed.toml": b"# mine\n", library: b""}
    for name, content in mine.items():
        (tmp_path / "tree" / name).write_bytes(content)
    packages.tree(suite, tmp_path / "tree")
    again = packages.files(tmp_path / "tree")
    changed = {name for name in again.keys() | installed.keys() if again.get(name) != installed.get(name)}
    assert changed == {"etc/latticed/latticed.toml"}
    # The bill of materials has what the pins name, by the hash of one of their files.
    bill = json.loads(installed["usr/share/doc/latticed/latticed.cdx.json"])
    pins = (pages.CHECKOUT / f"packaging/requirements/{suite}.txt").read_text()
    assert {f"{one['name']}=={one['version']}" for one in bill["components"]} == set(
        re.findall(r"^\S+==\S+", pins, re.MULTILINE)
    )
    assert [one for one in bill["components"] if f"sha256:{one['hashes'][0]['content']}" not in pins] == []


if long.LONG:  # a build takes a minute, lintian two, and a hundred packages of Perl

    @pytest.mark.parametrize("suite", machines.SUITES)
    def test_power_cut_in_an_upgrade_leaves_no_daemon_of_two_versions(suite, tmp_path):
        """Between unpacking and configuring; the daemon says what to do, and after that everything is back."""
        with machines.booted(suite, tmp_path, bare=True) as machine:
            packages.put(machine, packages.built(suite))
            _type(machine, _page("Install, and a first plugin"))
            _type(machine, "dpkg --unpack latticed_*.deb && sync")
            machine.kill()
        with machines.booted(suite, tmp_path, bare=True) as machine:
            (entry,) = machine.until_logged("_SYSTEMD_UNIT=latticed.service", "--grep=package_unpacked")[:1]
            assert "dpkg --configure -a" in entry["MESSAGE"]
            machine.check("dpkg", "--configure", "-a")
            machine.check("latticectl", "wait", "acme.demo", "--for", "active", "--timeout", "60")

    @pytest.mark.parametrize("suite", machines.SUITES)
    def test_package_is_built_to_the_same_bytes(suite, tmp_path):
        again = packages.rebuilt(suite, tmp_path)
        assert filecmp.cmp(again, packages.built(suite), shallow=False)

    @pytest.mark.parametrize("suite", machines.SUITES)
    def test_lintian_has_nothing_to_say(suite):
        """Besides what packaging/debian/latticed.lintian-overrides has, each with its reason."""
        tests_own = "uses-no-compression-for-control-tarball,uses-no-compression-for-data-tarball"
        options = ["--allow-root", "--no-cfg", "--fail-on", "error,warning", "--suppress-tags", tests_own]
        command = ["lintian", *options, str(packages.built(suite))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "")
