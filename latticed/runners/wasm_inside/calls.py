"""The ABI for small modules: their export `invoke` is called for each invocation, in a fresh instance.

The module need not know the protocol: it gets an action and a payload as JSON, calls the host through
`latticed.call`, and returns JSON. Its memory does not survive the call; state goes into kv.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final, NoReturn

from wasmtime import Func, FuncType, Linker, Memory, Store, Trap, ValType, WasmtimeError

from latticed.runners.wasm_inside import engine as engines
from latticed.runners.wasm_inside import status
from latticed.runners.wasm_inside.guest import WORD, Guest, GuestFault
from latticed.runners.wasm_inside.status import Exited, GuestFailed
from latticed.runners.wasm_inside.wasi import Wasi

if TYPE_CHECKING:
    from collections.abc import Callable

    from wasmtime import Caller, Engine, InstancePre, Module

    from latticed.runners.wasm_inside.guest import Context
    from latticed.runners.wasm_inside.streams import Streams

    Ask = Callable[[str, dict[str, Any]], dict[str, Any]]
    """One host call: `{"result": …}` or `{"error": {"code", "message"}}`."""

MOST_BYTES: Final = 1 << 20
"""The longest answer and the longest request taken from a module, in bytes: as long as a line of the protocol."""


class _KnownType:
    """The type of an export, in place of `Func.type`, which wasmtime asks for at each call and makes anew: an eighth of
    the call's time. `engine.abi_of` has checked that the export has this type.
    """

    def __init__(self, params: list[ValType], results: list[ValType]) -> None:
        self.params, self.results = params, results

    def __call__(self, _: Any) -> _KnownType:
        return self


_ALLOC: Final = _KnownType([ValType.i32()], [ValType.i32()])
_INVOKE: Final = _KnownType([ValType.i32(), ValType.i32()], [ValType.i64()])


class GuestCalls:
    """Calls of one module. `fresh(store)` puts the limits of one call on a store; `ask(method, params)` carries out a
    host call.

    `ready`: an instance was started successfully.
    """

    def __init__(
        self, module: Module, engine: Engine, *, streams: Streams, fresh: Callable[[Store], None], ask: Ask
    ) -> None:
        self._engine = engine
        self._fresh = fresh
        self._ask = ask
        self._streams = streams
        self._guest = Guest()
        self._alloc: Func | None = None
        self.ready = False
        self._starts = any(export.name == engines.INITIALIZE for export in module.exports)
        self._linker = Linker(engine)
        Wasi(self._guest, streams, ("plugin",)).define(self._linker, module)
        kind = FuncType([ValType.i32(), ValType.i32()], [ValType.i64()])
        self._linker.define_func(engines.HOST, "call", kind, self._call, access_caller=True)
        # Imports are resolved once here: each call needs a new instance.
        self._instance: InstancePre = self._linker.instantiate_pre(module)

    def try_out(self) -> None:
        """Start an instance and drop it; GuestFailed when it cannot be started."""
        with Store(self._engine) as store:
            self._begin(store)
        self.ready = True

    def invoke(self, request: dict[str, Any]) -> dict[str, Any]:
        """The module's answer to `request` (`{"action", "payload", "config"}`), from a fresh instance.

        ValueError when that is no JSON object or too long, GuestFailed when the module failed.
        """
        with Store(self._engine) as store:
            invoke = self._begin(store)
            # Nothing of the module's memory is used once the store is closed: `_take` copies.
            try:
                answer = invoke(store, *self._put(store, json.dumps(request).encode()))
                data = self._take(store, answer)
            except Trap as trap:
                raise status.of_trap(trap) from None
            except GuestFault as fault:
                raise GuestFailed("wasm_trap", str(fault)) from None
        found = read_json(data)
        if not isinstance(found, dict):
            raise ValueError("it is no object")  # noqa: TRY004 - handled like invalid JSON
        return found

    def _begin(self, store: Store) -> Func:
        """Start an instance in `store` and return its `invoke`; GuestFailed when it cannot be started."""
        self._fresh(store)
        self._guest.detach()  # the memory of the last call is gone
        self._streams.reopen()  # that one's calls of fd_close were about itself
        try:
            exports = self._instance.instantiate(store).exports(store)
            memory, alloc, invoke = exports["memory"], exports["alloc"], exports["invoke"]
            assert isinstance(memory, Memory)  # noqa: S101 - `engine.abi_of` checked them at compile time
            assert isinstance(alloc, Func)  # noqa: S101
            assert isinstance(invoke, Func)  # noqa: S101
            alloc.type, invoke.type = _ALLOC, _INVOKE  # type: ignore[assignment,method-assign]
            self._guest.attach(memory)
            self._alloc = alloc
            if self._starts:
                start = exports[engines.INITIALIZE]
                assert isinstance(start, Func)  # noqa: S101
                start(store)
        except Trap as trap:
            raise status.of_trap(trap) from None
        except Exited as exited:
            raise GuestFailed("exited", f"it exited {exited.args[0]} before it was asked anything") from None
        except WasmtimeError as error:
            raise status.of_error(error, "wasm_invalid") from None
        return invoke

    def _put(self, context: Context, data: bytes) -> tuple[int, int]:
        """Write `data` to memory that the module's `alloc` gives; (address, length). GuestFault for a bad address."""
        # Taken away meanwhile: an `alloc` that makes a host call would be called again for its answer, without end.
        alloc, self._alloc = self._alloc, None
        if alloc is None:
            raise GuestFailed("wasm_trap", "expected alloc to make no host call, found that it does")
        at = alloc(context, len(data))
        self._alloc = alloc
        self._guest.write(context, at, data)
        return at, len(data)

    def _take(self, context: Context, packed: int) -> bytes:
        """The bytes that the module's `invoke` returned, as address << 32 | length. ValueError when too many."""
        at, size = packed >> 32 & WORD, packed & WORD
        if size > MOST_BYTES:
            raise ValueError(f"expected at most {MOST_BYTES} bytes, found {size}")
        return self._guest.read(context, at, size)

    def _call(self, caller: Caller, at: int, size: int) -> int:
        """latticed.call(address, length of a request) -> address << 32 | length of the answer."""
        answer = self._answer(caller, at, size)
        try:
            start, length = self._put(caller, json.dumps(answer).encode())
        except GuestFault as fault:
            raise GuestFailed("wasm_trap", str(fault)) from None
        packed = (start & WORD) << 32 | length
        # wasmtime takes an i64 as a signed number.
        return packed - (1 << 64) if packed >> 63 else packed

    def _answer(self, caller: Caller, at: int, size: int) -> dict[str, Any]:
        """The answer to one host call, as the module gets it; a malformed request is answered, not raised."""
        if size & WORD > MOST_BYTES:
            return _refusal(f"expected at most {MOST_BYTES} bytes")
        try:
            request = read_json(self._guest.read(caller, at, size))
        except GuestFault as fault:
            raise GuestFailed("wasm_trap", str(fault)) from None
        except (ValueError, RecursionError):
            return _refusal("expected a request as JSON")
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            return _refusal("expected a request with a method")
        params = request.get("params", {})
        return self._ask(request["method"], params) if isinstance(params, dict) else _refusal("expected params {}")


def read_json(data: bytes) -> Any:
    """Decode JSON in UTF-8; ValueError for any value that cannot be passed on to the host.

    Stricter than `json.loads`, which accepts UTF-16, UTF-32, NaN, infinite numbers and lone surrogates.
    """
    value = _DECODER.decode(data.decode("utf-8"))
    if b"\\u" in data:  # only an escape can make a lone surrogate, and most texts have none
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def _finite(text: str) -> float:
    """A number with a fraction or an exponent; ValueError for 1e400, which no double can carry."""
    if math.isinf(number := float(text)):
        raise ValueError(f"expected a finite number, found {text[:20]}")
    return number


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"expected JSON, found {text}")


_DECODER: Final = json.JSONDecoder(parse_float=_finite, parse_constant=_no_constant)


def _refusal(message: str) -> dict[str, Any]:
    """The answer to a malformed request of the module, as the host answers bad parameters."""
    return {"error": {"code": "bad_params", "message": message}}
