"""The program that compiles a module and never runs it: code on stdout, or the reason on STATUS."""

from __future__ import annotations

import json
import os
from typing import NoReturn

from wasmtime import Module, WasmtimeError

from latticed.runners.wasm_inside import engine as engines
from latticed.runners.wasm_inside import status
from latticed.runners.wasm_inside.status import GuestFailed


def main(text: str) -> NoReturn:
    """Compile the module at descriptor INPUT by the orders `text` (JSON: `{"fuel": 0 or 1}`); never returns.

    The exit status is 0 when all code was written to stdout, else EXIT_STATUS with a report on STATUS.
    """
    try:
        code = memoryview(_compile(json.loads(text)["fuel"]))
        while code:
            code = code[os.write(1, code) :]
    except GuestFailed as failed:
        status.end(*failed.args)
    except MemoryError:
        status.end("out_of_memory", "expected the module to be compiled within the compiler's memory limit")
    os._exit(0)


def _compile(fuel: int) -> bytes:
    """The compiled code of the module at INPUT; GuestFailed when it is invalid, no plugin, or too large.

    `fuel`: above 0 the code counts fuel.
    """
    data = status.read_all(status.INPUT)
    engines.check_bytes(data)
    try:
        module = Module(engines.make(fuel=fuel > 0), data)
        engines.abi_of(module)  # what is no plugin is refused now, and never cached
        return bytes(module.serialize())
    except WasmtimeError as error:
        code, words = status.of_error(error, "wasm_invalid").args
        raise GuestFailed(code, f"expected a module that can be compiled, found: {words}") from None
