"""How a wasm child reports why it ends: one line of JSON on a descriptor that the module cannot reach."""

from __future__ import annotations

import json
import os
from typing import Final, NoReturn

from wasmtime import Trap, TrapCode, WasmtimeError

STATUS: Final = 4
"""Descriptor of the report; INPUT is that of the module to compile or the compiled code to run."""
INPUT: Final = 3
EXIT_STATUS: Final = 70  # EX_SOFTWARE (sysexits.h)
_MESSAGE_CHARACTERS: Final = 500
_CODES: Final = {
    TrapCode.OUT_OF_FUEL: "fuel_exhausted",
    TrapCode.INTERRUPT: "deadline_exceeded",
    TrapCode.STACK_OVERFLOW: "stack_overflow",
}
_WORDS: Final = {
    "fuel_exhausted": "expected one message to be answered with the fuel that the manifest asks for, found it used up",
    "deadline_exceeded": "expected it to be done with a message in time, found it still computing",
    "stack_overflow": "the module called itself too deeply: its stack is exhausted",
}


# Words in wasmtime's errors, which have no code: running out of memory is no fault of the module's bytes.
_NO_ROOM: Final = (
    "exceeds memory limits",
    "exceeds table limits",
    "limit exceeded",
    "Cannot allocate memory",  # strerror(ENOMEM), from mmap
    "is too large",  # one function's code, for the compiler
)


class GuestFailed(Exception):
    """The module cannot go on; args: code, message."""


class Exited(Exception):
    """The module asked to end; args: its exit status."""


def of_trap(trap: Trap) -> GuestFailed:
    """GuestFailed for a trap: `fuel_exhausted`, `deadline_exceeded`, `stack_overflow`, or `wasm_trap` with what
    happened and in which function.
    """
    code = _CODES.get(trap.trap_code, "wasm_trap") if trap.trap_code is not None else "wasm_trap"
    if code != "wasm_trap":
        return GuestFailed(code, _WORDS[code])
    what = [line.strip() for line in trap.message.splitlines() if "wasm trap:" in line]
    frames = trap.frames
    where = f", in {frames[0].func_name or f'function {frames[0].func_index}'}" if frames else ""
    return GuestFailed(
        code, f"the module trapped: {what[-1].partition('wasm trap: ')[2] if what else 'no reason'}{where}"
    )


def too_late() -> GuestFailed:
    """GuestFailed("deadline_exceeded"), as for a trap of the epoch."""
    return GuestFailed("deadline_exceeded", _WORDS["deadline_exceeded"])


def of_error(error: WasmtimeError, code: str) -> GuestFailed:
    """GuestFailed for an error of wasmtime: `out_of_memory` if it is about memory, else `code`."""
    words = str(error)
    if any(one in words for one in _NO_ROOM):
        return GuestFailed("out_of_memory", f"expected the module to fit its limits, found: {words}")
    return GuestFailed(code, words)


def end(code: str, message: str) -> NoReturn:
    """Write the report `{"code", "message"}` and exit at once with EXIT_STATUS; the message becomes one short line."""
    words = " ".join(message.split())[:_MESSAGE_CHARACTERS]
    # Not as ASCII: in that, the names of a module could make it longer than what is read of it.
    os.write(STATUS, json.dumps({"code": code, "message": words}, ensure_ascii=False).encode())
    os._exit(EXIT_STATUS)


def read_all(fd: int) -> bytes:
    """Read all of a descriptor from offset 0 (its writer left it at the end), and close it."""
    os.lseek(fd, 0, os.SEEK_SET)
    with open(fd, "rb", buffering=0) as source:
        return source.readall()
