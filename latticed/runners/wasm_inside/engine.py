"""The configuration of wasmtime, the same for compiling and running, and the check whether a module is a plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from wasmtime import Config, Engine, FuncType, MemoryType

from latticed.runners.wasm_inside import wasi
from latticed.runners.wasm_inside.status import GuestFailed

if TYPE_CHECKING:
    from wasmtime import ExportType, Module

    Abi = Literal["command", "calls"]

MAGIC: Final = b"\0asm"
VERSION: Final = b"\x01\0\0\0"
STACK_BYTES: Final = 512 << 10
"""The stack of a module; beyond it a call traps (`stack_overflow`)."""
HOST: Final = "latticed"
CALL: Final = ("i32 i32", "i64")
"""The one import that is not WASI, `latticed.call`, and its type (docs/write/wasm.md)."""
_CALLS_EXPORTS: Final = {"alloc": ("i32", "i32"), "invoke": ("i32 i32", "i64")}
INITIALIZE: Final = "_initialize"
"""An export that WASI reactors have: `calls` calls it in each new instance, before anything else."""
_OFF: Final = (  # proposals that no plugin needs; they take memory that no limit of a store counts
    "threads memory64 multi_memory gc function_references exceptions custom_page_sizes stack_switching component_model"
    " relaxed_simd wide_arithmetic"
).split()


def make(*, fuel: bool) -> Engine:
    """Make an engine; compiled code loads only into one with the same configuration.

    `fuel`: count the fuel that a module uses, which makes it slower.
    """
    config = Config()
    config.epoch_interruption = True  # how `Budget` ends a module that computes for too long
    config.consume_fuel = fuel
    config.parallel_compilation = False  # the compiling child may have a few tasks only
    config.max_wasm_stack = STACK_BYTES
    for name in _OFF:
        setattr(config, f"wasm_{name}", False)
    return Engine(config)


def check_bytes(data: bytes) -> None:
    """GuestFailed("wasm_invalid") without the magic number; wasmtime would also compile the text format."""
    if data[:4] != MAGIC or len(data) < 8:
        raise GuestFailed("wasm_invalid", f"expected a WebAssembly module, found bytes that begin with {data[:8]!r}")
    if data[4:8] != VERSION:
        raise GuestFailed("wasm_invalid", "expected a core module of version 1, found a component or another version")


def abi_of(module: Module) -> Abi:
    """How to call the module: `command` (a WASI command) or `calls` (its exports `alloc` and `invoke`); see
    docs/write/wasm.md.

    GuestFailed when it is no plugin: `wasm_import`, it imports something that is not offered; `wasm_invalid`, it
    exports neither ABI, or what it calls `_initialize` cannot be called.
    """
    exports = {export.name: export for export in module.exports}
    calls = all(_signature(exports.get(name)) == expected for name, expected in _CALLS_EXPORTS.items())
    calls = calls and "memory" in exports and isinstance(exports["memory"].type, MemoryType)
    # Refused here, with the name, and not when the module is started.
    for one in module.imports:
        given = wasi.SIGNATURES.get(one.name or "") if one.module == wasi.MODULE else None
        if calls and (one.module, one.name) == (HOST, "call"):
            given = CALL
        if given is None:
            raise GuestFailed(
                "wasm_import", f"expected imports of {_offered(calls)} only, found {one.module}.{one.name}"
            )
        if not isinstance(one.type, FuncType) or signature(one.type) != given:
            raise GuestFailed(
                "wasm_import", f"expected {one.module}.{one.name} to be a function {given}, found another type"
            )
    if calls:
        if INITIALIZE in exports and _signature(exports[INITIALIZE]) != ("", ""):
            raise GuestFailed("wasm_invalid", f"expected {INITIALIZE} to be a function () -> (), found something else")
        return "calls"
    if _signature(exports.get("_start")) == ("", ""):
        return "command"
    expected = "_start (a WASI command), or memory, alloc(i32) -> i32 and invoke(i32, i32) -> i64"
    raise GuestFailed("wasm_invalid", f"expected the module to export {expected}; found {_names(exports)}")


def signature(kind: FuncType) -> tuple[str, str]:
    """Parameters and results by name: `("i32 i32", "i64")`."""
    return " ".join(map(str, kind.params)), " ".join(map(str, kind.results))


def _signature(export: ExportType | None) -> tuple[str, str] | None:
    """(parameters, results) of an exported function, as `signature` gives them; None when there is no such export or it
    is no function.
    """
    kind = export.type if export is not None else None
    return signature(kind) if isinstance(kind, FuncType) else None


def _offered(calls: bool) -> str:  # noqa: FBT001 - an adjective
    return f"{wasi.MODULE} and {HOST}.call" if calls else wasi.MODULE


def _names(exports: dict[str, ExportType]) -> str:
    return ", ".join(sorted(exports)[:8]) or "no exports"
