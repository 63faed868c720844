"""Runs the operator's cloudflared, confined: to its end for an answer, or as a request for one that is to be kept."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from latticed.host import confinement
from latticed.host.last_output import LastOutput, last_words
from latticed.host.program.supervised import ProgramDeps, Ready
from latticed.host.tunnel.files import hand_over
from latticed.model.errors import Problem
from latticed.processes import waiting
from latticed.sandbox import rlimits
from latticed.sandbox.spec import ChildRequest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from latticed.model.egress import Origin
    from latticed.model.restart import RestartPolicy
    from latticed.processes.exits import Exit
    from latticed.sandbox.spec import Network
    from latticed.settings.programs import TunnelSettings as Settings

ANSWER_S: Final = 8.0
"""Seconds until cloudflared must have answered: the plugin waits for it, as tunnel.put answers afterwards."""
OUTPUT_BYTES: Final = 64 << 10
"""How much of stdout and of stderr is kept."""
_LIMITS: Final = rlimits.ResourceLimits(memory_bytes=1 << 30, tasks=256, open_files=4_096)
# The whole line is `cloudflared version 2025.11.1 (built 2025-11-07-16:59 UTC)`; development builds are named DEV.
_VERSION: Final = re.compile(rb"version ([0-9A-Za-z][0-9A-Za-z.+-]{0,39})")


@dataclass(slots=True, kw_only=True)
class TunnelDeps:
    """What tunnels are run with. `settings`: replaced by a reload; `origins(plugin_id)`: the origins that are bound to
    it now; `policy`: backoff of restarts, whose breaker is not used.
    """

    program: ProgramDeps
    settings: Settings
    origins: Callable[[str], tuple[Origin, ...]]
    policy: RestartPolicy
    versions: dict[tuple[object, ...], str] = field(default_factory=dict)
    """By what identifies the file of cloudflared; see `version`."""


async def request(
    deps: TunnelDeps, args: tuple[str, ...], paths: tuple[Path, ...], network: Network, *, owner: str = ""
) -> Ready:
    """A request for cloudflared with these arguments, which can read these files; `Ready.close` must be called.

    `owner`: the id of the plugin whose tunnel it is for.

    Problem service_unavailable when the operator has named no cloudflared, or as `confinement.choose` and `program`.
    """
    spawner, path = deps.program.spawner, deps.settings.program
    if not path:
        raise Problem("service_unavailable", "the operator has named no cloudflared", "set tunnel.program")
    chosen = confinement.choose(spawner, network=network != "none")
    # Last, as it opens a descriptor that only `Ready.close` closes.
    program = await confinement.program(path, spawner.interpreters)
    made = ChildRequest(
        program=program,
        args=args,
        environment=confinement.environment(chosen),
        limits=_LIMITS,
        binds=tuple(map(str, paths)),
        network=network,
        owner=owner,
    )
    return Ready(
        request=made,
        chosen=chosen,
        close=lambda: confinement.close(program),
        on_ids=lambda ids: hand_over(paths, ids),
    )


async def validate(deps: TunnelDeps, config: Path) -> None:
    """Have cloudflared validate a configuration.

    Problem bad_params when it refuses that, with the last line of its output; service_unavailable when it takes too
    long, or is killed, which says nothing of the configuration; or as `request`.
    """
    ended, out, err = await _answer(deps, ("tunnel", "--config", str(config), "ingress", "validate"), (config,))
    said = last_words(err or out)
    if ended is None or ended.code != "exited":
        found = ended.message if ended else f"it took longer than {ANSWER_S:g} s"
        raise Problem("service_unavailable", f"cloudflared did not say whether it takes the rules: {found}{said}")
    if ended.status != 0:
        raise Problem(
            "bad_params", f"ingress: expected rules that cloudflared takes, it ended with {ended.status}{said}"
        )


async def version(deps: TunnelDeps) -> str:
    """The version that cloudflared says it has, such as 2025.11.1; empty when it says none. Asked once for each file
    that `tunnel.program` has led to. Problem as `request`.
    """
    try:
        found = await asyncio.to_thread(os.stat, deps.settings.program)
        key: tuple[object, ...] = (deps.settings.program, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    except (OSError, ValueError):
        return ""  # starting it says what is wrong
    if key not in deps.versions:
        ended, out, _ = await _answer(deps, ("--version",), ())
        said = _VERSION.search(out)
        if ended is None or ended.status != 0 or said is None:
            return ""
        deps.versions.clear()
        deps.versions[key] = said[1].decode("ascii")
    return deps.versions[key]


async def _answer(deps: TunnelDeps, args: tuple[str, ...], paths: tuple[Path, ...]) -> tuple[Exit | None, bytes, bytes]:
    """Run cloudflared to its end, without network: its exit (None when it took longer than ANSWER_S), and the end of
    stdout and of stderr.
    """
    made = await request(deps, args, paths, "none")
    out, err = LastOutput(OUTPUT_BYTES), LastOutput(OUTPUT_BYTES)
    ended: Exit | None = None
    try:
        child = await deps.program.spawner.spawn(
            made.request, made.chosen, on_exit=lambda _: None, stdout=out, stderr=err, on_ids=made.on_ids
        )
    finally:
        # Also after a failed start: the opened program would leak a descriptor.
        made.close()
    try:
        child.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                ended = await child.gone()
    finally:
        # No grace: what takes too long, or is not wanted any more, has nothing to clean up.
        await waiting.uncancelled(child.stop(0))
    return ended, out.data(), err.data()
