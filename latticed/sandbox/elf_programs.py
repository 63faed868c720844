"""Two programs of a few instructions as ELF executables: one for the probe, one for process 1 of a namespace."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from latticed.sandbox.syscalls import Machine

_ENTRY: Final = 0x400000  # the address it is loaded at, the usual one of programs with a fixed address
_EXITS_42: Final = {
    "x86_64": bytes.fromhex("bf2a000000 b83c000000 0f05"),  # mov edi, 42; mov eax, 60; syscall
    "aarch64": bytes.fromhex("400580d2 a80b80d2 010000d4"),  # mov x0, 42; mov x8, 93; svc 0
}
_REAPS: Final = {
    # All children are reaped before each wait for the signal: ends in quick succession make one SIGCHLD (signal(7)).
    # push SIGCHLD's bit
    # 1: wait4(-1, NULL, WNOHANG|__WALL, NULL); again while it returns a pid
    # rt_sigtimedwait(rsp, NULL, NULL, 8); jmp 1b
    "x86_64": bytes.fromhex(
        "6800000100"
        "6aff5f 31f6 ba01000040 4531d2 b83d000000 0f05 85c0 7fe8"
        "4889e7 31f6 31d2 6a08415a b880000000 0f05 ebd4"
    ),
    "aarch64": bytes.fromhex(
        "ff4300d1 2900a0d2 e90300f9"
        "00008092 010080d2 220080d2 0200a8f2 030080d2 882080d2 010000d4 1f0000f1 0cffff54"
        "e0030091 010080d2 020080d2 030180d2 281180d2 010000d4 f1ffff17"
    ),
}


def exits_42(machine: Machine) -> bytes:
    """A program for `machine` that exits with 42: what the probe executes."""
    return _elf(machine, _EXITS_42[machine.name])


def reaps(machine: Machine) -> bytes:
    """A program for `machine` that reaps all its children and never ends; SIGCHLD must be blocked when it starts.

    It makes only the system calls wait4 and rt_sigtimedwait, and takes two pages of memory.
    """
    return _elf(machine, _REAPS[machine.name])


def _elf(machine: Machine, code: bytes) -> bytes:
    """An ELF file of a header (64 bytes), one segment (56) and the instructions (elf(5))."""
    size = 64 + 56 + len(code)
    identity = b"\x7fELF\x02\x01\x01" + bytes(9)
    # Type 2: ET_EXEC. The code follows both headers, so its entry is 120 bytes into the segment.
    header = struct.pack("<HHIQQQIHHHHHH", 2, machine.elf, 1, _ENTRY + 120, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    # Type 1: PT_LOAD, the whole file; flags 5: read and execute. It has no data, and the kernel gives it a stack.
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _ENTRY, _ENTRY, size, size, 0x1000)
    return identity + header + segment + code
