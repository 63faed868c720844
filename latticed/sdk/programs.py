"""Run a plugin's program over real pipes, for tests: the host's side of both protocols, with a Gate for host calls."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time

from latticed.sdk import lines
from latticed.sdk.calls import HostError
from latticed.sdk.lines import LineStream
from latticed.sdk.plugin import RESPONSE_FD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Any

    from latticed.sdk.gate import Gate

PROTOCOL = "latticed-stdio-1"
DEADLINE_S = 10.0
"""Seconds for each line that a program has to write or read."""
GRACE_S = 3.0
"""Seconds that a program has to end by itself after `shutdown`."""
HURRY_S = 0.5
"""How long to wait for a failed program to end by itself, so that its stderr is complete."""
HOST_REFUSED = -32000


# pass_fds of subprocess keeps a descriptor's number, so the started process moves it to 3 itself.
_MOVE = """
import os, sys
here = int(sys.argv[1])
os.dup2(here, 3)
if here != 3:
    os.close(here)
os.execvp(sys.argv[2], sys.argv[2:])
"""


class ProgramError(AssertionError):
    """The program broke the protocol or took too long; the message has its stderr."""


class _DeadlineStream(LineStream):
    """A LineStream whose reads and writes take at most `deadline_s` seconds."""

    def __init__(self, reading: int, writing: int, deadline_s: float) -> None:
        super().__init__(reading, writing)
        # select(2) promises room for some bytes only: a blocking write of a long line could hang for ever.
        os.set_blocking(writing, False)
        self._deadline_s = deadline_s

    def readable(self) -> None:
        """Wait for bytes; ProgramError when none come in time."""
        if not select.select([self._reading], [], [], self._deadline_s)[0]:
            raise ProgramError(f"expected a line within {self._deadline_s:g} s, found none")

    def writable(self) -> None:
        """Wait for room; ProgramError when the program does not read in time."""
        if not select.select([], [self._writing], [], self._deadline_s)[1]:
            raise ProgramError(f"expected the program to read within {self._deadline_s:g} s, found that it does not")


class _Program:
    """A running program with pipes to it and its stderr in a file; OSError when it cannot be started."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None, pass_fds: Sequence[int] = ()) -> None:
        # A file, not a pipe, which would be full at some point: nobody reads stderr while the program runs.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the program
        try:
            self.process = subprocess.Popen(  # noqa: S603 - the command under test
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,
                env={**os.environ, **(env or {})},
                pass_fds=tuple(pass_fds),
            )
        except BaseException:
            self._errors.close()
            raise
        assert self.process.stdin is not None  # noqa: S101 - asked for above
        assert self.process.stdout is not None  # noqa: S101 - asked for above
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def stderr(self) -> str:
        """What it has written to stderr so far."""
        size = os.fstat(self._errors.fileno()).st_size
        # pread(2): the file offset is shared with the program, which writes there.
        return os.pread(self._errors.fileno(), size, 0).decode("utf-8", errors="replace")

    def end(self, grace_s: float) -> tuple[int, str]:
        """Close its stdin, wait `grace_s` seconds for its end, then kill it; its exit status and its stderr."""
        # At end of file a program that waits for its host ends by itself.
        self.stdin.close()
        try:
            self.process.wait(timeout=grace_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.stdout.close()
        try:
            return self.process.returncode, self.stderr()
        finally:
            self._errors.close()

    def broken(self, reason: str) -> ProgramError:
        """The error to raise, with the program's stderr."""
        return ProgramError(f"{reason}; its stderr:\n{self.stderr()}")


class LongLived:
    """A context manager that runs a program with latticed-stdio-1: `initialize` on entry, `shutdown` on exit.

    `env` is added to this process's own environment, for example PYTHONPATH for a program that imports latticed.sdk.
    The program must write or read each line within `deadline_s`. After the exit `returncode` and `stderr` are set.
    """

    def __init__(
        self,
        command: Sequence[str],
        gate: Gate,
        *,
        id: str = "test.plugin",  # noqa: A002 - its name in the protocol
        config: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self.gate = gate
        self.stderr = ""
        self.returncode: int | None = None
        self._command = command
        self._first = {"protocol": PROTOCOL, "id": id, "capabilities": [*gate.capabilities], "config": config or {}}
        self._env = env
        self._deadline_s = deadline_s
        self._last_id = 0

    def __enter__(self) -> LongLived:  # noqa: PYI034 - typing.Self is younger than Python 3.9
        self._program = _Program(self._command, self._env)
        self._stream = _DeadlineStream(self._program.stdout.fileno(), self._program.stdin.fileno(), self._deadline_s)
        try:
            self.ask("initialize", self._first)
        except BaseException:
            self._end(HURRY_S)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self.ask("shutdown", {})
        finally:
            # After a failure it is not asked to shut down, as it may not answer.
            self._end(GRACE_S if kind is None else HURRY_S)

    def invoke(self, action: str, payload: Any = None) -> dict[str, Any]:
        """`{ok, message, result}` as the program answered; host calls are answered meanwhile. ProgramError."""
        return dict(self.ask("invoke", {"action": action, "payload": payload}))

    def health(self) -> dict[str, Any]:
        """`{status, message}` as the program answered. ProgramError."""
        return dict(self.ask("health", {}))

    def ask(self, method: str, params: Mapping[str, Any]) -> Any:
        """The result of any request; its host calls are answered meanwhile. ProgramError when it is an error."""
        self._last_id += 1
        self._send({"id": self._last_id, "method": method, "params": dict(params)})
        while True:
            message = self._receive()
            if "method" in message:
                self._send({"id": message.get("id"), **self._carried_out(message)})
            elif message.get("id") != self._last_id:
                raise self._program.broken(f"expected an answer to {self._last_id}, found {str(message)[:200]}")
            elif message.get("error") is not None:
                raise self._program.broken(f"{method} was answered with the error {message['error']}")
            else:
                return message.get("result")

    def _carried_out(self, message: dict[str, Any]) -> dict[str, Any]:
        """The Gate's answer to one host call, as JSON-RPC."""
        try:
            return {"result": self.gate.call(message["method"], message.get("params") or {})}
        except HostError as error:
            return {"error": {"code": HOST_REFUSED, "message": error.message, "data": {"code": error.code}}}

    def _send(self, message: dict[str, Any]) -> None:
        """Send one JSON-RPC message; ProgramError when the program does not read in time."""
        _write(self._program, self._stream, {"jsonrpc": "2.0", **message})

    def _receive(self) -> dict[str, Any]:
        """The next JSON-RPC message of the program; ProgramError."""
        return _message(self._program, self._stream, "the program ended")

    def _end(self, grace_s: float) -> None:
        """End the program after `grace_s` seconds at most, and keep its exit status and stderr."""
        self.returncode, self.stderr = self._program.end(grace_s)


def run_once(
    command: Sequence[str],
    gate: Gate,
    action: str,
    payload: Any = None,
    *,
    env: Mapping[str, str] | None = None,
    deadline_s: float = DEADLINE_S,
) -> dict[str, Any]:
    """One invocation of a program that speaks stdio-json-v1: its final reply `{ok, message, result, error}`.

    ProgramError when no line comes within `deadline_s`, or no reply. `env` is added to this process's own environment.
    """
    theirs, ours = os.pipe()
    try:
        return _invoked(_with_descriptor_3(command, theirs, env), ours, gate, (action, payload), deadline_s)
    finally:
        os.close(ours)


def _with_descriptor_3(command: Sequence[str], theirs: int, env: Mapping[str, str] | None) -> _Program:
    """Start it with `theirs` as descriptor 3, as the host does (a shell redirects only 0 to 9); closes it here."""
    # -I: PYTHON* variables are meant for the program, not for this step. -S: it needs no site-packages.
    first = [sys.executable, "-ISc", _MOVE, str(theirs), *command]
    try:
        return _Program(first, {**(env or {}), RESPONSE_FD: "3"}, [theirs])
    finally:
        os.close(theirs)


def _invoked(
    program: _Program, answers_fd: int, gate: Gate, asked: tuple[str, Any], deadline_s: float
) -> dict[str, Any]:
    """Send the request, answer host calls, and return the reply; the program has ended then."""
    ends_at = time.monotonic() + deadline_s
    action, payload = asked
    try:
        calls = _DeadlineStream(program.stdout.fileno(), program.stdin.fileno(), deadline_s)
        answers = _DeadlineStream(-1, answers_fd, deadline_s)
        _write(program, calls, {"action": action, "payload": payload})
        # The request is one line and end of file (docs/write/sdk.md).
        program.stdin.close()
        while "host_call" in (message := _message(program, calls, f"{action} was not answered")):
            _write(program, answers, {"host_response": _answer(gate, message["host_call"])})
        return message
    finally:
        program.end(max(0.0, ends_at - time.monotonic()))


def _answer(gate: Gate, call: dict[str, Any]) -> dict[str, Any]:
    """The answer to one host call, in the form of stdio-json-v1."""
    try:
        result = gate.call(call["method"], call.get("params") or {})
    except HostError as error:
        return {"id": call["id"], "ok": False, "result": None, "error": str(error)}
    return {"id": call["id"], "ok": True, "result": result, "error": None}


def _write(program: _Program, stream: LineStream, message: dict[str, Any]) -> None:
    """Send one message; ProgramError with the program's stderr when it does not read."""
    try:
        stream.write(lines.encode(message))
    except ProgramError as error:
        raise program.broken(str(error)) from error
    except BrokenPipeError as error:
        raise program.broken("expected the program to read, found that it has closed its end") from error


def _message(program: _Program, stream: LineStream, without: str) -> dict[str, Any]:
    """The next line of the program, a JSON object; ProgramError otherwise. `without`: its text at end of file."""
    try:
        line = stream.read_line()
    except ProgramError as error:
        raise program.broken(str(error)) from error
    if line is None:
        raise program.broken(without)
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise program.broken(f"expected an object in a line of JSON, found {line[:200]!r}")
    return message
