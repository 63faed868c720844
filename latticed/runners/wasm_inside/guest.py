"""Bounds-checked access to a module's memory: every address comes from the module, and is untrusted."""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING

from wasmtime import Caller, Memory

if TYPE_CHECKING:
    from wasmtime import Store

    Context = Store | Caller

WORD = 0xFFFFFFFF  # a mask: wasmtime passes i32 as signed numbers


class GuestFault(Exception):
    """The address range is not within the module's memory."""


class Guest:
    """The memory that a module exports, by addresses that the module gives: 32-bit numbers, signed or not.

    It is looked up at the first use: WASI may need it while the module is starting, before `attach`.
    """

    def __init__(self) -> None:
        self._memory: Memory | None = None

    def attach(self, memory: Memory) -> None:
        """Use `memory` from now on."""
        self._memory = memory

    def detach(self) -> None:
        """Forget the memory; the next use looks it up again."""
        self._memory = None

    def size(self, context: Context) -> int:
        """The size of the memory in bytes; 0 while it is not known."""
        return self._memory.data_len(context) if self._memory is not None else 0

    def view(self, context: Context, at: int, size: int) -> memoryview:
        """`size` bytes at the address `at`, valid until the module runs again; GuestFault when out of bounds."""
        size &= WORD
        if not (place := self._place(context, at, size)):
            return memoryview(b"")
        return memoryview((ctypes.c_ubyte * size).from_address(place)).cast("B")

    def read(self, context: Context, at: int, size: int) -> bytes:
        """A copy of `size` bytes at the address `at`; GuestFault when out of bounds."""
        # Not `ctypes.string_at`, which takes a size of 2 GiB for a negative one.
        return bytes(self.view(context, at, size))

    def write(self, context: Context, at: int, data: bytes) -> None:
        """Write `data` at the address `at`; GuestFault when out of bounds."""
        if data:
            ctypes.memmove(self._place(context, at, len(data)), data, len(data))

    def _place(self, context: Context, at: int, size: int) -> int:
        """Where in this process the `size` bytes at the address `at` are, 0 for none; GuestFault when out of bounds."""
        memory = self._memory or self._find(context)
        at &= WORD  # wasmtime passes i32 as signed numbers; addresses are unsigned
        if at + size > memory.data_len(context):
            raise GuestFault(f"expected {size} bytes at {at} to be in the module's memory")
        # Looked up each time: when the module grows its memory, that may move.
        return ctypes.addressof(memory.data_ptr(context).contents) + at if size else 0

    def write_u32(self, context: Context, at: int, value: int) -> None:
        """Write an unsigned 32-bit number, little-endian as everything in a module's memory; GuestFault when out of
        bounds.
        """
        self.write(context, at, struct.pack("<I", value))

    def write_u64(self, context: Context, at: int, value: int) -> None:
        """Write an unsigned 64-bit number, little-endian; GuestFault when out of bounds."""
        self.write(context, at, struct.pack("<Q", value))

    def _find(self, context: Context) -> Memory:
        """The exported memory of the calling module; GuestFault when it exports none."""
        found = context.get("memory") if isinstance(context, Caller) else None
        if not isinstance(found, Memory):
            raise GuestFault("expected the module to export its memory")
        self._memory = found
        return found
