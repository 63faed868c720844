"""What strace saw of the root helper: which programs ran, and which files who touched.

place.before = (*place.before, *traces.watching(trace))
with place.running(): ...
traces.strays(place, traces.touched(trace)[sys.executable])  # what is on no list of the helper's own
"""

from __future__ import annotations

import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from latticed.plans import protocol
from tests.house import apply_helpers, processes

TRACED = ",".join(
    "execve execveat open openat openat2 creat connect rename renameat renameat2 unlink unlinkat mkdir mkdirat"
    " link linkat symlink symlinkat truncate chmod fchmodat chown".split()
)
_LIBRARIES = (
    "/lib",
    "/usr/lib",
    "/usr/share/zoneinfo",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/etc/python3",
    "/etc/localtime",
)
_DATABASES = ("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/run/systemd/userdb")
_KERNEL = (
    "/dev/null",
    # The runtime of cryptography's extension counts processors when it is loaded: kind `nginx` reads certificates.
    "/proc/self/cgroup",
    "/proc/self/mountinfo",
    "/proc/sys/kernel/random/boot_id",
    "/proc/self/fd",
    "/proc/self/oom_score_adj",
    "/sys/devices/system/cpu",
)


def watching(trace: Path) -> tuple[str, ...]:
    """The words that come before a command which strace is to watch, with all that it starts."""
    return ("strace", "-D", "-f", "-q", "-y", "-o", str(trace), "-e", f"trace={TRACED}")


def touched(trace: Path) -> dict[str, set[str]]:
    """For each program that was run, by its path, the files that it touched, once the trace has ended. A process has
    the program of its last execve; without one it is the helper's own.
    """
    processes.until(lambda: "+++ exited" in trace.read_text().splitlines()[-1], what="the trace's end")
    found: defaultdict[str, set[str]] = defaultdict(set)
    programs: dict[str, str] = {}
    for line in trace.read_text().splitlines():
        if "ENOENT" in line or "+++" in line:
            continue
        pid = line.split()[0]
        whole = re.sub(r'\d+<(/[^>]*)>, "([^"/][^"]*)"', r'"\1/\2"', line)  # relative to an open directory
        paths = re.findall(r'"((?:/|\.)[^"]*)"', whole)
        if " execve" in line and paths:
            programs[pid] = paths[0]
            found[paths[0]] |= set()
        else:
            found[programs.get(pid, sys.executable)] |= {os.path.normpath(one).replace("//", "/") for one in paths}
    return dict(found)


def strays(place: apply_helpers.Place, paths: Iterable[str], run: Iterable[str]) -> set[str]:
    """Of what the helper touched itself, all that is neither its own nor part of Python, user database and kernel.

    `run`: the programs that it ran, whose directories it judges.
    """
    own = [str(place.home / name) for name in ("live", "state", "run", "code", "latticed.toml")]
    code = {os.path.realpath(one) for one in (sys.prefix, sys.base_prefix, Path(protocol.__file__).parents[1])}
    listed = (*own, *code, sys.prefix, *_LIBRARIES, *_DATABASES, *_KERNEL)
    # The directories that lead to a file are opened for passing through, to judge them.
    leading = {str(parent) for one in (place.home / "x", *map(Path, run)) for parent in (one, *one.parents)}
    return {one for one in paths if not one.startswith(listed)} - leading


def of_others(found: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """What the programs touched that the helper ran."""
    return {path: files for path, files in found.items() if path != sys.executable}
