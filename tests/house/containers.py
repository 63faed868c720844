"""A container engine for tests: what docs/operate/container.md types as `docker`, done by podman and its kin.

    with containers.engine(directory) as engine:
        engine.type("docker run --rm latticed latticectl version", there)

Images are kept in `machines.CACHE` and read from there; containers and volumes are below `directory`, and go with it.
The base is the root file system of a booted machine. Unless a command says otherwise containers get what Docker gives
them: no user namespaces without CAP_SYS_ADMIN.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.house import machines, packages

CHECKOUT = machines.CHECKOUT
TOOLS = {"podman": "podman", "buildah": "buildah", "podman-compose": "podman-compose", "crun": "crun"}
PODMANS_PROFILE = "/usr/share/containers/seccomp.json"
"""System calls that Podman allows: those that make user namespaces, too."""
TYPE_S = 1_800.0
LAYERS = 80
"""So many are kept in the cache; each changed source makes some."""
NEW_NAMESPACES = 0x7E020000
"""All CLONE_NEW… flags but CLONE_NEWTIME."""
ADMINS = ("bpf", "clone3", "fsconfig", "fsmount", "fsopen", "fspick", "mount", "mount_setattr", "move_mount")
ADMINS += ("open_tree", "pivot_root", "setns", "umount", "umount2", "unshare")
"""System calls that Docker's profile allows only with CAP_SYS_ADMIN, and Podman's always."""
# Containers get no cgroups: the version 2 hierarchy may be without controllers here.
CONF = """
[containers]
cgroups = "disabled"
netns = "none"
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
seccomp_profile = "{profile}"
log_driver = "k8s-file"

[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
STORAGE = """
[storage]
driver = "overlay"
graphroot = "{graph}"
runroot = "{run}"

[storage.options]
additionalimagestores = [{more}]
"""
# As Docker has it: --read-only gives no memory to write in besides what is asked for. And without a network, for which
# podman-compose would set up a bridge.
PODMAN = r"""#!/bin/sh
case "$1 $2" in "network exists" | "network create" | "network rm") exit 0 ;; esac
words= skip= first=
for word; do
  case $word in --net | --network-alias) skip=y; continue ;; esac
  [ -n "$skip" ] || words="$words '$(printf %s "$word" | sed "s/'/'\\\\''/g")'"
  [ -n "$first$skip" ] || case $word in run | create) words="$words --read-only-tmpfs=false" ;; esac
  skip= first=y
done
eval "exec /usr/bin/podman $words"
"""
# podman-compose knows no --wait, tells of exit codes without having one, and writes words of its own to stdout;
# so `exec` and `ps` are done here.
DOCKER = """#!/bin/sh
set -e
compose() {{
  project=latticed wait= words=
  [ "$1" != -p ] || {{ project=$2; shift 2; }}
  if [ "$1" = exec ]; then
    shift; [ "$1" != -T ] || shift
    [ "$1" = latticed ]; shift
    exec podman exec --interactive "${{project}}_latticed_1" "$@"
  fi
  [ "$*" != "ps -q" ] || exec podman ps --quiet --filter "name=${{project}}_latticed_1"
  for word; do if [ "$word" = --wait ]; then wait=y; else words="$words '$word'"; fi; done
  eval "set -- $words"
  code=0 told=$(mktemp)
  podman-compose --no-ansi -p "$project" "$@" >"$told" || code=$?
  cat "$told" >&2
  [ $code != 0 ] || code=$(sed -n "s/^exit code: //p" "$told" | tail -1)
  rm -f "$told"
  [ "${{code:-0}}" = 0 ] || exit "$code"
  [ -n "$wait" ] || exit 0
  until podman healthcheck run "${{project}}_latticed_1" >/dev/null 2>&1; do
    [ "$(podman inspect --format "{{{{.State.Running}}}}" "${{project}}_latticed_1")" = true ]
    sleep 0.2
  done
}}
case $1 in
compose) shift; compose "$@" ;;
build) shift; CONTAINERS_STORAGE_CONF={images}; export CONTAINERS_STORAGE_CONF; exec buildah bud --quiet --layers \
  --isolation chroot --format docker --ignorefile packaging/container/Dockerfile.dockerignore \
  --build-arg SUITE={suite} --build-arg BASE={base} \
  --build-arg PIP_NO_INDEX=1 --build-arg PIP_FIND_LINKS=/wheels -v {wheels}:/wheels:ro "$@" ;;
*) exec podman "$@" ;;
esac
"""
# Its own mounts, in which there is one hierarchy of cgroups, as crun wants it, and nothing in /srv.
HOLD = """
mount --make-rprivate /
umount -l /sys/fs/cgroup || true
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs /srv
# crun gives what is a container's stdin to the container's user: not the host's /dev/null.
mknod -m 666 /srv/null c 1 3
mount --bind /srv/null /dev/null
echo ready
exec sleep infinity
"""


@dataclass(slots=True)
class Engine:
    """`holder` is the pid of the process whose namespaces commands are run in."""

    home: Path
    holder: int

    def type(self, commands: str, there: Path, *, exits: int = 0) -> str:
        """Commands of a page, as root in the directory `there`; what they wrote to stdout."""
        done = self.run(["sh", "-ec", commands], there)
        assert done.returncode == exits, f"{commands}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def run(self, command: list[str], there: Path = CHECKOUT) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.inside(there), *command],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=TYPE_S,
        )  # fmt: skip

    def inside(self, there: Path = CHECKOUT) -> list[str]:
        """The words before a command that is to see this engine."""
        # nsenter's own option for the directory takes one of the holder's namespace, in which it is the same.
        return [
            "nsenter", "-t", str(self.holder), "-m", "-C", f"--wdns={there}", "--",
            "env", "-i", f"PATH={self.home}/bin:{machines._PATH}", "LANG=C.UTF-8", f"HOME={self.home}",
            f"CONTAINERS_CONF={self.home}/containers.conf", f"CONTAINERS_STORAGE_CONF={self.home}/storage.conf",
        ]  # fmt: skip

    def inspect(self, name: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(self.type(f"docker inspect {name}", CHECKOUT))
        return found[0]

    def home_file(self, path: Path) -> Path:
        """Where a file of the engine's host is seen here."""
        return Path(f"/proc/{self.holder}/root{path}")

    def pid(self, name: str) -> int:
        """Of a container's process 1, as seen here."""
        return int(self.inspect(name)["State"]["Pid"])


@contextlib.contextmanager
def engine(home: Path, suite: str = "trixie") -> Iterator[Engine]:
    """An engine whose files are below `home`, which must be empty, and whose images are made from this Debian; its
    containers end with it.
    """
    if missing := [package for tool, package in TOOLS.items() if shutil.which(tool) is None]:
        pytest.fail(f"containers need {' and '.join(missing)} (apt install)", pytrace=False)
    # One session of tests at a time: all have the same names for images.
    with machines._locked("images"), _held() as holder:
        _write(home, suite)
        made = Engine(home, holder)
        try:
            _base(made, suite)
            yield made
        finally:
            made.run(["podman", "rm", "--all", "--force", "--time=0", "--volumes"])


@contextlib.contextmanager
def _held() -> Iterator[int]:
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "-m", "-C", "--", "sh", "-ec", HOLD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield process.pid
        finally:
            process.kill()


def _write(home: Path, suite: str) -> None:
    images = machines.CACHE / "images"
    # Nothing is below it, where an earlier session ended before its first image.
    if len(list(images.glob("overlay/*"))) > LAYERS:
        shutil.rmtree(images)
    images.mkdir(exist_ok=True)
    (home / "bin").mkdir()
    made_of = {"suite": suite, "base": _base_name(suite), "wheels": packages.wheels(suite)}
    docker = DOCKER.format(here=home, images=home / "images.conf", **made_of)
    (home / "bin/docker").write_text(docker)
    (home / "bin/docker").chmod(0o755)
    (home / "bin/podman").write_text(PODMAN)
    (home / "bin/podman").chmod(0o755)
    (home / "containers.conf").write_text(CONF.format(profile=home / "seccomp.json"))
    (home / "seccomp.json").write_text(json.dumps(_dockers_profile()))
    shared = STORAGE.format(graph=images, run=home / "run-images", more="")
    (home / "images.conf").write_text(shared)
    own = STORAGE.format(graph=home / "graph", run=home / "run", more=f'"{images}"')
    (home / "storage.conf").write_text(own)


def _base_name(suite: str) -> str:
    return f"localhost/{machines.root(suite).name}"


def _base(engine: Engine, suite: str) -> None:
    """The image that latticed's is made from: a root file system of Debian, put in as it is."""
    script = """
    buildah inspect --type image "$1" >/dev/null 2>&1 && exit
    made=$(buildah from scratch)
    buildah add --quiet "$made" "$2" /
    buildah config --cmd /bin/sh "$made"
    buildah commit --quiet --rm "$made" "$1"
    """
    images = f"CONTAINERS_STORAGE_CONF={engine.home}/images.conf"
    done = engine.run(["env", images, "sh", "-ec", script, "sh", _base_name(suite), str(machines.root(suite))])
    assert done.returncode == 0, done.stderr


def _dockers_profile() -> dict[str, Any]:
    """What Docker's profile refuses, taken out of Podman's: without CAP_SYS_ADMIN no namespace is made or entered, and
    nothing is mounted.
    """
    profile: dict[str, Any] = json.loads(Path(PODMANS_PROFILE).read_text())
    refused = {*ADMINS, "clone"}
    for rule in profile["syscalls"]:
        rule["names"] = [name for name in rule["names"] if name not in refused]
    profile["syscalls"] = [rule for rule in profile["syscalls"] if rule["names"]]
    masked = [{"index": 0, "value": NEW_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]
    profile["syscalls"] += [
        {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": masked},
        # ENOSYS: libraries then take clone, whose flags a filter can see.
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        {"names": [name for name in ADMINS if name != "clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
    ]
    return profile
