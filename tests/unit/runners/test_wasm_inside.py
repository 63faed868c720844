"""Unit tests of the code inside a wasm plugin's sandbox: preview 1, its streams, its clock."""

from __future__ import annotations

import os
import struct
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmtime import Engine, Limits, Memory, MemoryType, Store

from latticed.runners.wasm_inside import engine, polling, wasi
from latticed.runners.wasm_inside.budget import Budget
from latticed.runners.wasm_inside.guest import Guest, GuestFault
from latticed.runners.wasm_inside.host_session import HostSession
from latticed.runners.wasm_inside.status import Exited, GuestFailed
from latticed.runners.wasm_inside.streams import Streams
from latticed.runners.wasm_inside.wasi import Wasi
from tests.house import processes

PAGE = 65_536
CLOCK, READ, WRITE = 0, 1, 2


class Time:
    """A budget that only counts what is asked of it."""

    def __init__(self):
        self.waits = 0

    def __enter__(self):
        self.waits += 1

    def __exit__(self, *_):
        pass


class World:
    """A store with one page of memory, WASI over it, pipes for streams."""

    def __init__(self, fds):
        self.store = Store(Engine())
        self.memory = Memory(self.store, MemoryType(Limits(1, 1)))
        self.guest = Guest()
        self.guest.attach(self.memory)
        self.time, self.messages = Time(), 0
        self.streams = Streams(self.time, self._renew, fds)
        self.wasi = Wasi(self.guest, self.streams, ("acme.demo", "zwölf"))

    def _renew(self):
        self.messages += 1

    def call(self, name, *arguments):
        """Call the function as the module would."""
        return self.wasi._function(name)(self.store, *arguments)

    def read(self, at, size):
        return self.guest.read(self.store, at, size)

    def number(self, at, size=4):
        return int.from_bytes(self.read(at, size), "little")

    def put(self, at, data):
        self.guest.write(self.store, at, data)


@pytest.fixture
def pipes():
    """What descriptors 0, 1 and 2 are for the module, and our ends of them: to write, to read, to read."""
    made = [os.pipe() for _ in range(3)]
    yield {0: made[0][0], 1: made[1][1], 2: made[2][1]}, [made[0][1], made[1][0], made[2][0]]
    for end in {fd for pair in made for fd in pair}:
        os.close(end)


@pytest.fixture
def world(pipes):
    return World(pipes[0])


def test_wasi_arguments_are_given_and_the_environment_is_empty(world):
    assert world.call("args_sizes_get", 0, 4) == wasi.OK
    assert (world.number(0), world.number(4)) == (2, 10 + 7)
    assert world.call("args_get", 16, 64) == wasi.OK
    assert (world.number(16), world.number(20)) == (64, 74)
    assert world.read(64, 17) == "acme.demo\0zwölf\0".encode()
    assert world.call("environ_sizes_get", 0, 4) == wasi.OK
    assert (world.number(0), world.number(4)) == (0, 0)
    assert world.call("environ_get", 0, 4) == wasi.OK


def test_wasi_monotonic_time_advances_and_the_date_is_zero(world):
    """Clocks of processor time are not supported."""
    assert world.call("clock_time_get", wasi.MONOTONIC, 0, 0) == wasi.OK
    assert world.call("clock_time_get", wasi.MONOTONIC, 0, 8) == wasi.OK
    assert 0 <= world.number(0, 8) <= world.number(8, 8) < time.monotonic_ns()
    world.put(0, b"\xff" * 8)
    assert world.call("clock_time_get", wasi.REALTIME, 0, 0) == wasi.OK
    assert world.number(0, 8) == 0
    assert world.call("clock_res_get", wasi.REALTIME, 0) == wasi.OK
    assert world.number(0, 8) == 1000
    assert {world.call("clock_time_get", clock, 0, 0) for clock in (2, 3, -1)} == {wasi.NOTSUP}
    assert {world.call("clock_res_get", clock, 0) for clock in (2, 3)} == {wasi.NOTSUP}


def test_random_get_fills_exactly_the_buffer(world):
    assert world.call("random_get", 8, PAGE - 16) == wasi.OK
    assert world.read(0, 8) == world.read(PAGE - 8, 8) == bytes(8)
    assert len(set(world.read(8, PAGE - 16))) == 256


def test_file_and_socket_calls_return_errors(world):
    """The descriptor that they name does not matter."""
    for name, (letters, answer) in wasi._ABSENT.items():
        assert answer != wasi.OK, name
        assert world.call(name, *[3] * len(letters)) == answer
    assert world.call("fd_prestat_get", 3, 0) == wasi.BADF, "what a C library stops looking at"
    assert {name for name in wasi.SIGNATURES if name.startswith(("path_", "sock_"))} <= set(wasi._ABSENT)
    assert len(wasi.SIGNATURES) == 46


@pytest.mark.parametrize("fd", [3, 4, 100, -1])
def test_descriptors_beyond_stderr_give_badf(world, fd):
    """The process itself has more descriptors open."""
    assert world.call("fd_read", fd, 0, 0, 0) == wasi.BADF
    assert world.call("fd_write", fd, 0, 0, 0) == wasi.BADF
    assert world.call("fd_fdstat_get", fd, 0) == wasi.BADF
    assert world.call("fd_filestat_get", fd, 0) == wasi.BADF
    assert world.call("fd_seek", fd, 0, 0, 0) == wasi.BADF
    assert world.call("fd_tell", fd, 0) == wasi.BADF
    assert world.call("fd_close", fd) == wasi.BADF
    assert world.call("fd_fdstat_set_flags", fd, 0) == wasi.BADF


def test_streams_cannot_be_seeked_and_are_one_way(world, pipes):
    """They are neither files nor terminals; closing one leaves the process's descriptor open."""
    for fd, right in ((0, 1 << 1), (1, 1 << 6), (2, 1 << 6)):
        assert world.call("fd_fdstat_get", fd, 0) == wasi.OK
        kind, flags, rights, inherited = struct.unpack("<BxHxxxxQQ", world.read(0, 24))
        assert (kind, flags, rights, inherited) == (0, 0, right | 1 << 27, 0)
        assert world.call("fd_seek", fd, 0, 0, 0) == world.call("fd_tell", fd, 0) == wasi.SPIPE
        assert world.call("fd_filestat_get", fd, 0) == wasi.OK
    assert world.call("fd_fdstat_set_flags", 1, 0) == wasi.OK
    assert world.call("fd_fdstat_set_flags", 1, 4) == wasi.NOTSUP
    assert world.call("fd_read", 1, 0, 0, 0) == world.call("fd_write", 0, 0, 0, 0) == wasi.BADF
    assert world.call("fd_close", 2) == wasi.OK
    assert world.call("fd_close", 2) == world.call("fd_write", 2, 0, 0, 0) == wasi.BADF
    os.fstat(pipes[0][2])  # it is not the module's to close


def test_fd_read_returns_what_is_available(world, pipes):
    """It reads into all vectors, without waiting for more; each message whose beginning is read counts once."""
    world.put(0, struct.pack("<6I", 100, 3, 200, 0, 300, 10))
    os.write(pipes[1][0], b"abcdefg")
    assert world.call("fd_read", 0, 0, 3, 64) == wasi.OK
    assert (world.number(64), world.read(100, 3), world.read(300, 4)) == (7, b"abc", b"defg")
    assert (world.messages, world.time.waits) == (1, 1)
    os.write(pipes[1][0], b"h\n")
    assert world.call("fd_read", 0, 0, 3, 64) == wasi.OK
    assert (world.number(64), world.messages) == (2, 1)
    os.write(pipes[1][0], b"i\nj\n" + b"k" * 9)
    assert world.call("fd_read", 0, 0, 1, 64) == wasi.OK
    assert (world.number(64), world.messages) == (3, 2), "one that begins within what is given counts once"
    waits = world.time.waits
    assert world.call("fd_read", 0, 0, 3, 64) == wasi.OK
    assert (world.number(64), world.read(100, 3), world.time.waits) == (10, b"\nkk", waits)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), pipes[0][0])
    assert world.call("fd_read", 0, 0, 1, 64) == wasi.OK
    assert world.number(64) == 0, "the end"


def test_fd_write_writes_all_vectors(world, pipes):
    """They hold more than fits into the pipe, while the reader takes small pieces."""
    world.put(0, struct.pack("<4I", 1024, 60_000, 2048, 50_000))
    world.put(1024, os.urandom(60_000))
    heard = bytearray()

    def hear():
        while len(heard) < 110_000:
            heard.extend(os.read(pipes[1][1], 7_000))

    hearing = threading.Thread(target=hear)
    hearing.start()
    assert world.call("fd_write", 1, 0, 2, 64) == wasi.OK
    hearing.join()
    assert world.number(64) == 110_000
    data = world.read(1024, 60_000)
    assert bytes(heard) == data + world.read(2048, 50_000)
    assert world.time.waits > 0


BEYOND = [PAGE, PAGE - 3, -1, -PAGE]


@pytest.mark.parametrize("at", BEYOND)
def test_address_outside_the_memory_is_fault(world, pipes, at):
    """It suffices that its last bytes are outside."""
    os.write(pipes[1][0], b"x")
    world.put(0, struct.pack("<2I", at & 0xFFFFFFFF, 8))
    answers = [
        world.call("args_sizes_get", at, 0),
        world.call("args_get", 0, at),
        world.call("clock_time_get", 1, 0, at),
        world.call("random_get", at, 64),
        world.call("fd_fdstat_get", 1, at),
        world.call("fd_read", 0, at, 1, 0),
        world.call("fd_read", 0, 0, 1, 0),
        world.call("fd_write", 1, 0, 1, 0),
        world.call("fd_write", 1, 16, 0, at),
        world.call("poll_oneoff", at, 0, 1, 0),
    ]
    assert answers == [wasi.FAULT] * 10


@given(at=st.integers(-(1 << 31), (1 << 32) - 1), size=st.integers(-(1 << 31), (1 << 32) - 1))
def test_view_is_within_memory_or_raises_guest_fault(at, size):
    """Address and size are arbitrary."""
    store = Store(Engine())
    guest = Guest()
    guest.attach(Memory(store, MemoryType(Limits(1, 1))))
    at_, size_ = at & 0xFFFFFFFF, size & 0xFFFFFFFF
    if at_ + size_ <= PAGE:
        assert len(guest.view(store, at, size)) == size_
    else:
        with pytest.raises(GuestFault):
            guest.view(store, at, size)


def clock(userdata, timeout_ns, *, which=1, absolute=False):
    return struct.pack("<QBxxxxxxxIxxxxQQHxxxxxx", userdata, CLOCK, which, timeout_ns, 0, absolute)


def stream(userdata, kind, fd):
    return struct.pack("<QBxxxxxxxI28x", userdata, kind, fd)


def poll(world, *asked):
    """The events, as (userdata, error, kind, bytes), or the error of the call."""
    world.put(1024, b"".join(asked))
    error = world.call("poll_oneoff", 1024, 8192, len(asked), 0)
    if error:
        return error
    data = world.read(8192, 32 * world.number(0))
    return [struct.unpack("<QHBxxxxxQxxxxxxxx", data[at : at + 32]) for at in range(0, len(data), 32)]


def test_poll_oneoff_reports_due_clocks_and_ready_streams(world, pipes):
    """What can never happen is reported at once as an error."""
    assert poll(world, clock(7, 1_000_000)) == [(7, 0, CLOCK, 0)]
    assert poll(world, clock(7, 0), clock(8, 10**18)) == [(7, 0, CLOCK, 0)]
    assert poll(world, clock(7, 1, absolute=True)) == [(7, 0, CLOCK, 0)]
    assert poll(world, stream(1, WRITE, 1), stream(2, WRITE, 2)) == [(1, 0, WRITE, 1), (2, 0, WRITE, 1)]
    assert poll(world, clock(5, 1_000_000), stream(1, READ, 0)) == [(5, 0, CLOCK, 0)]
    os.write(pipes[1][0], b"x")
    assert poll(world, clock(5, 10**18), stream(1, READ, 0)) == [(1, 0, READ, 1)]
    assert poll(world, stream(1, READ, 1), stream(2, WRITE, 0), stream(3, READ, 9)) == [
        (1, 8, READ, 0),
        (2, 8, WRITE, 0),
        (3, 8, READ, 0),
    ]
    assert poll(world, stream(1, 9, 0)) == [(1, 28, 9, 0)]
    assert poll(world, clock(5, 10**18, which=0, absolute=True)) == [(5, 58, CLOCK, 0)], "nobody waits for a date"
    assert poll(world) == wasi.INVAL
    assert world.call("poll_oneoff", 0, 0, polling.MOST + 1, 0) == wasi.INVAL


def test_proc_exit_raises_exited_with_its_status(world):
    for status in (0, 3, -1):
        with pytest.raises(Exited) as exited:
            world.call("proc_exit", status)
        assert exited.value.args[0] == status & 0xFFFFFFFF


def test_wasi_signatures_are_those_of_preview_1():
    """The test has four that are easily mistaken."""
    assert wasi.SIGNATURES["fd_seek"] == ("i32 i64 i32 i32", "i32")
    assert wasi.SIGNATURES["path_open"] == ("i32 i32 i32 i32 i32 i64 i64 i32 i32", "i32")
    assert wasi.SIGNATURES["proc_exit"] == ("i32", "")
    assert wasi.SIGNATURES["sched_yield"] == ("", "i32")


class Expired(threading.Event):
    """An event that a budget sets."""

    def soon(self):
        return self.wait(20)


def test_budget_expires_while_computing():
    """It expires once; its thread then ends."""
    expired = Expired()
    budget = Budget(expired.set)
    budget.renew(0.02)
    assert expired.soon()
    processes.until(lambda: not [one for one in threading.enumerate() if one.name == "budget"], what="its thread's end")


def test_time_spent_waiting_does_not_use_the_budget():
    """What was left before the wait is left after it."""
    expired = Expired()
    budget = Budget(expired.set)
    budget.renew(0.5)
    with budget:
        assert not expired.wait(0.7)
    assert expired.soon()


def test_stopped_budget_never_expires():
    """Waiting does not change that; once renewed, it expires as usual."""
    expired = Expired()
    budget = Budget(expired.set)
    budget.renew(0.5)
    budget.stop()
    assert not expired.wait(0.7)
    with budget:
        assert not expired.wait(0.1)
    assert not expired.wait(0.1)
    budget.renew(0.02)
    assert expired.soon()


@pytest.mark.parametrize("step", ["renew", "stop", "wait"])
def test_expired_budget_ends_the_module_at_its_next_step(step):
    """The epoch ends only what is in wasm at that moment: the deadline of a later call is counted from there on."""
    expired = Expired()
    budget = Budget(expired.set)
    budget.renew(0.02)
    assert expired.soon()
    with pytest.raises(GuestFailed, match="deadline_exceeded"):
        {"renew": lambda: budget.renew(9), "stop": budget.stop, "wait": budget.__enter__}[step]()


@pytest.mark.parametrize("answer", [{"ok": True}, None], ids=["an answer", "none that can be used"])
def test_answer_that_is_ready_only_after_the_deadline_is_not_written(answer, monkeypatch):
    """wasm has returned by then: decoding and encoding take time, too."""
    expired, written = Expired(), []
    budget = Budget(expired.set)

    class Slow:
        def invoke(self, _request):
            budget.renew(0.02)
            assert expired.soon()
            if answer is None:
                raise ValueError("it is no object")
            return answer

    monkeypatch.setattr("latticed.runners.wasm_inside.host_session._write", written.append)
    with pytest.raises(GuestFailed, match="deadline_exceeded"):
        HostSession(budget)._invoke(Slow(), 1, {})
    assert written == []


def test_code_compiled_without_fuel_does_not_load_in_engine_with_fuel():
    from wasmtime import Module, WasmtimeError

    code = Module(engine.make(fuel=False), "(module)").serialize()
    Module.deserialize(engine.make(fuel=False), code)
    with pytest.raises(WasmtimeError, match="fuel"):
        Module.deserialize(engine.make(fuel=True), code)
