"""The paths that a child can see: enough for a dynamic linker and an interpreter, no file of the daemon.

`namespaces` binds them into the child's own root, and `landlock` allows reading them.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from typing import Final

from latticed.kit.value import Value

_SYSTEM: Final = ("/usr/bin", "/usr/lib", "/usr/lib64", "/usr/lib32", "/usr/share/zoneinfo", "/usr/share/nodejs")
_TOP: Final = ("/bin", "/lib", "/lib64", "/lib32")  # links into /usr, where a distribution has merged them
_CONFIGURATION: Final = (
    "/etc/ld.so.cache",
    "/etc/alternatives",  # where /usr/bin/awk and its like point to
    "/etc/localtime",
    "/etc/ssl/openssl.cnf",  # node refuses to start when it may not read it
)
_NETWORK: Final = ("/etc/services", "/etc/ssl/certs")
_NAMES: Final = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf")  # of use in the host's network alone
_LINKERS: Final = (
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/ld-linux-aarch64.so.1",
    "/lib/ld-musl-x86_64.so.1",
    "/lib/ld-musl-aarch64.so.1",
)
DEVICES: Final = (
    "/dev/null",
    "/dev/urandom",
    "/dev/random",
)  # never /dev/zero: a shared mapping of it is memory that no limit counts (see ZERO)
NULL: Final = "/dev/null"  # the only device that may be written
ZERO: Final = "/dev/zero"
"""In the child's own root a sparse file: it reads as zeros, and pages written to a mapping count for that tmpfs."""


class VisiblePaths(Value, frozen=True, kw_only=True):
    """The paths that one child sees, all absolute and on the host.

    `read`: files and directories with all that is below them; `needed`: those of them that must exist; `lists`:
    directories whose names alone may be read; `links`: (path, target) to make instead of binding; `execute`: what may
    be executed.
    """

    read: tuple[str, ...]
    needed: tuple[str, ...]
    lists: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    execute: tuple[str, ...]


def view(
    program: str | None,
    *,
    binds: tuple[str, ...] = (),
    lists: tuple[str, ...] = (),
    processes: bool,
    network: bool,
    names: bool,
) -> VisiblePaths:
    """What a child that executes `program` (an absolute path; None: its own artifact) may see.

    `binds` are further files and directories, which must exist; `lists` are directories of which it may learn the
    names, which a program that looks for files there needs. `processes`: it may execute the system's programs.
    `network`: it needs the certificates; `names`: also the files of the resolver.

    Remembered until a directory that it depends on changes: to look costs 0.6 ms of each start, to compare 0.05.
    """
    asked = (program, binds, lists, processes, network, names)
    depends = _directories_of(program, binds)
    # Taken before it is looked: a change in between is seen the next time.
    stamps = tuple(_stamp(path) for path in depends)
    if (kept := _REMEMBERED.get(asked)) is not None and kept[:2] == (depends, stamps):
        return kept[2]
    found = _looked_up(program, binds=binds, lists=lists, processes=processes, network=network, names=names)
    # A second change within one tick of the file system's clock leaves the same time: wait until it can be told apart.
    if all(stamp is None or stamp[2] < time.time_ns() - _SETTLED_NS for stamp in stamps):
        if len(_REMEMBERED) >= _MOST_REMEMBERED:
            _REMEMBERED.clear()
        _REMEMBERED[asked] = (depends, stamps, found)
    return found


_MOST_REMEMBERED: Final = 256
_SETTLED_NS: Final = 1_000_000_000
_REMEMBERED: Final[dict[tuple[object, ...], tuple[tuple[str, ...], tuple[object, ...], VisiblePaths]]] = {}
"""What was found last, by what was asked, with the directories it depends on and their stamps."""


def _directories_of(program: str | None, binds: tuple[str, ...]) -> tuple[str, ...]:
    """The directories that change when something else becomes visible: of links, of libraries, and all above them."""
    leaves = [*_SYSTEM, *_CONFIGURATION, *_NETWORK, *_NAMES, *binds]
    for path in (program, os.path.realpath(program)) if program is not None else ():
        prefix = os.path.dirname(os.path.dirname(path))
        leaves += [path, f"{prefix}/lib/.", f"{prefix}/lib64/.", f"{prefix}/share/."]
    found: dict[str, None] = {}
    for leaf in leaves:
        above = os.path.dirname(leaf)
        while above not in found:
            found[above] = None
            above = os.path.dirname(above)
    return tuple(found)


def _stamp(path: str) -> tuple[int, int, int] | None:
    """What differs once a link was replaced or an entry of a directory was made, renamed or removed."""
    try:
        seen = os.lstat(path)
    except OSError:
        return None
    return (seen.st_dev, seen.st_ino, seen.st_mtime_ns)


def _looked_up(
    program: str | None,
    *,
    binds: tuple[str, ...] = (),
    lists: tuple[str, ...] = (),
    processes: bool,
    network: bool,
    names: bool,
) -> VisiblePaths:
    """As `view`, looked up now."""
    links = tuple((path, os.readlink(path)) for path in _TOP if os.path.islink(path))
    paths = [*_SYSTEM, *(path for path in _TOP if not os.path.islink(path)), *_CONFIGURATION]
    paths += _NETWORK if network else ()
    paths += _NAMES if names else ()
    needed = [*binds]
    # A link and its target may each have a part of the library: a venv has its pyvenv.cfg beside the link.
    for path in dict.fromkeys((program, os.path.realpath(program)) if program is not None else ()):
        needed.append(path)
        paths += _library_of(path)
    read = _without_covered([*paths, *needed])
    # The kernel executes a program's dynamic linker too, so Landlock must allow it.
    execute = [*_LINKERS, *([os.path.realpath(program)] if program is not None else [])]
    if processes:
        execute += [*_SYSTEM, *(path for path in _TOP if not os.path.islink(path))]
    return VisiblePaths(
        read=read,
        needed=tuple(path for path in needed if path in read),
        lists=lists,
        links=links,
        execute=tuple(execute),
    )


def _library_of(program: str) -> list[str]:
    """Where an interpreter `X/bin/name` may find its library: shared objects, and what is called after it.

    Both in `X/bin`, `X/lib` and `X/share`: `X/lib/python3.13`, `X/lib/node_modules`. Never `X` itself, which may be
    somebody's home, and nothing that a link leads out of `X` to.
    """
    here, name = os.path.split(program)
    prefix = os.path.dirname(here)
    if os.path.basename(here) != "bin" or prefix in {"/", "/usr"}:
        return []
    stem = re.escape(name.rstrip("0123456789.-"))
    ours = re.compile(rf"lib.+\.so[.\d]*|{stem}([\d._-].*)?")
    found = [f"{prefix}/pyvenv.cfg"]
    for place in (here, f"{prefix}/lib", f"{prefix}/lib64", f"{prefix}/share"):
        with contextlib.suppress(OSError):  # missing or unreadable: the interpreter may not need it
            found += [f"{place}/{entry}" for entry in sorted(os.listdir(place)) if ours.fullmatch(entry)]
    within = os.path.realpath(prefix) + "/"
    return [path for path in found if os.path.realpath(path).startswith(within)]


def _without_covered(paths: list[str]) -> tuple[str, ...]:
    """The paths without duplicates and without those below another one."""
    kept = dict.fromkeys(os.path.normpath(path) for path in paths)
    directories = [path for path in kept if not os.path.islink(path)]
    return tuple(path for path in kept if not any(_beyond_links(path).startswith(f"{top}/") for top in directories))


def _beyond_links(path: str) -> str:
    """The path with the links of its directory resolved; its own last part may be a link."""
    return f"{os.path.realpath(os.path.dirname(path))}/{os.path.basename(path)}"
