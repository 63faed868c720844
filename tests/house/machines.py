"""Debian machines in containers of systemd-nspawn: a real systemd as PID 1, a real journald, latticed's own units.

    with machines.booted("trixie", tmp_path) as machine:
        machine.install()
        machine.check("systemctl", "start", "latticed.service")
        machine.journal("LATTICED_EVENT=ready")

Root file systems come from mmdebstrap and latticed's dependencies from pip, once each: both are kept in CACHE, by a
hash of what they are made of. A machine has the root as the lower layer of an overlay, so what it writes is its own,
and `booted` again on the same directory is a reboot.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.house import bundles, processes

CHECKOUT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("LATTICED_ROOTS", "/var/cache/latticed-tests"))
SUITES = {"bookworm": "3.11", "trixie": "3.13"}
"""Debian 12 with systemd 252, and 13 with 257; and the Python of each."""
PACKAGES = "systemd,systemd-sysv,dbus,python3,iproute2,procps,nftables,ca-certificates"
TOOLS = {"systemd-nspawn": "systemd-container", "mmdebstrap": "mmdebstrap", "nsenter": "util-linux"}
TOOLS |= {"dpkg-buildpackage": "dpkg-dev", "dh": "debhelper"}
WHEELS = ("manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_28_x86_64", "manylinux_2_34_x86_64", "any")
VERSIONS = {"bookworm": 252, "trixie": 257}
UNITS = (
    *("latticed.service", "latticed.socket", "latticed-journal.service", "latticed-journal.socket"),
    *("latticed-apply.service", "latticed-apply.socket", "latticed-apply-boot.service", "latticed-ui.service"),
    *("latticed-fleet.service", "latticed-controller.service"),
)
SOCKETS = ("latticed.socket", "latticed-journal.socket", "latticed-apply.socket")
SETTINGS = """
plugin_dir = "/var/lib/latticed-plugins"
state_dir = "/var/lib/latticed"
runtime_dir = "/run/latticed"

[apply]
kinds = ["nft"]

[access]
own_user = false
"""
AUTHOR = bundles.author()
"""Of the plugins that `Machine.drop` makes."""
SLEEPER = b"""#!/usr/bin/env python3
import json, sys, time
asked = json.load(sys.stdin)
if asked["action"] == "sleep":
    time.sleep(asked["payload"])
print(json.dumps({"ok": True, "result": {"slept": asked.get("payload")}}))
"""
"""A plugin that sleeps as long as it is told."""
PROGRAMS = {
    "latticed": "daemon",
    "latticectl": "ctl.main",
    "latticed-journal": "journal",
    "latticed-apply": "apply",
    "latticed-fleet": "fleet.agent",
    "latticed-controller": "fleet.controller.process",
}
DROP_IN = "/etc/systemd/system/latticed.service.d/257.conf"
SECRETS_KEY = """
key=/etc/credstore/latticed-secrets.key
install -d -m 700 /etc/credstore
[ -e $key ] || (umask 077 && head -c 32 /dev/urandom >$key)
"""
COMPILED = "/var/cache/python"
"""Where a machine's Python has its compiled modules: kept here, for each suite."""
PREFIX = "latticed-test-"
BUILD_S = 1_200.0
BOOT_S = 120.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# For systemd-nspawn: groups of version 2, and no system call filter of its own, in which Landlock is missing.
_ENVIRONMENT = {"PATH": _PATH, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_SECCOMP": "0"}
# $1 lower layers, $2 the machine's directory, then the command. The overlay goes with this mount namespace.
_SETUP = """
set -eu
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/merged"
shift 2
exec "$@"
"""


def root(suite: str, more: str = "") -> Path:
    """The root file system of a suite, made when it is not in CACHE; with `more` packages, as in PACKAGES."""
    packages = f"{PACKAGES},{more}" if more else PACKAGES
    return _kept(f"root-{suite}", f"{suite} {packages}", lambda place: _debootstrap(suite, packages, place))


def site(suite: str) -> Path:
    """What latticed needs of PyPI, for the Python of a suite, and the metadata of latticed itself."""
    version, needs = _setup()["metadata"]["version"], " ".join(_needs())
    made_of = f"{SUITES[suite]} {needs} {version} {WHEELS} {COMPILED}"
    return _kept(f"site-{suite}", made_of, lambda place: _pip(suite, place))


def _kept(name: str, made_of: str, make: Any) -> Path:
    place = CACHE / f"{name}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
    # Two sessions would make it twice; what is there was renamed when it was whole.
    with _locked(name):
        if not place.exists():
            fresh = CACHE / f".{place.name}.{os.getpid()}"
            shutil.rmtree(fresh, ignore_errors=True)
            make(fresh)
            fresh.rename(place)
    return place


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    """Alone with `name` in CACHE, of all sessions of tests."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{name}.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def compiled(suite: str) -> Path:
    """Compiled modules of a suite's machines: what is in COMPILED there."""
    place = CACHE / f"compiled-{suite}"
    place.mkdir(parents=True, exist_ok=True)
    return place


def _debootstrap(suite: str, packages: str, place: Path) -> None:
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}", suite, str(place), _mirror()]
    subprocess.run(command, check=True, timeout=BUILD_S)


def _mirror() -> str:
    """That of this machine."""
    sources = sorted(Path("/etc/apt").glob("sources.list*")) + sorted(Path("/etc/apt/sources.list.d").glob("*"))
    for path in filter(Path.is_file, sources):
        if found := re.search(r"^(?:URIs: *|deb +(?:\[.*\] +)?)(\S+)", path.read_text(), re.MULTILINE):
            return found[1]
    pytest.fail("expected a mirror of Debian in /etc/apt, found none", pytrace=False)


def _pip(suite: str, place: Path) -> None:
    setup = _setup()
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--target", str(place)]
    options = [f"--python-version={SUITES[suite]}", "--only-binary=:all:", *(f"--platform={one}" for one in WHEELS)]
    subprocess.run([*pip, *options, *_needs()], check=True, timeout=BUILD_S)
    # latticed itself is the checkout's, but asks for its version as an installed package does.
    version = setup["metadata"]["version"]
    package = place / f"latticed-{version}.dist-info"
    package.mkdir()
    (package / "METADATA").write_text(f"Metadata-Version: 2.1\nName: latticed\nVersion: {version}\n")
    (place / "latticed").mkdir()  # where the checkout's is mounted
    # Packages and checkout are read-only in a machine: without this each start would compile them anew.
    (place / "latticed-tests.pth").write_text(f'import sys; sys.pycache_prefix = "{COMPILED}"\n')


def _needs() -> list[str]:
    """What pip installs of PyPI: the console's and the fleet's too."""
    setup = _setup()
    extras = setup["options.extras_require"]
    lines = f"{setup['options']['install_requires']}\n{extras['ui']}\n{extras['fleet']}".splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _setup() -> ConfigParser:
    setup = ConfigParser()
    setup.read(CHECKOUT / "setup.cfg")
    return setup


@dataclass(slots=True)
class Machine:
    """One running machine. `leader` is the pid here of its PID 1."""

    suite: str
    home: Path
    leader: int
    process: subprocess.Popen[bytes]

    @property
    def packages(self) -> str:
        return f"/usr/local/lib/python{SUITES[self.suite]}/dist-packages"

    def run(self, *command: str, stdin: str = "", within_s: float = BOOT_S) -> subprocess.CompletedProcess[str]:
        """A command as root within the machine."""
        return subprocess.run(
            [*self._inside, *command],
            input=stdin, capture_output=True, text=True, check=False, timeout=within_s,
        )  # fmt: skip

    def check(self, *command: str, stdin: str = "", within_s: float = BOOT_S) -> str:
        """The same, of a command that succeeds; its stdout."""
        ran = self.run(*command, stdin=stdin, within_s=within_s)
        assert ran.returncode == 0, f"{command}: {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout

    def install(self) -> None:
        """latticed as docs/operate/unit.md has it: programs, units, user, directories, and the key of secrets."""
        for name, module in PROGRAMS.items():
            text = f"#!/usr/bin/python3 -P\nimport sys\nfrom latticed.{module} import main\nsys.exit(main())\n"
            self.write(f"/usr/local/bin/{name}", text, mode=0o755)
        for unit in UNITS:
            self.write(f"/etc/systemd/system/{unit}", (CHECKOUT / "systemd" / unit).read_text())
        if VERSIONS[self.suite] >= 257:
            self.write(DROP_IN, (CHECKOUT / "systemd/latticed-257.conf").read_text())
            self.write(
                DROP_IN.replace("latticed.service", "latticed-fleet.service"),
                (CHECKOUT / "systemd/latticed-fleet-257.conf").read_text(),
            )
        self.check("sh", "-c", SECRETS_KEY)
        self.write("/etc/sysusers.d/latticed.conf", (CHECKOUT / "systemd/latticed.sysusers").read_text())
        self.write("/etc/tmpfiles.d/latticed.conf", (CHECKOUT / "systemd/latticed.tmpfiles").read_text())
        catalog = (CHECKOUT / "systemd/latticed.catalog").read_text()
        self.write("/usr/lib/systemd/catalog/latticed.catalog", catalog)
        self.check("journalctl", "--update-catalog")
        self._compile()
        self.write("/etc/latticed/latticed.toml", SETTINGS)
        self.write("/etc/latticed/trust.json", json.dumps(bundles.policy(AUTHOR)))
        self.check("systemd-sysusers")
        self.check("systemd-tmpfiles", "--create", "latticed.conf")
        self.check("systemctl", "daemon-reload")
        self.check("systemctl", "enable", "latticed-apply-boot.service")

    def _compile(self) -> None:
        """The modules that changed since the last time."""
        with _locked(compiled(self.suite).name):
            python = f"/usr/lib/python{SUITES[self.suite]}"
            # Some of them are no modules: templates, and files of other versions.
            self.run("python3", "-m", "compileall", "-q", python, self.packages)

    @contextlib.contextmanager
    def started(self, *command: str) -> Iterator[subprocess.Popen[str]]:
        """A command as root within the machine that goes on while the block runs."""
        with subprocess.Popen([*self._inside, *command], stdout=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    @property
    def _inside(self) -> list[str]:
        """The words before a command within the machine."""
        entered = ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w", "--"]
        return [*entered, "env", "-i", f"PATH={_PATH}", "LANG=C.UTF-8"]

    def write(self, path: str, text: str, *, mode: int = 0o644) -> None:
        command = f'mkdir -p "$(dirname "{path}")" && cat >"{path}" && chmod {mode:o} "{path}"'
        self.check("sh", "-c", command, stdin=text)

    def drop(self, plugin_id: str, artifact: bytes, *, wait: bool = True, **fields: Any) -> None:
        """A bundle of AUTHOR, in the directory that root drops bundles in; `wait`: until it is seen."""
        parent = Path(f"/proc/{self.leader}/root/var/lib/latticed-plugins")
        bundles.drop(parent, plugin_id, author=AUTHOR, artifact=artifact, id=plugin_id, **fields)
        if not wait:
            return
        processes.until(
            lambda: plugin_id in self.run("latticectl", "list").stdout,
            what=f"{plugin_id} to be seen",
            deadline_s=BOOT_S,
        )

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """Entries of this boot, oldest first, with all their fields."""
        shown = self.check("journalctl", "--boot", "--output=json", "--all", "--no-pager", *matches)
        return [json.loads(line) for line in shown.splitlines()]

    def until_logged(self, *matches: str, count: int = 1) -> list[dict[str, Any]]:
        def enough() -> list[dict[str, Any]] | None:
            found = self.journal(*matches)
            return found if len(found) >= count else None

        return processes.until(enough, what=f"{count} entries of {matches}", deadline_s=BOOT_S)

    def property(self, unit: str, name: str) -> str:
        return self.check("systemctl", "show", "--property", name, "--value", unit).strip()

    def kill(self) -> None:
        """As when the power fails."""
        self.process.kill()
        self.process.wait()

    def power_off(self) -> None:
        """systemd's own way down: SIGRTMIN+4 to PID 1 (systemd(1))."""
        os.kill(self.leader, signal.SIGRTMIN + 4)
        self.process.wait(BOOT_S)


@contextlib.contextmanager
def booted(suite: str, directory: Path, more: str = "", *, bare: bool = False) -> Iterator[Machine]:
    """A machine whose own files are below `directory`, with `more` packages; it is up when the block begins. A `bare`
    one has nothing of latticed, and none of what it needs of PyPI.
    """
    for name in ("upper", "work", "merged"):
        (directory / name).mkdir(exist_ok=True)
    name = f"{PREFIX}{uuid.uuid4().hex[:12]}"
    homes = [path / name for path in _cgroup_roots()]
    for home in homes:
        home.mkdir()
    process = None
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices, open(directory / "console", "ab") as console:
            notices.bind(f"\0{name}")
            notices.settimeout(0.2)
            process = subprocess.Popen(
                _command(root(suite, more), suite, directory, name, homes, bare=bare),
                env={**_ENVIRONMENT, "NOTIFY_SOCKET": f"@{name}"},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )
            _until_ready(notices, process, directory)
        # The socket is closed by now: systemd goes on to send what changes, and PID 1 would wait for one who reads it.
        yield Machine(suite, directory, _leader(process.pid), process)
    finally:
        if process is not None:
            process.kill()
            process.wait()
        _sweep(homes)


def _command(lower: Path, suite: str, directory: Path, name: str, homes: list[Path], *, bare: bool) -> list[str]:
    packages = f"/usr/local/lib/python{SUITES[suite]}/dist-packages"
    binds = [
        f"--bind-ro={site(suite)}:{packages}",
        f"--bind-ro={CHECKOUT / 'latticed'}:{packages}/latticed",
        f"--bind={compiled(suite)}:{COMPILED}",
    ]
    # Into the cgroups first. `unshare --kill-child` ends the machine when `unshare` dies, as it does with these tests.
    join = " && ".join(f"echo $$ >{home}/cgroup.procs" for home in homes)
    return [
        "sh", "-c", f'{join} && exec "$@"', "sh",
        "setpriv", "--pdeathsig", "KILL",
        "unshare", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc", "--",
        "sh", "-c", _SETUP, "sh", str(lower), str(directory),
        "systemd-nspawn", "--quiet", "--settings=no", "-M", name, "-D", str(directory / "merged"), "--boot",
        "--register=no", "--keep-unit", "--notify-ready=yes", "--console=pipe", "--private-network",
        "--link-journal=no", "--resolv-conf=off", "--timezone=off",
        # nspawn takes away too much for what latticed confines plugins with; the kernel's modules stay out of reach.
        "--capability=all", "--drop-capability=CAP_SYS_MODULE",
        *([] if bare else binds),
    ]  # fmt: skip


def _cgroup_roots() -> list[Path]:
    """Where systemd keeps its hierarchy: version 2 alone, or besides the named one of version 1."""
    mixed = [path for name in ("unified", "systemd") if (path := Path("/sys/fs/cgroup") / name).is_dir()]
    return mixed or [Path("/sys/fs/cgroup")]


def _until_ready(notices: socket.socket, process: subprocess.Popen[bytes], directory: Path) -> None:
    deadline = time.monotonic() + BOOT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(TimeoutError):
            if b"READY=1" in notices.recv(4096):
                return
    said = (directory / "console").read_text(errors="replace")[-4_000:]
    pytest.fail(f"the machine is not up ({process.poll()}):\n{said}", pytrace=False)


def _leader(pid: int) -> int:
    """The PID 1 of the innermost pid namespace below a process."""
    found = [(len(ids), one) for one in _descendants(pid) if (ids := _ids(one)) and ids[-1] == 1]
    return max(found)[1]


def _descendants(pid: int) -> Iterator[int]:
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, _told(path).split()):
            yield child
            yield from _descendants(child)


def _ids(pid: int) -> list[int]:
    """Its pid in each namespace, outermost first; none of one that has ended."""
    status = _told(Path(f"/proc/{pid}/status"))
    return [int(one) for one in status.partition("NSpid:")[2].partition("\n")[0].split()]


def _told(path: Path) -> str:
    """What the kernel says of a process; nothing of one that has ended meanwhile: a machine that boots starts many."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _sweep(homes: list[Path]) -> None:
    """Remove the machine's groups, once its last process is gone."""
    for home in homes:
        processes.until(lambda home=home: _removed(home), what=f"{home} to be empty")


def _removed(home: Path) -> bool:
    """Whether the groups are gone; those that still have a process stay."""
    for path, _, _ in os.walk(home, topdown=False):
        with contextlib.suppress(OSError):
            Path(path).rmdir()
    return not home.exists()
