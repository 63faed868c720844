"""Runs the programs of kinds: by a fixed path, with an empty environment, a deadline, in a group of their own."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latticed.kit import text, trusted_files
from latticed.model.errors import Problem
from latticed.plans.kind import ProgramEnd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

DEADLINE_S: Final = 10.0
"""Of one program. A change runs a handful, which together stay below `protocol.OPERATION_S`."""
MAX_OUTPUT_BYTES: Final = 8 << 20
"""Of stdout and stderr together; a ruleset with 100,000 banned addresses has 3 MB."""
_CHUNK: Final = 64 << 10
_AT_ONCE: Final = 4 << 10
_NICE: Final = "/usr/bin/nice"
"""Of coreutils."""
_CHOOM: Final = "/usr/bin/choom"
"""Of util-linux."""


class ProgramTools:
    """The tools of one kind (`kind.Tools`). `paths`: name and absolute path of what may be run, and nothing else.

    `lock`: a descriptor that each program inherits, so that the store's lock is held until it has ended, whatever
    becomes of the helper; None to give it none. `hidden`: values of secrets by reference; where a program repeats one
    on stderr, which gets into answers, steps and log, its reference is put in place.
    """

    def __init__(
        self,
        paths: Mapping[str, str],
        *,
        lock: int | None = None,
        hidden: Mapping[str, str] | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._paths = paths
        self._hidden = hidden or {}
        self._lock = lock
        self._deadline_s = deadline_s

    def path(self, program: str) -> str:
        """As `kind.Tools.path`. Problem tool_missing for what somebody else than root could replace."""
        path = self._paths[program]
        try:
            trusted_files.check(Path(path), owners=frozenset({0}))
        except FileNotFoundError as error:
            raise Problem("tool_missing", f"{program} is not there: {path}", _named(program)) from error
        except (OSError, ValueError, trusted_files.ForeignFile) as error:
            raise Problem("tool_missing", f"{path} cannot be run: {error}") from error
        return path

    def run(self, program: str, *arguments: str, stdin: bytes = b"", stays: bool = False) -> ProgramEnd:
        """As `kind.Tools.run`. KeyError for a program that the kind did not name: a mistake in the kind."""
        with self._started(program, arguments, stays=stays) as child:
            return self._ended(child, program, stdin)

    @contextlib.contextmanager
    def waiting(self, program: str, *arguments: str, first: bytes = b"") -> Iterator[Callable[[bytes], ProgramEnd]]:
        """As `kind.Tools.waiting`."""
        with self._started(program, arguments) as child:
            assert child.stdin  # noqa: S101 - made with PIPE
            # As much as a pipe that is empty takes without waiting (pipe(7)).
            with contextlib.suppress(BrokenPipeError):  # its exit status says more
                os.write(child.stdin.fileno(), first[:_AT_ONCE])
            yield lambda rest: self._ended(child, program, first[_AT_ONCE:] + rest)

    @contextlib.contextmanager
    def _started(
        self, program: str, arguments: tuple[str, ...], *, stays: bool = False
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A child that is killed, if it has not ended, and reaped."""
        path = self._paths[program]
        # What stays would hold the lock for ever, and end with a Ctrl-C at the helper's terminal.
        inherited = () if self._lock is None or stays else (self._lock,)
        try:
            # A name that somebody else could replace is not run, whoever wrote it into the settings.
            trusted_files.check(Path(path), owners=frozenset({0}))
            child = subprocess.Popen(  # noqa: S603 - a path of the kind or of root's settings, never a caller's
                [*(_unfavoured(*_own_favours()) if stays else ()), path, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={},
                cwd="/",
                process_group=None if stays else 0,
                start_new_session=stays,
                pass_fds=inherited,
            )
        except FileNotFoundError as error:
            raise Problem(
                "tool_missing",
                f"{program} is not there: {path}",
                _named(program),
            ) from error
        except (OSError, ValueError, trusted_files.ForeignFile) as error:
            raise Problem("tool_missing", f"{path} cannot be run: {error}") from error
        try:
            yield child
        finally:
            _end(child)

    def _ended(self, child: subprocess.Popen[bytes], program: str, stdin: bytes) -> ProgramEnd:
        """The child's end, once it has been given its input."""
        ended = _conversed(child, program, stdin, time.monotonic() + self._deadline_s)
        errors = ended.stderr
        # Before anybody cuts it: half a secret is one too. The longest first, which may hold another.
        for name, value in sorted(self._hidden.items(), key=lambda one: -len(one[1])):
            errors = errors.replace(value.encode(), f"${{secret:{name}}}".encode())
        return ProgramEnd(status=ended.status, stdout=ended.stdout, stderr=errors)


def _own_favours() -> tuple[int, int]:
    """Nice value and oom_score_adj (proc(5)) of this process."""
    return os.getpriority(os.PRIO_PROCESS, 0), int(Path("/proc/self/oom_score_adj").read_bytes())


def _unfavoured(nice: int, oom_score: int) -> tuple[str, ...]:
    """Words before a program that goes on for months, so that it is served and spared no more than others, though who
    starts it is (the helper's unit, `dead_man.be_favoured`). Giving that up takes no right.
    """
    return (
        *((_NICE, "-n", str(-nice)) if nice < 0 else ()),
        *((_CHOOM, "-n", "0", "--") if oom_score < 0 else ()),
    )


def _named(program: str) -> str:
    return f"install it, or name its path: [apply] programs.{program}"


def _conversed(child: subprocess.Popen[bytes], program: str, stdin: bytes, until: float) -> ProgramEnd:
    """Write stdin, read both outputs, wait; Problem tool_failed when that takes too long or gives too much."""
    assert child.stdin and child.stdout and child.stderr  # noqa: S101, PT018 - made with PIPE
    out, err = child.stdout.fileno(), child.stderr.fileno()
    left, outputs = memoryview(stdin), {out: bytearray(), err: bytearray()}
    with selectors.DefaultSelector() as selector:
        for pipe in (child.stdin, child.stdout, child.stderr):
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_WRITE if pipe is child.stdin else selectors.EVENT_READ)
        while selector.get_map():
            wait_s = until - time.monotonic()
            if wait_s <= 0:
                raise Problem("tool_failed", f"{program} did not end in time and was killed")
            for ready, _ in selector.select(wait_s):
                if ready.fileobj is child.stdin:
                    left = _fed(ready.fd, left)
                    if not left:
                        selector.unregister(ready.fd)
                        child.stdin.close()
                    continue
                chunk = os.read(ready.fd, _CHUNK)
                outputs[ready.fd] += chunk
                if not chunk:
                    selector.unregister(ready.fd)
                if sum(map(len, outputs.values())) > MAX_OUTPUT_BYTES:
                    raise Problem("tool_failed", f"{program} printed more than {MAX_OUTPUT_BYTES} bytes and was killed")
    try:
        status = child.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired as error:
        raise Problem("tool_failed", f"{program} did not end in time and was killed") from error
    return ProgramEnd(status=status, stdout=bytes(outputs[out]), stderr=bytes(outputs[err]))


def _fed(fd: int, left: memoryview) -> memoryview:
    """Write as much of the input as the pipe takes; what is left of it."""
    try:
        return left[os.write(fd, left[:_CHUNK]) :] if left else left
    except BlockingIOError:
        return left
    except BrokenPipeError:  # it does not read its input; its exit status says more
        return left[:0]


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the program's group, close the pipes and reap it."""
    # The group exists as long as the child has not been reaped, or others are in it; else ESRCH.
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()
    child.wait()


def failed(program: str, ended: ProgramEnd) -> Problem:
    """Problem tool_failed in the program's own words, cut and escaped."""
    words = text.sanitise(ended.stderr.decode("utf-8", "replace").strip(), 400)
    return Problem("tool_failed", f"{program} ended with status {ended.status}: {words or 'without a word'}")
