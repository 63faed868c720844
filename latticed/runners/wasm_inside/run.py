"""The program that runs one compiled module until the host or the module ends it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from wasmtime import Func, Linker, Memory, Module, Store, Trap, WasmtimeError

from latticed.runners.wasm_inside import engine as engines
from latticed.runners.wasm_inside import status, streams
from latticed.runners.wasm_inside.budget import Budget
from latticed.runners.wasm_inside.calls import GuestCalls
from latticed.runners.wasm_inside.guest import Guest
from latticed.runners.wasm_inside.host_session import HostGone, HostSession
from latticed.runners.wasm_inside.status import Exited, GuestFailed
from latticed.runners.wasm_inside.streams import Streams
from latticed.runners.wasm_inside.wasi import Wasi

if TYPE_CHECKING:
    from wasmtime import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """Orders of the daemon: `fuel` per message, 0 for no limit; `start_s` seconds of computing to get ready,
    `message_s` for each message; `memory_bytes` of linear memory, `table_elements` in each table; `arguments` for a
    WASI command.
    """

    fuel: int
    start_s: float
    message_s: float
    memory_bytes: int
    table_elements: int
    arguments: tuple[str, ...]


class GuestHost:
    """What both ABIs share: the engine, the budget of computing time, and the limits of a store."""

    def __init__(self, orders: Orders, engine: Engine) -> None:
        self.orders = orders
        self.engine = engine
        self.budget = Budget(engine.increment_epoch)

    def limit(self, store: Store) -> None:
        """Set a store's limits on memory, tables, instances and fuel; the budget limits its time."""
        orders = self.orders
        store.set_limits(
            memory_size=orders.memory_bytes, table_elements=orders.table_elements, instances=1, tables=4, memories=1
        )
        store.set_epoch_deadline(1)  # the one tick that the budget gives
        if orders.fuel:
            store.set_fuel(orders.fuel)


def main(text: str) -> NoReturn:
    """Run the compiled module at descriptor INPUT by the orders `text` (the fields of Orders as JSON); never returns.

    The exit status is the module's own, 0 when the host ended the session, or EXIT_STATUS with a report on STATUS.
    """
    try:
        host, module = _load(text)
        if engines.abi_of(module) == "command":
            _command(host, module)
        _calls(host, module)
    except HostGone:
        os._exit(0)
    except Exited as exited:
        os._exit(min(exited.args[0], 255))
    except GuestFailed as failed:
        status.end(*failed.args)
    except MemoryError:
        status.end("out_of_memory", "expected the module and its host to fit the memory limit, found it used up")
    except OSError as error:  # on a pipe: the daemon has exited or is stopping this child
        status.end("wasm_host", f"the host of the module failed: {error.strerror}")


def _load(text: str) -> tuple[GuestHost, Module]:
    """The orders and the compiled module; GuestFailed("wasm_code") when the code does not load."""
    orders = Orders(**{**json.loads(text), "arguments": tuple(json.loads(text)["arguments"])})
    engine = engines.make(fuel=orders.fuel > 0)
    # Loading compiled code is executing it: this was written by the compiling child, or verified by `wasm_cache`. What
    # remains is that it may be for another engine.
    try:
        return GuestHost(orders, engine), Module.deserialize(engine, status.read_all(status.INPUT))
    except WasmtimeError as error:
        raise GuestFailed("wasm_code", f"expected code that was compiled for this engine: {error}") from None


def _command(host: GuestHost, module: Module) -> NoReturn:
    """Run a WASI command, which speaks the protocol itself on its standard streams."""
    store, guest, orders = Store(host.engine), Guest(), host.orders

    def renew() -> None:
        """A message begins: time and fuel are those of one message again."""
        host.budget.renew(orders.message_s)
        if orders.fuel:
            store.set_fuel(orders.fuel)

    linker = Linker(host.engine)
    Wasi(guest, Streams(host.budget, renew, streams.ALL), orders.arguments).define(linker, module)
    host.limit(store)
    # Before instantiating: a module's start function computes, too.
    host.budget.renew(orders.start_s)
    try:
        exports = linker.instantiate(store, module).exports(store)
        memory, start = exports.get("memory"), exports["_start"]
        if isinstance(memory, Memory):
            guest.attach(memory)
        assert isinstance(start, Func)  # noqa: S101 - looked at before
        start(store)
    except Trap as trap:
        raise _in_memory(status.of_trap(trap), guest.size(store), orders.memory_bytes) from None
    except WasmtimeError as error:
        raise status.of_error(error, "wasm_invalid") from None
    raise Exited(0)


def _calls(host: GuestHost, module: Module) -> NoReturn:
    """Run a small module; `HostSession` speaks the protocol for it."""
    session = HostSession(host.budget)

    def fresh(store: Store) -> None:
        """A store for one call: until the first instance was started, the time to get ready counts."""
        host.limit(store)
        host.budget.renew(host.orders.message_s if calls.ready else host.orders.start_s)

    log = Streams(host.budget, lambda: None, streams.LOG_ALONE)  # 0 and 1 carry the host session
    calls = GuestCalls(module, host.engine, streams=log, fresh=fresh, ask=session.ask)
    session.serve(calls)


def _in_memory(failed: GuestFailed, used_bytes: int, most_bytes: int) -> GuestFailed:
    """`failed`, for a trap with the memory in use added to its message.

    A module that runs out of memory traps like one with a fault: by these numbers its author can see which it was.
    """
    code, message = failed.args
    if code != "wasm_trap":
        return failed
    return GuestFailed(code, f"{message} (memory in use: {used_bytes >> 10} of {most_bytes >> 10} KiB)")
