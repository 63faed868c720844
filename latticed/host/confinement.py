"""What host services need to run a program confined: a spawner, the sandbox level, the environment, the program itself.

`runners.child_spawner.ChildSpawner` implements `Spawner`; it is in a higher layer, which this module may not import.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from latticed.kit import trusted_files
from latticed.kit.tasks import in_thread
from latticed.model.errors import Problem
from latticed.model.fault import Fault
from latticed.sandbox import artifact, levels
from latticed.sandbox.levels import Chosen
from latticed.sandbox.spec import Program

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Mapping

    from latticed.processes.child import Child
    from latticed.processes.exits import Exit
    from latticed.sandbox.artifact import Artifact
    from latticed.sandbox.host_facts import Probed
    from latticed.sandbox.levels import Level
    from latticed.sandbox.spec import ChildRequest, Ids

# The daemon's own PATH is not inherited: it may name directories that others than root can write to.
PATH: Final = "/usr/local/bin:/usr/bin:/bin"
CODE: Final = "program_unusable"
"""The code of a Problem about the program of a host service: missing, not executable, or changeable by others."""
MAX_SCRIPT_BYTES: Final = 4 << 20
"""A script of the host's is copied into memory before it is run; a larger one is refused."""
# Features that a program gets where the host has them, and its environment without and with a work directory.
_LIKES: Final = frozenset({levels.THREADS, levels.PROCESSES, levels.WORKDIR})
_WITHOUT_SCRATCH: Final = {"PATH": PATH, "LANG": "C.UTF-8"}
_SCRATCH: Final = {"HOME": "/scratch", "TMPDIR": "/scratch"}


class Spawner(Protocol):
    """Starts children. `probed`: what this host can confine with; `floor`: the lowest sandbox level that the operator
    allows; `interpreters`: paths by name, from the settings.
    """

    probed: Probed
    floor: Level
    interpreters: dict[str, str]

    async def spawn(
        self,
        request: ChildRequest,
        chosen: Chosen,
        *,
        on_exit: Callable[[Exit], None],
        stdout: asyncio.Protocol,
        stderr: asyncio.Protocol,
        on_ids: Callable[[Ids | None], Awaitable[None]] | None = None,
    ) -> Child:
        """Start a child as `processes.child.spawn` does, with a user id of its own where the daemon may choose one.

        `request.interpreters` are added to its own. `on_ids` is awaited before the start with the ids that the child
        will run as (None: the daemon's own user), and may give files to that user; when it raises, nothing is started.
        """
        ...


def choose(spawner: Spawner, *, network: bool = False) -> Chosen:
    """The highest sandbox level of this host, with those features of _LIKES that it has; `network` requires one.

    Problem("sandbox_unavailable") when the host is below the operator's floor, or cannot give a network.
    """
    needs = frozenset({levels.NETWORK}) if network else frozenset()
    provided = spawner.probed.provided
    # Only the operator's floor and the network are required; missing _LIKES do not prevent a start.
    chosen = levels.decide(levels.Required(level=spawner.floor, features=needs), provided)
    if isinstance(chosen, Fault):
        raise Problem.of(chosen)
    return Chosen(level=chosen.level, features=chosen.features | (_LIKES & provided.features))


def environment(chosen: Chosen, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The whole environment of a program confined as `chosen`, with `more` added; the daemon's own is not inherited."""
    # /scratch exists only at levels with a work directory; elsewhere HOME would name a place that is not there.
    return {**_WITHOUT_SCRATCH, **(_SCRATCH if levels.WORKDIR in chosen.features else {}), **(more or {})}


def program_at(path: str, interpreters: Mapping[str, str]) -> Program | Artifact:
    """The program at `path`, which only root and the daemon's user can change. Blocks: call it in a thread.

    A Program for an ELF file, an Artifact for a script; the caller closes it with `close`.

    Problem("program_unusable") says what is wrong with it.
    """
    # Any other user who can change the file could have the daemon run code of theirs.
    owners = frozenset({0, os.geteuid()})
    try:
        with open(path, "rb") as source:
            # Enough for `#!` and for the four bytes that begin an ELF file (elf(5), EI_MAG).
            head = source.read(4)
        if head.startswith(b"#!"):
            # The script is copied while it is checked: a later change of the file does not change what is run.
            script = trusted_files.read(Path(path), MAX_SCRIPT_BYTES, owners=owners)
            return artifact.of_bytes(script, interpreters=interpreters)
    except (OSError, ValueError, trusted_files.ForeignFile) as error:
        raise _unusable(path, getattr(error, "strerror", None) or str(error)) from error
    except Problem as problem:
        raise _unusable(path, problem.reason) from problem
    if head != b"\x7fELF" or not os.access(path, os.X_OK):
        raise _unusable(path, "a file that cannot be executed")
    # A binary is not copied but executed by path, so every directory on the way counts, too.
    if place := _changeable(Path(path), owners):
        raise _unusable(path, f"{place} can be changed by others")
    return Program(path=path)


def _changeable(path: Path, owners: frozenset[int]) -> str | None:
    """The part of a path (link, target, directory) that users other than `owners` can change; None if there is none."""
    real = Path(os.path.realpath(path))
    # `path.parent` besides the real path: a user who can write there can replace the link itself.
    for place in (path.parent, real, *real.parents):
        found = place.stat()
        # In a sticky directory (inode(7), S_ISVTX), such as /tmp, others cannot rename or remove root's entries.
        is_sticky = found.st_uid == 0 and found.st_mode & stat.S_ISVTX and stat.S_ISDIR(found.st_mode)
        if found.st_uid not in owners or (found.st_mode & 0o022 and not is_sticky):
            return str(place)
    return None


async def program(path: str, interpreters: Mapping[str, str]) -> Program | Artifact:
    """As `program_at`, in a thread; if cancelled, the opened Artifact is closed."""
    return await in_thread(lambda: program_at(path, interpreters), close)


def close(made: Program | Artifact) -> None:
    """Close what `program_at` returned; children that run it have descriptors of their own. No effect on a Program."""
    if not isinstance(made, Program):
        made.close()


def _unusable(path: str, found: str) -> Problem:
    """Problem program_unusable for `path`, of which the text names the last part only; `found` is what is wrong."""
    detail = f"expected the program {os.path.basename(path)} to be one that only root can change, found: {found}"
    return Problem(CODE, detail, "the settings say where it is")
