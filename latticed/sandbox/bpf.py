"""A compiler for seccomp programs: which calls are allowed, which get an errno, which end the process.

Rules allow calls by their arguments. The program compares numbers only, and is for one architecture.
Source: Documentation/userspace-api/seccomp_filter.rst, struct seccomp_data.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from latticed.sandbox.syscalls import Machine

# Actions from linux/seccomp.h (SECCOMP_RET_*); an errno is or-ed into the lower half of ERRNO.
ALLOW: Final = 0x7FFF0000
KILL_PROCESS: Final = 0x80000000
ERRNO: Final = 0x00050000
WORD: Final = 0xFFFFFFFF
X32_BIT: Final = 0x40000000  # __X32_SYSCALL_BIT: set in the numbers of x32 calls, whose architecture is x86_64's

_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06  # BPF_LD|W|ABS, BPF_ALU|AND|K, BPF_RET|K
_EQUAL, _AT_LEAST, _ALWAYS = 0x15, 0x35, 0x05  # BPF_JMP|K with JEQ, JGE, JA
_DIFFER, _KEEP, _JOIN = 0xA4, 0x07, 0x4C  # BPF_ALU|XOR|K, BPF_MISC|TAX, BPF_ALU|OR|X
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_FARTHEST: Final = 255  # jump distances are bytes (struct sock_filter)

Value = int | str
"""A 32-bit constant, or the name of one that the stub fills in when it loads the program (`own_pid`)."""


@dataclass(frozen=True, slots=True)
class Argument:
    """A test of one argument of a call: (`argument` & `mask`) is one of `values`.

    `argument` is its position, from 0; 32 bits of it are compared, the upper half of the register with `high`. The
    kernel ignores the upper half of `int` arguments, so the filter must ignore it too: comparing it would refuse legal
    calls, and a denied value could be passed with other upper bits.
    """

    argument: int
    values: tuple[Value, ...]
    mask: int = WORD
    high: bool = False


@dataclass(frozen=True, slots=True)
class Secret:
    """A test of all 64 bits of one argument: they are `low` and `high`. It takes as long whichever of them differ, or
    the time of a refusal would tell one half of the number without the other.
    """

    argument: int
    low: Value
    high: Value


Test = Argument | Secret
"""What a call is tested by."""


@dataclass(frozen=True, slots=True)
class SyscallRule:
    """A call that is allowed when all tests of at least one of `ways` hold; else its errno is `otherwise`."""

    ways: tuple[tuple[Test, ...], ...]
    otherwise: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BpfProgram:
    """A seccomp program. `code` is an array of struct sock_filter; `blanks` are (instruction, name) of the constants
    that the stub fills in.
    """

    code: bytes
    blanks: tuple[tuple[int, str], ...]


Instruction = tuple[int, int, int, Value]
"""(operation, distance when the test holds, distance when not, constant); 0 goes on with the next instruction."""
Part = tuple[int, list[Instruction]]
"""Call numbers from this one on, up to the next part, and the instructions that answer them."""


def compile_program(
    machine: Machine,
    *,
    allowed: Iterable[str],
    rules: Mapping[str, SyscallRule],
    errnos: Mapping[str, int],
    default: int,
) -> BpfProgram:
    """Compile the program for `machine`; calls that it does not have are left out.

    In this order: a foreign architecture or an x32 number kills the process; a call in `rules` is tested; one in
    `allowed` is allowed, even if it is in `errnos` too; one in `errnos` fails with that errno; any other call fails
    with the errno `default`. ValueError when a rule is too long for a jump.
    """
    known = machine.numbers
    returns = {known[name]: ERRNO | errno for name, errno in errnos.items() if name in known}
    returns |= {known[name]: ALLOW for name in allowed if name in known}
    # The architecture first: a number means another call elsewhere (i386 calls are open to 64-bit programs, int 0x80).
    code: list[Instruction] = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, machine.audit), (_RETURN, 0, 0, KILL_PROCESS)]
    code.append((_LOAD, 0, 0, _NUMBER))
    if machine.x32:
        code += [(_AT_LEAST, 0, 1, X32_BIT), (_RETURN, 0, 0, KILL_PROCESS)]
    blocks: dict[int, list[Instruction]] = {number: [(_RETURN, 0, 0, action)] for number, action in returns.items()}
    # Each path through a rule must end with a return: it loads arguments over the number.
    blocks |= {known[name]: _rule(rule) for name, rule in rules.items() if name in known}
    code += _search(_parts(blocks, [(_RETURN, 0, 0, ERRNO | default)]))
    return _assemble(code)


def _rule(rule: SyscallRule) -> list[Instruction]:
    """The instructions of one rule: its ways in turn, then the errno."""
    block: list[Instruction] = []
    for way in rule.ways:
        block += _way(way)
    return [*block, (_RETURN, 0, 0, ERRNO | rule.otherwise)]


def _way(way: tuple[Test, ...]) -> list[Instruction]:
    """Instructions that allow the call when all tests hold, else jump behind themselves.

    Built from the end, as each test must know how many instructions to skip.
    """
    block: list[Instruction] = [(_RETURN, 0, 0, ALLOW)]
    for test in reversed(way):
        past = len(block)
        made = _secret(test, past=past) if isinstance(test, Secret) else _argument(test, past=past)
        block = [*made, *block]
    return block


def _argument(test: Argument, *, past: int) -> list[Instruction]:
    """The instructions of one test: they go on to the next one when it holds, and skip `past` more when it does not."""
    offset = _ARGUMENTS + 8 * test.argument + (4 if test.high else 0)  # both machines are little-endian
    block: list[Instruction] = [(_LOAD, 0, 0, offset)]
    if test.mask != WORD:
        block.append((_AND, 0, 0, test.mask))
    # A match jumps over the remaining comparisons; only the last one may fail.
    for position, value in enumerate(test.values):
        left = len(test.values) - 1 - position
        block.append((_EQUAL, left, 0 if left else past, value))
    return block


def _secret(test: Secret, *, past: int) -> list[Instruction]:
    """As `_argument`."""
    offset = _ARGUMENTS + 8 * test.argument
    return [
        (_LOAD, 0, 0, offset),
        (_DIFFER, 0, 0, test.low),
        (_KEEP, 0, 0, 0),
        (_LOAD, 0, 0, offset + 4),
        (_DIFFER, 0, 0, test.high),
        (_JOIN, 0, 0, 0),
        (_EQUAL, 0, past, 0),
    ]


def _parts(blocks: Mapping[int, list[Instruction]], otherwise: list[Instruction]) -> list[Part]:
    """All numbers in ascending parts with the same block; those that have none get `otherwise`."""
    found: list[Part] = [(0, otherwise)]
    for number in sorted(blocks):
        # What `otherwise` is for ends before it, and begins again behind it.
        for low, block in ((number, blocks[number]), (number + 1, otherwise)):
            if found[-1][0] == low:
                found.pop()
            if not found or found[-1][1] != block:
                found.append((low, block))
    return found


def _search(parts: list[Part]) -> list[Instruction]:
    """The block of the part that the number is in, found by halves.

    When a filter is loaded the kernel runs it for each number there is, to remember which are always allowed: 450 times
    through a chain of a hundred ranges was a third of a millisecond of each start.
    """
    if len(parts) == 1:
        return parts[0][1]
    middle = len(parts) // 2
    low, lower, upper = parts[middle][0], _search(parts[:middle]), _search(parts[middle:])
    if len(lower) <= _FARTHEST:
        return [(_AT_LEAST, len(lower), 0, low), *lower, *upper]
    return [(_AT_LEAST, 0, 1, low), (_ALWAYS, 0, 0, len(lower)), *lower, *upper]


def _assemble(code: list[Instruction]) -> BpfProgram:
    """The instructions as bytes, with 0 for each constant that the stub fills in. ValueError when a jump is too far."""
    blanks = tuple((index, value) for index, (_, _, _, value) in enumerate(code) if isinstance(value, str))
    words = []
    # struct sock_filter (linux/filter.h): code, two distances of 8 bits, a constant of 32.
    for operation, taken, missed, value in code:
        if max(taken, missed) > _FARTHEST:
            raise ValueError(f"expected jumps of at most {_FARTHEST} instructions, found {max(taken, missed)}")
        words.append(struct.pack("<HBBI", operation, taken, missed, 0 if isinstance(value, str) else value))
    return BpfProgram(code=b"".join(words), blanks=blanks)
