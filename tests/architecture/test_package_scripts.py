"""The maintainer scripts of the Debian package (packaging/debian), run as they are with a root of their own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from latticed.fleet.controller import database
from latticed.ledger import migrations
from tests.house import pages

SCRIPTS = pages.CHECKOUT / "packaging/debian"
NOW = {"SCHEMA": len(migrations.MIGRATIONS), "CONTROLLER": len(database.MIGRATIONS)}
LEDGER = """
import os, signal, sys
from pathlib import Path
from latticed.ledger import connection, migrations
path, steps, ends = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
migrations.migrate.__kwdefaults__["steps"] = migrations.MIGRATIONS[:steps]
opened = connection.open_writer(path)
if ends == "closed":
    opened.close()
os.kill(os.getpid(), signal.SIGKILL)
"""
"""`python -c LEDGER PATH STEPS closed|killed`: a daemon's ledger that has taken so many migrations."""


class Root:
    """A directory that the scripts take for `/`; the programs of the system that they call are those of `answers`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state, self.copies = path / "var/lib/latticed", path / "var/backups/latticed"
        self.controller = path / "var/lib/latticed-controller"
        for name in ("systemctl", "deb-systemd-invoke", "getent", "userdel"):
            self.answers(name, "exit 1")

    def answers(self, program: str, script: str) -> None:
        """What that program is from now on."""
        stub = self.path / "stubs" / program
        stub.parent.mkdir(parents=True, exist_ok=True)
        stub.write_text(f"#!/bin/sh\n{script}\n")
        stub.chmod(0o755)

    def written(self, name: str, **numbers: int) -> str:
        """The script of that name with its paths below this root."""
        text = (SCRIPTS / f"latticed.{name}").read_text()
        for token, value in {**NOW, **numbers}.items():
            text = text.replace(f"#{token}#", str(value))
        return re.sub(r"(?<![\w$}/.])/(?=(?:var|etc|run|usr)/)", f"{self.path}/", text)

    def run(self, name: str, *words: str, **numbers: int) -> subprocess.CompletedProcess[str]:
        """Run the script; `numbers` are schemas of another version than this one."""
        environment = {"PATH": f"{self.path}/stubs:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        command = ["sh", "-c", self.written(name, **numbers), name, *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def root(tmp_path) -> Root:
    made = Root(tmp_path / "root")
    for one in (made.state, made.controller):
        one.mkdir(mode=0o700, parents=True)
    return made


def ledger(root: Root, steps: int, ends: str = "closed") -> None:
    subprocess.run([sys.executable, "-P", "-c", LEDGER, root.state / "ledger.sqlite3", str(steps), ends], check=False)


def kept(root: Root) -> list[str]:
    return sorted(path.name for path in root.copies.iterdir()) if root.copies.exists() else []


def typed_way_back(root: Root, refused: subprocess.CompletedProcess[str]) -> list[str]:
    """Type what the refusal says until the earlier version is installed."""
    root.answers("systemctl", "exit 0")
    commands = re.findall(r"^  (.*)", refused.stderr.partition("then install")[0], re.MULTILINE)
    path = f"{root.path}/stubs:{os.environ['PATH']}"
    subprocess.run(["sh", "-ec", "\n".join(commands)], check=True, env={"PATH": path})
    return commands


def test_version_is_refused_that_is_older_than_a_migration_of_a_killed_daemon(root):
    """Its number is in the WAL alone, as long as nothing was folded into the file."""
    earlier = NOW["SCHEMA"] - 2
    ledger(root, earlier, "closed")
    ledger(root, NOW["SCHEMA"], "killed")
    assert int.from_bytes((root.state / "ledger.sqlite3").read_bytes()[60:64], "big") == earlier
    refused = root.run("preinst", "upgrade", "2", "1", SCHEMA=earlier)
    assert refused.returncode == 1
    assert f"is of schema {NOW['SCHEMA']}, and this version reads up to {earlier}. Nothing" in refused.stderr
    assert kept(root) == []
    taken = root.run("preinst", "upgrade", "2", "3", SCHEMA=NOW["SCHEMA"] + 1)
    assert (taken.returncode, taken.stderr) == (0, "")
    assert kept(root) == [f"schema-{NOW['SCHEMA']}-before-{NOW['SCHEMA'] + 1}"]


def walled(place: Path, page_bytes: int) -> list[Path]:
    """Databases with a WAL: with commits, with frames of an earlier round behind them, with some of a transaction."""
    found = []
    with contextlib.closing(sqlite3.connect(place / "live", isolation_level=None)) as writing:

        def snapshot() -> None:
            found.append(place / f"copy-{len(found)}")
            for end in ("", "-wal"):
                shutil.copyfile(place / f"live{end}", f"{found[-1]}{end}")

        def commit(version: int, rows: int) -> None:
            writing.execute("BEGIN")
            writing.execute(f"PRAGMA user_version={version}")
            writing.executemany("INSERT INTO t VALUES (randomblob(300))", [()] * rows)
            writing.execute("COMMIT")

        writing.execute(f"PRAGMA page_size={page_bytes}")
        writing.execute("PRAGMA journal_mode=WAL")
        writing.execute("PRAGMA wal_autocheckpoint=0")
        writing.execute("CREATE TABLE t (b)")
        commit(1, 8)
        commit(2, 3)
        snapshot()
        writing.execute("PRAGMA wal_checkpoint(RESTART)")
        commit(3, 1)
        snapshot()
        writing.execute("PRAGMA cache_size=1")
        writing.execute("BEGIN")
        writing.execute("PRAGMA user_version=4")
        writing.executemany("INSERT INTO t VALUES (randomblob(300))", [()] * 60)
        snapshot()
        writing.execute("ROLLBACK")
    return found


def read_by_sqlite(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as reading:
        return int(reading.execute("PRAGMA user_version").fetchone()[0])


@pytest.mark.parametrize("page_bytes", [512, 4096])
def test_schema_is_the_one_that_sqlite_reads_however_the_wal_was_cut(root, tmp_path, page_bytes):
    """At each frame: cut short in it, or a byte changed in it, as after a power cut."""
    function = re.search(r"^schema_of\(\) \{\n.*?^\}\n", root.written("preinst"), re.MULTILINE | re.DOTALL)[0]
    cases: list[Path] = []
    for made in walled(tmp_path, page_bytes):
        wal = Path(f"{made}-wal").read_bytes()
        frames = range(32, len(wal), 24 + page_bytes)
        cut = [wal[: at + 24 + page_bytes // 2] for at in frames]
        changed = [wal[:at] + bytes([wal[at] ^ 1]) + wal[at + 1 :] for at in (0, 9, *(one + 40 for one in frames))]
        for number, content in enumerate([wal, b"", *cut, *changed]):
            cases.append(made.with_name(f"{made.name}.{number}"))
            shutil.copyfile(made, cases[-1])
            Path(f"{cases[-1]}-wal").write_bytes(content)
    command = ["sh", "-ec", f'{function}\nfor one; do schema_of "$one"; echo; done', "sh", *map(str, cases)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    # SQLite last: it folds a WAL into its file.
    expected = list(map(read_by_sqlite, cases))
    assert list(map(int, told)) == expected
    assert set(expected) == {0, 1, 2, 3}


def test_file_that_is_no_database_yet_is_left_to_the_daemon(root):
    (root.state / "ledger.sqlite3").touch()
    done = root.run("preinst", "upgrade", "2", "1")
    assert (done.returncode, done.stderr, kept(root)) == (0, "", [])


def test_copy_that_is_not_whole_is_offered_to_nobody_and_goes_with_the_next(root):
    ledger(root, NOW["SCHEMA"], "closed")
    earlier = NOW["SCHEMA"] - 2
    for name in (f"schema-{earlier - 1}-before-{earlier}", f"schema-{earlier}-before-{NOW['SCHEMA']}.new"):
        (root.copies / name).mkdir(parents=True)
    os.utime(root.copies / f"schema-{earlier - 1}-before-{earlier}", (1, 1))
    refused = root.run("preinst", "upgrade", "2", "1", SCHEMA=earlier)
    assert f"cp -a {root.copies}/schema-{earlier - 1}-before-{earlier} {root.state}\n" in refused.stderr
    for number in range(1, 4):
        assert root.run("preinst", "upgrade", "2", "3", SCHEMA=NOW["SCHEMA"] + number).returncode == 0
    assert kept(root) == [f"schema-{NOW['SCHEMA']}-before-{NOW['SCHEMA'] + number}" for number in range(1, 4)]


def controllers(root: Root, steps: int) -> None:
    """The database of a controller that was killed."""
    made = root.controller / database.FILE
    for end in ("", "-wal"):
        Path(f"{made}{end}").unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(made, isolation_level=None)) as writing:
        writing.execute("PRAGMA journal_mode=WAL")
        for number in range(1, steps + 1):
            writing.execute(f"PRAGMA user_version={number}")
            writing.execute(f"CREATE TABLE t{number} (b)")
        for end in ("", "-wal"):
            shutil.copyfile(f"{made}{end}", f"{made}.killed{end}")
    for end in ("", "-wal"):
        Path(f"{made}.killed{end}").rename(f"{made}{end}")


def test_database_of_a_controller_is_copied_before_a_migration_and_not_given_to_an_older_version(root):
    """With the commands that go back, which work as they are typed."""
    now = NOW["CONTROLLER"]
    controllers(root, now)
    (root.controller / "bundles").mkdir()
    (root.controller / "bundles/one.tar").write_text("one")
    assert root.run("preinst", "upgrade", "2", "3", CONTROLLER=now + 1).returncode == 0
    assert kept(root) == [f"controller-schema-{now}-before-{now + 1}"]
    before = root.copies / kept(root)[0] / database.FILE
    assert read_by_sqlite(Path(shutil.copytree(before.parent, root.path / "looked-at")) / database.FILE) == now
    controllers(root, now + 1)
    refused = root.run("preinst", "upgrade", "2", "1")
    assert refused.returncode == 1
    assert (
        f"the database in {root.controller} is of schema {now + 1}, and this version reads up to {now}"
        in refused.stderr
    )
    assert "accept-rollback" not in refused.stderr
    assert typed_way_back(root, refused)[0] == "systemctl stop latticed-controller.service"
    assert root.run("preinst", "upgrade", "2", "1").returncode == 0
    assert (root.controller / "bundles/one.tar").read_text() == "one"
    assert root.controller.stat().st_mode & 0o777 == 0o700


def test_controller_that_was_started_by_hand_keeps_the_package_as_it_is(root):
    controllers(root, NOW["CONTROLLER"])
    with database.alone(root.controller):
        refused = root.run("preinst", "upgrade", "2", "1")
    assert refused.returncode == 1
    assert f"a latticed-controller that is no unit of this package uses {root.controller}" in refused.stderr
    assert root.run("preinst", "upgrade", "2", "1").returncode == 0


def test_way_back_has_the_data_of_services_and_published_files(root):
    """Which the copy has not."""
    earlier = NOW["SCHEMA"] - 1
    ledger(root, earlier, "closed")
    assert root.run("preinst", "upgrade", "2", "3").returncode == 0
    ledger(root, NOW["SCHEMA"], "closed")
    assert "/static" not in root.run("preinst", "upgrade", "2", "1", SCHEMA=earlier).stderr
    for name in ("services", "static"):
        (root.state / name).mkdir()
        (root.state / name / "kept").write_text(name)
    typed_way_back(root, root.run("preinst", "upgrade", "2", "1", SCHEMA=earlier))
    assert root.run("preinst", "upgrade", "2", "1", SCHEMA=earlier).returncode == 0
    assert [(root.state / name / "kept").read_text() for name in ("services", "static")] == ["services", "static"]


@pytest.mark.parametrize("what", ["SCHEMA", "CONTROLLER"])
def test_each_way_back_has_the_data_from_just_before_it(root, what):
    """And what the earlier ones put aside stays as it was."""
    turns, state, data, made, earlier = ["first", "second", "third"], root.state, "services", ledger, NOW[what] - 1
    if what == "CONTROLLER":
        state, data, made, earlier = root.controller, "bundles", controllers, NOW[what]
    made(root, earlier)
    for turn in turns:
        assert root.run("preinst", "upgrade", "2", "3", **{what: earlier + 1}).returncode == 0
        made(root, earlier + 1)
        (state / data).mkdir(exist_ok=True)
        (state / data / "kept").write_text(turn)
        typed_way_back(root, root.run("preinst", "upgrade", "2", "1", **{what: earlier}))
        assert root.run("preinst", "upgrade", "2", "1", **{what: earlier}).returncode == 0
        assert (state / data / "kept").read_text() == turn
    aside = [state.with_name(f"{state.name}.newer{number}") for number in ("", "-2", "-3")]
    assert [(path / data / "kept").read_text() for path in aside] == turns


PATHS = [path for path in pages.column("docs/operate/package.md", "path") if not path.startswith("/usr/")]


def filled(root: Root) -> list[Path]:
    """Everything that the page names is there, with something in it."""
    made = [root.path / path.removeprefix("/") for path in PATHS]
    for path in made:
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("key")
        else:
            (path / "below").mkdir(parents=True, exist_ok=True)
            (path / "below/file").write_text("something")
    return made


def test_purge_deletes_what_the_page_names_and_nothing_else(root):
    made = filled(root)
    beside = root.path / "var/lib/other"
    beside.mkdir()
    done = root.run("postrm", "purge")
    assert (done.returncode, done.stderr) == (0, "")
    assert [path for path in made if path.exists()] == []
    assert beside.exists()
    named = re.search(r'^ours="(.*?)"', (SCRIPTS / "latticed.postrm").read_text(), re.MULTILINE | re.DOTALL)[1].split()
    assert sorted([*named, "/etc/latticed"]) == sorted(PATHS)


@pytest.mark.parametrize("kept_path", PATHS)
def test_purge_keeps_each_path_that_is_to_stay(root, kept_path):
    made = filled(root)
    (root.path / "etc/latticed/keep-on-purge").write_text(f"{root.path}{kept_path}\n")
    root.answers("getent", "exit 0")
    root.answers("userdel", f"echo $1 >> {root.path}/deleted")
    assert root.run("postrm", "purge").returncode == 0
    assert [path for path in made if path.exists()] == [root.path / kept_path.removeprefix("/")]
    assert not (root.path / "deleted").exists(), "the users whose files they are"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0 to mount")
@pytest.mark.parametrize("owner", ["var/lib/latticed-controller", "var/lib/latticed", "etc/latticed"])
def test_purge_empties_what_is_mounted_and_leaves_what_has_another_disk_below_it(root, owner):
    """Of a state and settings on disks of their own; until that other disk is away. /var is a link."""
    trial = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", root.path]
    if subprocess.run(trial, capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace can be made here")
    made = filled(root)
    (root.path / "var").rename(root.path / "other")
    (root.path / "var").symlink_to("other")
    mounted = [root.state, root.path / "etc/latticed"]
    disk, below = root.path / "srv", root.path / owner / "below"
    disk.mkdir()
    (disk / "kept").write_text("the operator's own")
    lines = [
        *(f"mount -t tmpfs tmpfs {path}\nmkdir -p {path}/a/b\ntouch {path}/a/b/c" for path in mounted),
        f"mkdir -p {below}\nmount --bind {disk} {below}",
        'if sh -c "$1" postrm purge; then exit 3; fi',
        f"test -e {below}/kept\ntest -e {mounted[1]}/a/b/c\ntest ! -e {root.path}/var/lib/latticed-plugins",
        f"umount {below}",
        'sh -c "$1" postrm purge',
        *(f'mountpoint -q {path}\ntest -z "$(ls -A {path})"\numount {path}' for path in mounted),
    ]
    environment = {"PATH": f"{root.path}/stubs:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
    command = ["unshare", "-m", "sh", "-exc", "\n".join(lines), "sh", root.written("postrm")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"latticed: {root.path / owner} is left: something is mounted below it\n" in done.stderr
    assert sorted(path for path in made if path.exists()) == sorted(mounted)
    assert (disk / "kept").exists()


def with_dpkg(test):
    """A test that installs."""
    for reason, lacks in (
        ("needs uid 0 to install", os.geteuid() != 0),
        ("dpkg is not installed here", shutil.which("dpkg") is None),
    ):
        test = pytest.mark.skipif(lacks, reason=reason)(test)
    return pytest.mark.root(test)


class Dpkg:
    """Real dpkg on a root, with a package that has a settings file, the postinst and the postrm."""

    def __init__(self, root: Root, place: Path) -> None:
        self.root = root
        admin = root.path / "var/lib/dpkg"
        for name in ("info", "updates", "triggers"):
            (admin / name).mkdir(parents=True)
        (admin / "status").touch()
        control, settings = place / "DEBIAN", place / "etc/latticed/latticed.toml"
        for path in (control, settings.parent):
            path.mkdir(parents=True)
        settings.write_text("# as packaged\n")
        (control / "control").write_text(
            "Package: latticed\nVersion: 1\nArchitecture: all\nMaintainer: tests <t@example.org>\nDescription: tests\n"
        )
        (control / "conffiles").write_text("/etc/latticed/latticed.toml\n")
        for name in ("postinst", "postrm"):
            (control / name).write_text(root.written(name))
            (control / name).chmod(0o755)
        for name in ("systemd-sysusers", "systemd-tmpfiles"):
            root.answers(name, "exit 0")
        self.package = str(place.with_suffix(".deb"))
        subprocess.run(["dpkg-deb", "--root-owner-group", "-b", place, self.package], check=True, capture_output=True)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.root.path}/stubs:/usr/sbin:/usr/bin:/sbin:/bin"
        command = ["dpkg", f"--root={self.root.path}", "--log=/dev/null", "--force-script-chrootless", *words]
        return subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, check=False)

    def __call__(self, *words: str) -> None:
        done = self.run(*words)
        assert done.returncode == 0, done.stderr


@with_dpkg
@pytest.mark.parametrize("steps", [["--purge"], ["--remove", "--purge"]])
def test_settings_that_are_to_stay_are_there_after_dpkg_has_purged_its_own_file(root, tmp_path, steps):
    """Theirs, not the packaged ones; whoever does not ask for it keeps nothing."""
    dpkg, settings = Dpkg(root, tmp_path / "package"), root.path / "etc/latticed"
    for asked in (True, False):
        dpkg("--install", "--force-confold", dpkg.package)
        (settings / "latticed.toml").write_text("# mine\n")
        (settings / "latticed.toml").chmod(0o640)
        if asked:
            (settings / "keep-on-purge").write_text(f"{settings}\n")
        else:
            (settings / "keep-on-purge").unlink()
        for step in steps:
            dpkg(step, "latticed")
        if asked:
            assert sorted(path.name for path in settings.iterdir()) == ["keep-on-purge", "latticed.toml"]
            assert (settings / "latticed.toml").read_text() == "# mine\n"
            assert (settings / "latticed.toml").stat().st_mode & 0o777 == 0o640
    assert not settings.exists()


@with_dpkg
def test_settings_that_are_to_stay_outlast_a_purge_that_fails_and_an_installation_after_it(root, tmp_path):
    """dpkg has deleted its own file before the script runs, and has forgotten that it had it."""
    dpkg, settings = Dpkg(root, tmp_path / "package"), root.path / "etc/latticed"
    dpkg("--install", dpkg.package)
    (settings / "latticed.toml").write_text("# mine\n")
    (settings / "keep-on-purge").write_text(f"{settings}\n")
    root.answers("rm", f'case "$*" in *{root.controller}) exit 1 ;; esac\nexec /bin/rm "$@"')
    failed = dpkg.run("--purge", "latticed")
    assert "post-removal script" in failed.stderr
    assert failed.returncode == 1
    (root.path / "stubs/rm").unlink()
    dpkg("--install", "--force-confold", dpkg.package)
    assert (settings / "latticed.toml").read_text() == "# mine\n"
    dpkg("--purge", "latticed")
    assert sorted(path.name for path in settings.iterdir()) == ["keep-on-purge", "latticed.toml"]
    assert (settings / "latticed.toml").read_text() == "# mine\n"


def test_what_ran_before_an_upgrade_is_started_after_it_though_its_first_script_failed(root):
    """dpkg calls the new version's when the old one's fails, which may have stopped everything by then."""
    ran = ["latticed-apply.service", "latticed-fleet.service"]
    (root.path / "run/systemd/system").mkdir(parents=True)
    (root.path / "usr/lib/latticed").mkdir(parents=True)
    active = root.path / "active"
    active.write_text("\n".join(ran) + "\n")
    root.answers(
        "systemctl",
        f'[ "$2" = is-active ] || exit 0\nshift 2\nfor one; do grep -qxF "$one" {active} && exit; done\nexit 3',
    )
    root.answers("deb-systemd-invoke", f'echo "$@" >>{root.path}/invoked\n[ "$1" != stop ] || : >{active}')
    for words in (["upgrade", "2"], ["failed-upgrade", "1", "2"]):
        done = root.run("prerm", *words)
        assert (done.returncode, done.stderr) == (0, "")
    assert active.read_text() == ""
    assert root.run("postinst", "abort-upgrade", "1").returncode == 0
    assert (root.path / "invoked").read_text().splitlines()[-1] == f"start {' '.join(ran)}"
    assert list((root.path / "run").iterdir()) == [root.path / "run/systemd"]
