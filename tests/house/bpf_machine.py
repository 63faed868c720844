"""An interpreter for classic BPF as seccomp uses it: what a filter returns, without the kernel."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from latticed.sandbox.bpf import BpfProgram


def answer(
    program: BpfProgram,
    *,
    arch: int,
    number: int,
    arguments: Sequence[int] = (),
    blanks: Mapping[str, int] | None = None,
) -> int:
    """The value that `program` returns for a call; `blanks` are what the stub would fill in."""
    return run(program, arch=arch, number=number, arguments=arguments, blanks=blanks)[0]


def run(
    program: BpfProgram,
    *,
    arch: int,
    number: int,
    arguments: Sequence[int] = (),
    blanks: Mapping[str, int] | None = None,
) -> tuple[int, int]:
    """As `answer`, and how many instructions that took."""
    words = [value & (2**64 - 1) for value in [*arguments, 0, 0, 0, 0, 0, 0][:6]]
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, arch, 0, *words)
    code = bytearray(program.code)
    for index, name in program.blanks:
        struct.pack_into("<I", code, 8 * index + 4, (blanks or {})[name])
    rows = list(struct.iter_unpack("<HBBI", bytes(code)))
    accumulator, kept, position, steps = 0, 0, 0, 0
    while True:
        operation, taken, missed, value = rows[position]
        position, steps = position + 1, steps + 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x54:
                accumulator &= value
            case 0xA4:
                accumulator ^= value
            case 0x07:
                kept = accumulator
            case 0x4C:
                accumulator |= kept
            case 0x06:
                return value, steps
            case 0x05:
                position += value
            case 0x15:
                position += taken if accumulator == value else missed
            case 0x35:
                position += taken if accumulator >= value else missed
            case _:
                raise ValueError(f"unknown instruction {operation:#x}")
