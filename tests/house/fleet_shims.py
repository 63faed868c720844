"""ssh, scp, docker and systemctl of a fleet's page, where each host is a directory beside the others.

What is typed is carried out: files are copied into the host's directory, a command is run there with absolute paths led
below it, a forwarded socket is a link to the socket. What would start a service leaves a mark that `fleet_sites` reads.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

OF_HOST = re.compile(r"(?<![\w./-])/(?=(?:srv|root|etc|run|var)\b)")
"""Where a path of a host begins."""
SITE = Path(os.environ.get("FLEET_SITE", "/nowhere"))


def host(name: str) -> Path:
    found = SITE / "hosts" / name.removeprefix("root@")
    assert found.is_dir(), f"no host {name}"
    return found


def led(text: str, below: Path) -> str:
    """`text` with the host's paths led below its directory."""
    return OF_HOST.sub(f"{below}/", text)


def scp(words: list[str]) -> int:
    *sources, target = [one for one in words if one != "-r"]
    name, _, path = target.partition(":")
    place = Path(led(path, host(name)))
    for source in map(Path, sources):
        into = place / source.name if place.is_dir() else place
        if source.is_dir():
            shutil.copytree(source, into, dirs_exist_ok=True)
        else:
            shutil.copy(source, into)
            shutil.copymode(source, into)
    return 0


def ssh(words: list[str]) -> int:
    if words[0] == "-fNL":
        here, _, there = words[1].partition(":")
        Path(here).symlink_to(led(there, host(words[2])))
        return 0
    place = host(words[0])
    env = {**os.environ, "PATH": f"{place}/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    command = ["/bin/sh", "-ec", led(" ".join(words[1:]), place)]
    return subprocess.run(command, cwd=place / "root", env=env, check=False).returncode


def docker(words: list[str]) -> int:
    marks = {("compose", "up", "-d"): "started", ("compose", "down", "--volumes"): "removed"}
    assert Path("compose.yaml").is_file()
    Path(marks[tuple(words)]).touch()
    return 0


def systemctl(words: list[str]) -> int:
    *_, unit = words
    marks = {("start",): "started", ("enable", "--now"): "started", ("restart",): "restarted"}
    mark = f"{marks[tuple(words[:-1])]}-{unit.removesuffix('.service')}"
    (Path(os.environ["PATH"].partition(":")[0]).parent / mark).touch()
    return 0


if __name__ == "__main__":
    program, *rest = sys.argv[1:]
    sys.exit({"scp": scp, "ssh": ssh, "docker": docker, "systemctl": systemctl}[program](rest))
