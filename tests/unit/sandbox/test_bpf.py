"""Compiled filters answer as their rules say, for any call."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.sandbox import bpf, syscalls
from tests.house import bpf_machine

KEY = 9 << 32 | 77
BLANKS = {"own_pid": 77, "low": 77, "high": 9}
RULES = {
    "kill": bpf.SyscallRule(((bpf.Argument(0, ("own_pid",)),),), errno.EPERM),
    "mmap": bpf.SyscallRule(((bpf.Argument(3, (0, 1, 0x20), mask=0x121),),), errno.EPERM),
    "sendto": bpf.SyscallRule(((bpf.Argument(4, (0,)), bpf.Argument(4, (0,), high=True)),), errno.EACCES),
    "execveat": bpf.SyscallRule(((bpf.Argument(0, (7,)), bpf.Secret(5, "low", "high")),), errno.EPERM),
    "clone": bpf.SyscallRule(
        ((bpf.Argument(0, (7,), mask=0xF),), (bpf.Argument(0, (8, 9)), bpf.Argument(1, (1,)))), errno.EPERM
    ),
}
words = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 7, 8, 9, 0x20, 0x21, 0x100, 77, 2**32, 2**63, KEY]))


def program(machine: syscalls.Machine) -> bpf.BpfProgram:
    return bpf.compile_program(
        machine,
        allowed=["read", "write", "close", "getpid", "unshare_not_there"],
        rules=RULES,
        errnos={"mount": errno.EPERM, "bpf": errno.EACCES},
        default=errno.ENOSYS,
    )


def expected(machine: syscalls.Machine, number: int, arguments: list[int]) -> int:
    """What RULES mean, written down a second time."""
    if machine.x32 and number >= 1 << 30:
        return bpf.KILL_PROCESS
    name = next((name for name, known in machine.numbers.items() if known == number), "")
    low = [argument & 0xFFFFFFFF for argument in arguments]
    allowed = {
        "kill": low[0] == 77,
        "mmap": low[3] & 0x121 in {0, 1, 0x20},
        "sendto": arguments[4] == 0,
        "execveat": low[0] == 7 and arguments[5] == KEY,
        "clone": low[0] & 0xF == 7 or (low[0] in {8, 9} and low[1] == 1),
    }
    refused = {"kill": errno.EPERM, "mmap": errno.EPERM, "sendto": errno.EACCES, "clone": errno.EPERM}
    refused |= {"execveat": errno.EPERM}
    refused |= {"mount": errno.EPERM, "bpf": errno.EACCES}
    if name in {"read", "write", "close", "getpid"} or allowed.get(name):
        return bpf.ALLOW
    return bpf.ERRNO | refused.get(name, errno.ENOSYS)


@pytest.mark.parametrize("machine", syscalls.MACHINES.values(), ids=lambda machine: machine.name)
@given(data=st.data())
def test_compiled_filter_answers_as_its_rules_say(machine, data):
    """Call numbers and arguments are arbitrary."""
    known = [machine.numbers[name] for name in (*RULES, "read", "mount", "bpf", "getpid", "ptrace")]
    number = data.draw(st.one_of(st.sampled_from(known), st.integers(0, 600), st.integers(0, 2**32 - 1)))
    arguments = data.draw(st.lists(words, min_size=6, max_size=6))
    found = bpf_machine.answer(program(machine), arch=machine.audit, number=number, arguments=arguments, blanks=BLANKS)
    assert found == expected(machine, number, arguments)


@given(arch=st.integers(0, 2**32 - 1), number=st.integers(0, 600))
def test_calls_of_other_architectures_kill_the_process(arch, number):
    """i386 above all, whose numbers mean other calls."""
    found = bpf_machine.answer(program(syscalls.X86_64), arch=arch, number=number, blanks=BLANKS)
    assert (found == bpf.KILL_PROCESS) == (arch != syscalls.X86_64.audit)


@pytest.mark.parametrize("machine", syscalls.MACHINES.values(), ids=lambda machine: machine.name)
def test_refusal_of_a_wrong_key_takes_as_long_whatever_is_wrong_with_it(machine):
    """Or one half of it could be found by the time that takes, then the other."""
    found = [
        bpf_machine.run(
            program(machine),
            arch=machine.audit,
            number=machine.numbers["execveat"],
            arguments=[7, 0, 0, 0, 0, key],
            blanks=BLANKS,
        )
        for key in (KEY ^ 1, KEY ^ 1 << 32, KEY ^ 1 << 63, ~KEY, 0)
    ]
    assert len(set(found)) == 1
    assert found[0][0] == bpf.ERRNO | errno.EPERM


def test_number_at_an_edge_is_its_own():
    """Of neighbours with other answers, at both ends of a part, and behind one longer than a jump of 8 bits."""
    machine = syscalls.AARCH64
    long = bpf.SyscallRule(tuple((bpf.Argument(0, (way,)),) for way in range(100)), errno.EPERM)
    numbers = {"read": 63, "write": 64, "writev": 66}
    made = bpf.compile_program(
        machine, allowed=["write"], rules={"read": long, "writev": long}, errnos={"readv": errno.EACCES}, default=1
    )
    found = [bpf_machine.answer(made, arch=machine.audit, number=number, arguments=[99]) for number in range(62, 68)]
    assert {name: machine.numbers[name] for name in numbers} == numbers
    assert found == [bpf.ERRNO | 1, bpf.ALLOW, bpf.ALLOW, bpf.ERRNO | errno.EACCES, bpf.ALLOW, bpf.ERRNO | 1]


def test_rule_with_a_jump_beyond_8_bits_is_an_error():
    """A jump offset has 8 bits, and must not be truncated."""
    rule = bpf.SyscallRule(((bpf.Argument(0, tuple(range(300))),),), errno.EPERM)
    with pytest.raises(ValueError, match="jumps"):
        bpf.compile_program(syscalls.X86_64, allowed=(), rules={"ioctl": rule}, errnos={}, default=errno.ENOSYS)
