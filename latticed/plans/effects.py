"""What the effects of kinds share: running a program that has to be there, reading what it printed."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from latticed.kit import files
from latticed.model.errors import Problem
from latticed.plans.programs import failed
from latticed.plans.protocol import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from latticed.plans.kind import ProgramEnd, Tools
    from latticed.system import findings


def finding(found: findings.Finding) -> Finding:
    """A finding of a pure half as the helper answers with it."""
    return Finding(**asdict(found))


def ran(
    tools: Tools,
    packages: Mapping[str, str],
    program: str,
    *arguments: str,
    stdin: bytes = b"",
    ends: tuple[int, ...] = (0,),
    stays: bool = False,
) -> ProgramEnd:
    """Run a program; Problem tool_missing with the name of its Debian package, tool_failed in its own words.

    `ends`: the exit statuses that are no failure. `stays`: as `Tools.run`.
    """
    with _packaged(packages, program):
        ended = tools.run(program, *arguments, stdin=stdin, stays=stays)
    return _sound(program, ended, ends)


@contextlib.contextmanager
def waiting(
    tools: Tools,
    packages: Mapping[str, str],
    program: str,
    *arguments: str,
    first: bytes = b"",
    ends: tuple[int, ...] = (0,),
) -> Iterator[Callable[[bytes], ProgramEnd]]:
    """As `Tools.waiting`, problems as `ran`."""
    with contextlib.ExitStack() as stack:
        with _packaged(packages, program):
            finish = stack.enter_context(tools.waiting(program, *arguments, first=first))
        yield lambda stdin: _sound(program, finish(stdin), ends)


@contextlib.contextmanager
def _packaged(packages: Mapping[str, str], program: str) -> Iterator[None]:
    """Problem tool_missing with the name of the Debian package."""
    try:
        yield
    except Problem as problem:
        if problem.code != "tool_missing":
            raise
        package = packages[program]
        raise Problem(
            "tool_missing", f"{problem.reason} (package {package})", f"apt install {package}, or {problem.hint}"
        ) from problem


def _sound(program: str, ended: ProgramEnd, ends: tuple[int, ...]) -> ProgramEnd:
    if ended.status not in ends:
        raise failed(program, ended)
    return ended


def signalled(pid: int, number: int, is_meant: Callable[[], bool]) -> None:
    """Send a signal to a process if `is_meant` still says so of its pid; nothing to one that has ended.

    The pid may be another's in a moment: what is asked and what gets the signal is one process (pidfd_open(2)).
    """
    with contextlib.suppress(ProcessLookupError), files.closing(os.pidfd_open(pid)) as process:
        if is_meant():
            signal.pidfd_send_signal(process, number)


def parsed(read: Any, *found: Any) -> Any:
    """What a pure reader makes of a program's output; Problem tool_failed for what no known version prints."""
    try:
        return read(*found)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Problem("tool_failed", f"what a tool printed is not understood: {type(error).__name__}") from error
