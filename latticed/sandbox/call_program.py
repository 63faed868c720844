"""Lists of system calls as ELF executables: a few instructions make them one after the other.

A list cannot compute: a call has constants and results of earlier calls as arguments, and says where to go on by the
sign of its result. Whoever starts such a program needs no interpreter in the new process, and no file: it is executed
from memory, at an address that is chosen once for each daemon.
"""

from __future__ import annotations

import secrets
import struct
from typing import TYPE_CHECKING, Any, Final

from latticed.kit.value import Value
from latticed.sandbox import stub_calls

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from latticed.sandbox.syscalls import Machine

# Assembled from call_program.x86_64.s and call_program.aarch64.s, which say what each instruction is for. Behind them
# lie 64 bits, the address of the data, and then 32: where in it the first call is. In the data a call is its number
# (-1: none; the result is what lies at the address that its first argument is), and the places of: its six arguments,
# its result, its step, the calls to go on with after an error, 0 and more than 0; the last 64 bits are the errors
# (bits by errno) that do not end the program. The others are reported to STATUS, with the number of the step.
_CODE: Final = {
    "x86_64": bytes.fromhex(
        "4c8b3d9e000000 8b1da0000000 4c01fb"
        "8b4304 498b3c07 8b4308 498b3407 8b430c 498b1407 8b4310 4d8b1407 8b4314 4d8b0407 8b4318 4d8b0c07"
        "8b03 85c0 781d 0f05 8b4b1c 4189040f 4885c0 7814 7405 8b5b2c eb03 8b5b28 4c01fb ebb3"
        "486307 ebe0 48f7d8 4883f83f 770f 488b4b30 480fa3c1 7305 8b5b24 ebde"
        "49894708 8b4b20 41894f04 b801000000 bf65000000 4c89fe ba10000000 0f05 b8e7000000 bf7f000000 0f05"
    ),
    "aarch64": bytes.fromhex(
        "13060058 34060018 9402138b"
        "890640b9 606a69f8 890a40b9 616a69f8 890e40b9 626a69f8 891240b9 636a69f8 891640b9 646a69f8 891a40b9 656a69f8"
        "880240b9 6801f837 010000d4 891e40b9 606a29b8 2001f8b7 600000b4 892e40b9 02000014 892a40b9 7402098b e9ffff17"
        "000080b9 f6ffff17 e00300cb 1ffc00f1 c8000054 891a40f9 2925c09a 69000036 892640b9 f5ffff17"
        "600600f9 892240b9 690600b9 a00c80d2 e10313aa 020280d2 080880d2 010000d4 e00f80d2 c80b80d2 010000d4"
    ),
}
_CALL: Final = struct.Struct("<i6IIIIIIQ")
_RECORD: Final = struct.Struct("<IIq")
# Kinds of records on STATUS, the first word of each; the next is the step's number, the last an errno or a pid.
FAILED, PID, INIT = 1, 2, 3
ANY: Final = (1 << 64) - 1
"""Errors that may be: every one."""
# Places in the data, at whose beginning the record of a failure is: of a result that nobody needs, and of the rest.
_UNUSED, _FREE = 16, 24
# Code and data are in pages of their own, also where a page has 64 KiB; each is as far into its page as into the file.
_DATA_AT: Final = 0x1000
_APART: Final = 0x10000
# Neither where the kernel places what it maps, nor where programs of a fixed address usually are.
_ADDRESS: Final = (1 << 32) + (secrets.randbits(21) << 16)


class Cell(Value, frozen=True, kw_only=True):
    """A word of 64 bits in the data at `place`: an argument that is only known later, or a result, of 32 bits.

    `address`: where it is in the program's memory.
    """

    place: int

    @property
    def address(self) -> int:
        """Its address."""
        return _ADDRESS + _APART + _DATA_AT + self.place

    def after(self, size: int) -> Cell:
        """What lies so many bytes behind it."""
        return Cell(place=self.place + size)


Argument = int | bytes | Cell
"""A number; a text, which is passed by its address; the content of a cell."""


class CallProgram(Value, frozen=True, kw_only=True):
    """A program that is complete but for its `parameters`: name -> the place of its cell. `steps` by their numbers."""

    image: bytes
    first: int
    parameters: Mapping[str, int]
    steps: tuple[str, ...]

    def elf(self, machine: Machine, given: Mapping[str, Any]) -> bytes:
        """The executable for `machine`. `given`: each parameter's number, text, or list of texts (as argv of
        execve(2)); texts without a zero byte.
        """
        image = bytearray(self.image)
        for name, place in self.parameters.items():
            value = given[name]
            if isinstance(value, list):
                value = _words(image, value)
            elif isinstance(value, bytes):
                value = _text(image, value)
            struct.pack_into("<q", image, place, value)
        code = _CODE[machine.name] + struct.pack("<QI", Cell(place=0).address, self.first)
        identity = b"\x7fELF\x02\x01\x01" + bytes(9)
        heads = 64 + 3 * 56
        # Type 2: ET_EXEC (elf(5)).
        header = struct.pack("<HHIQQQIHHHHHH", 2, machine.elf, 1, _ADDRESS + heads, 64, 0, 0, 64, 56, 3, 64, 0, 0)
        segments = (
            (1, 5, 0, _ADDRESS, heads + len(code)),  # PT_LOAD, read and execute
            (1, 6, _DATA_AT, Cell(place=0).address, len(image)),  # PT_LOAD, read and write
            (0x6474E551, 6, 0, 0, 0),  # PT_GNU_STACK: not executable
        )
        table = b"".join(
            struct.pack("<IIQQQQQQ", kind, flags, offset, address, address, size, size, _APART)
            for kind, flags, offset, address, size in segments
        )
        return (identity + header + table + code).ljust(_DATA_AT, b"\0") + image

    def report(self, received: bytes) -> list[tuple[int, str, int]]:
        """The records in `received`, what was read of STATUS: (kind, step, errno or pid)."""
        whole = len(received) - len(received) % _RECORD.size
        return [(kind, self.steps[step], value) for kind, step, value in _RECORD.iter_unpack(received[:whole])]


class Calls:
    """A list under construction. `begin` names the step that the next calls belong to."""

    def __init__(self, machine: Machine) -> None:
        self._numbers = machine.numbers
        self._image = bytearray(_RECORD.pack(FAILED, 0, 0) + bytes(_FREE - _UNUSED))
        self._constants: dict[int | bytes, Cell] = {}
        self._parameters: dict[str, Cell] = {}
        self._steps: dict[str, int] = {}
        self._step = 0
        self._calls: list[tuple[int, tuple[int, ...], int, int, tuple[int | None, ...], int]] = []
        self._labels: list[int] = []

    def begin(self, step: str) -> None:
        """Name the step that follows: a failure is reported with this name."""
        self._step = self._steps.setdefault(step, len(self._steps))

    def label(self) -> int:
        """A name for a call to come, which `place` gives it."""
        self._labels.append(-1)
        return len(self._labels) - 1

    def place(self, label: int) -> None:
        """The next call is the one that `label` means."""
        self._labels[label] = len(self._calls)

    def room(self, content: bytes) -> Cell:
        """Memory of the program with this content, for calls to change."""
        self._image += bytes(-len(self._image) % 8)
        place = len(self._image)
        self._image += content.ljust(8, b"\0")
        return Cell(place=place)

    def record(self, kind: int) -> Cell:
        """Room for a record to be written to STATUS, whose value is stored 8 bytes into it."""
        return self.room(_RECORD.pack(kind, self._step, 0))

    def parameter(self, name: str) -> Cell:
        """The cell of a parameter: a number, or the address of a text or of a list of texts."""
        if name not in self._parameters:
            self._parameters[name] = self.room(b"")
        return self._parameters[name]

    def constant(self, value: int | bytes) -> Cell:
        """The cell of a number, or of the address of a text."""
        if value not in self._constants:
            number = value if isinstance(value, int) else _text(self._image, value)
            self._constants[value] = self.room(struct.pack("<Q", number & ANY))
        return self._constants[value]

    def words(self, texts: list[bytes]) -> Cell:
        """A cell with the address of a list of texts, as argv of execve(2)."""
        return self.constant(_words(self._image, texts))

    def call(
        self,
        name: str,
        *arguments: Argument,
        into: Cell | None = None,
        errors: int | Collection[int] = (),
        on_error: int | None = None,
        on_zero: int | None = None,
        on_more: int | None = None,
    ) -> None:
        """Make this system call; its result, 32 bits of it, goes `into` a cell.

        `errors` that may be (errnos, or ANY); all others end the program. `on_error`, `on_zero`, `on_more`: labels of
        the calls to go on with; None for the next one.
        """
        self._add(self._numbers[name], arguments, into, errors, (on_error, on_zero, on_more))

    def look(
        self,
        cell: Cell,
        *,
        into: Cell | None = None,
        on_error: int | None = None,
        on_zero: int | None = None,
        on_more: int | None = None,
    ) -> None:
        """Copy 32 bits of a cell `into` another, and go on by what they are: less than 0, 0, more. A word below -63
        ends the program.
        """
        self._add(-1, (self.constant(cell.address),), into, ANY, (on_error, on_zero, on_more))

    def fail(self, error: int) -> None:
        """End the program as a call does that fails with this errno."""
        word = self.room(struct.pack("<i", -error))
        self._add(-1, (self.constant(word.address),), None, (), (None, None, None))

    def _add(
        self,
        number: int,
        arguments: tuple[Argument, ...],
        into: Cell | None,
        errors: int | Collection[int],
        then: tuple[int | None, ...],
    ) -> None:
        cells = [one if isinstance(one, Cell) else self.constant(one) for one in (*arguments, *[0] * 6)[:6]]
        may_be = errors if isinstance(errors, int) else sum(1 << error for error in errors)
        places = tuple(cell.place for cell in cells)
        self._calls.append((number, places, into.place if into else _UNUSED, self._step, then, may_be))

    def program(self) -> CallProgram:
        """The program; its last call must be one that does not return."""
        first = self.room(b"").place
        del self._image[first:]
        for index, (number, places, into, step, then, errors) in enumerate(self._calls, 1):
            targets = (first + _CALL.size * (index if label is None else self._labels[label]) for label in then)
            self._image += _CALL.pack(number, *places, into, step, *targets, errors)
        return CallProgram(
            image=bytes(self._image),
            first=first,
            parameters={name: cell.place for name, cell in self._parameters.items()},
            steps=tuple(self._steps),
        )


def _text(image: bytearray, text: bytes) -> int:
    """Add a text to the data; its address."""
    return _placed(image, text + b"\0")


def _words(image: bytearray, texts: list[bytes]) -> int:
    """Add a list of texts to the data; the address of its addresses, which end with 0."""
    addresses = [_text(image, text) for text in texts]
    return _placed(image, struct.pack(f"<{len(texts) + 1}Q", *addresses, 0))


def _placed(image: bytearray, content: bytes) -> int:
    image += bytes(-len(image) % 8)
    place = len(image)
    image += content
    return Cell(place=place).address


assert stub_calls.STATUS == 0x65  # noqa: S101 - as the code has it
