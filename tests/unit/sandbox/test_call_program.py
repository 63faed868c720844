"""Programs that make a list of system calls: what they do by the results, and what they report."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from latticed.sandbox import call_program, stub_calls, syscalls
from latticed.sandbox.call_program import ANY, Calls
from tests.house import processes
from tests.house.machines import CHECKOUT

HERE = syscalls.machine()
# Those of other machines where an emulator of them is installed.
MACHINES = [one for one in syscalls.MACHINES.values() if one is HERE or shutil.which(f"qemu-{one.name}")]
AT = stub_calls.AT_FDCWD
OUT = 1


@pytest.fixture(params=MACHINES, ids=lambda machine: machine.name)
def machine(request):
    return request.param


@pytest.fixture
def calls(machine):
    return Calls(machine)


def run(calls, machine, tmp_path, **given):
    """(what it wrote to its standard output, its report, its exit code)."""
    program = calls.program()
    path = tmp_path / "program"
    path.write_bytes(program.elf(machine, given))
    path.chmod(0o755)
    command = [str(path)] if machine is HERE else [f"qemu-{machine.name}", str(path)]
    read, write = os.pipe()
    opened = os.dup2(write, stub_calls.STATUS)
    try:
        ended = subprocess.run(
            command, pass_fds=[opened], capture_output=True, check=False, timeout=processes.PATIENCE_S, cwd=tmp_path
        )
    finally:
        os.close(write)
        os.close(opened)
    with open(read, "rb") as status:
        return ended.stdout, program.report(status.read()), ended.returncode


def say(calls, word):
    calls.call("write", OUT, word, len(word))


def test_result_is_an_argument_of_later_calls(calls, machine, tmp_path):
    (tmp_path / "source").write_text("from a file")
    fd, count, text = calls.room(b""), calls.room(b""), calls.room(bytes(64))
    calls.call("openat", AT, b"source", os.O_RDONLY, into=fd)
    calls.call("read", fd, calls.constant(text.address), 64, into=count)
    calls.call("write", OUT, calls.constant(text.address), count)
    calls.call("exit_group", 3)
    assert run(calls, machine, tmp_path) == (b"from a file", [], 3)


def test_sign_of_a_result_decides_where_to_go_on(calls, machine, tmp_path):
    """A loop until 0, as reading to the end of a file; an error that may be goes its own way."""
    (tmp_path / "source").write_bytes(b"12345")
    fd, letter = calls.room(b""), calls.room(b"")
    again, over, missing = calls.label(), calls.label(), calls.label()
    calls.call("openat", AT, b"source", os.O_RDONLY, into=fd)
    calls.place(again)
    calls.call("read", fd, calls.constant(letter.address), 2, on_zero=over)
    calls.call("write", OUT, calls.constant(letter.address), 1, on_more=again)
    calls.place(over)
    say(calls, b" over")
    calls.call("openat", AT, b"nothing", os.O_RDONLY, errors={errno.ENOENT}, on_error=missing)
    say(calls, b" found")
    calls.place(missing)
    calls.call("close", -1, errors=ANY)
    say(calls, b" missing")
    calls.call("exit_group", 0)
    assert run(calls, machine, tmp_path) == (b"135 over missing", [], 0)


@pytest.mark.parametrize("errors", [(), {errno.EPERM, errno.EEXIST}])
def test_error_that_may_not_be_ends_it_with_step_and_errno(calls, machine, tmp_path, errors):
    """Its number counts, not that others may be."""
    calls.begin("first")
    say(calls, b"before")
    calls.begin("second")
    calls.call("openat", AT, b"nothing", os.O_RDONLY, errors=errors)
    say(calls, b"after")
    assert run(calls, machine, tmp_path) == (b"before", [(call_program.FAILED, "second", errno.ENOENT)], 127)


def test_end_by_its_own_word(calls, machine, tmp_path):
    calls.begin("told")
    calls.fail(errno.EPERM)
    assert run(calls, machine, tmp_path) == (b"", [(call_program.FAILED, "told", errno.EPERM)], 127)


@pytest.mark.parametrize(("word", "way"), [(0, b"zero"), (1, b"more"), (2**31 - 1, b"more"), (2**32 - 1, b"less")])
def test_word_of_32_bits_decides_where_to_go_on(calls, machine, tmp_path, word, way):
    labels = {name: calls.label() for name in (b"less", b"zero", b"more")}
    looked = calls.room(word.to_bytes(4, "little") + b"\1\1\1\1")  # what follows does not count
    calls.look(looked, on_error=labels[b"less"], on_zero=labels[b"zero"], on_more=labels[b"more"])
    for name, label in labels.items():
        calls.place(label)
        say(calls, name)
        calls.call("exit_group", 0)
    assert run(calls, machine, tmp_path) == (way, [], 0)


def test_parameters_are_numbers_texts_and_lists_of_texts(calls, machine, tmp_path):
    """Given to a program that is complete otherwise, again and again."""
    calls.call("write", OUT, calls.parameter("text"), calls.parameter("size"))
    calls.call("execve", b"/bin/echo", calls.parameter("argv"), calls.parameter("env"))
    for number in (1, 7):
        given = {"text": b"x" * number + b"\n", "size": number + 1, "argv": [b"echo", b"a", b"b" * number], "env": []}
        assert run(calls, machine, tmp_path, **given) == (given["text"] + b"a " + b"b" * number + b"\n", [], 0)
        calls = Calls(machine)
        calls.call("write", OUT, calls.parameter("text"), calls.parameter("size"))
        calls.call("execve", b"/bin/echo", calls.parameter("argv"), calls.parameter("env"))


def test_program_that_is_executed_finds_no_argument_of_its_exec_in_registers(tmp_path):
    """The sixth one of execveat is what nobody else may know. The kernel of this machine is asked."""
    shown = tmp_path / "shown"
    compile_ = ["cc", "-static", "-nostdlib", "-o", shown, CHECKOUT / "tests/house/registers.c"]
    if shutil.which("cc") is None:
        pytest.skip("the program that shows its registers is written in C: no compiler (cc) here")
    subprocess.run(compile_, check=True)
    calls = Calls(HERE)
    none = calls.words([])
    calls.call("execveat", AT, bytes(shown), none, none, 0, calls.parameter("key"))
    key = 0x5EC2E75EC2E7A9
    said, report, code = run(calls, HERE, tmp_path, key=key)
    assert (report, code, len(said) % 8) == ([], 0, 0)
    words = struct.unpack(f"<{len(said) // 8}Q", said)
    assert len(words) >= 15
    assert not {key, key & 0xFFFFFFFF, key >> 32} & set(words)


def test_report_ends_at_what_is_whole(calls):
    calls.begin("only")
    record = calls.record(call_program.PID)
    program = calls.program()
    said = program.image[record.place : record.place + 16]
    assert program.report(said + said[:9]) == [(call_program.PID, "only", 0)]


def test_code_is_not_writable_and_data_not_executable(machine, tmp_path):
    """As the kernel maps it: by its program headers."""
    calls = Calls(machine)
    calls.call("exit_group", 0)
    path = tmp_path / "program"
    path.write_bytes(calls.program().elf(machine, {}))
    shown = subprocess.run(["readelf", "-lW", path], capture_output=True, check=True, text=True).stdout
    rows = [row.split() for row in shown.splitlines() if row.strip().startswith(("LOAD", "GNU_STACK"))]
    assert [(row[0], "".join(row[6:-1])) for row in rows] == [("LOAD", "RE"), ("LOAD", "RW"), ("GNU_STACK", "RW")]
    assert Path(path).stat().st_size < 16 << 10


@pytest.mark.parametrize("name", syscalls.MACHINES)
def test_instructions_are_those_of_the_sources(name, tmp_path):
    source, made = CHECKOUT / f"latticed/sandbox/call_program.{name}.s", tmp_path / "made.o"
    assemble = [sys.executable, "-P", "-m", "ziglang", "cc", "-target", f"{name}-linux-musl", "-c", source, "-o", made]
    # Its caches would be in the home of whoever runs this.
    subprocess.run(assemble, check=True, env={"PATH": os.defpath, "HOME": str(tmp_path)})
    assert executable_section(made.read_bytes()) == call_program._CODE[name]


def executable_section(file):
    """The one section of an object file that has instructions (elf(5))."""
    (at,) = struct.unpack_from("<Q", file, 40)
    size, count = struct.unpack_from("<HH", file, 58)
    sections = [struct.unpack_from("<IIQQQQ", file, at + number * size) for number in range(count)]
    (text,) = [file[offset : offset + long] for _, _, flags, _, offset, long in sections if flags & 4 and long]
    return text
