"""A growing log is read from a mark on, over every way of rotating it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latticed.kit import text_log


def everything(_: bytes) -> bool:
    return True


class Log:
    """A log that somebody writes and rotates, and somebody else reads by marks only."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "auth.log"
        self.path.write_bytes(b"")
        self.now_ns = self.path.stat().st_mtime_ns
        self.stamp()
        self.mark = str(text_log.newest(self.path, everything, 0)[1])
        self.written: list[bytes] = []
        self.read: list[bytes] = []
        self.found = True

    def stamp(self) -> None:
        """Let time pass between any two changes, however coarse the clock of the file system is."""
        self.now_ns += 1_000_000_000
        os.utime(self.path, ns=(self.now_ns, self.now_ns))

    def write(self, *lines: bytes) -> None:
        with self.path.open("ab") as file:
            for line in lines:
                file.write(line + b"\n")
                self.written.append(line)
        self.stamp()

    def collect(self, most: int = 1_000) -> None:
        mark = text_log.parse_mark(self.mark)
        assert mark is not None
        found, after, self.found = text_log.following(self.path, everything, most, mark=mark)
        assert len(found) <= most
        self.read += found
        self.mark = str(after)

    def drain(self) -> None:
        before = None
        while before != (len(self.read), self.mark):
            before = (len(self.read), self.mark)
            self.collect()

    def rotate(self, way: str) -> None:
        """Rotate the log as logrotate does: rename and make anew, with a date, or copy and empty."""
        self._rotate(way)
        self.stamp()

    def _rotate(self, way: str) -> None:
        older = sorted(self.path.parent.glob("auth.log.[0-9]*"), key=lambda path: -int(path.name.rpartition(".")[2]))
        if way == "dated":
            self.path.rename(self.path.with_name(f"auth.log-2026{len(os.listdir(self.path.parent)):04}"))
            self.path.write_bytes(b"")
            return
        for path in older:
            path.rename(path.with_name(f"auth.log.{int(path.name.rpartition('.')[2]) + 1}"))
        if way == "copied":
            shutil.copy2(self.path, self.path.with_name("auth.log.1"))
            os.truncate(self.path, 0)
        else:
            self.path.rename(self.path.with_name("auth.log.1"))
            self.path.write_bytes(b"")


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path)


@pytest.mark.parametrize("way", ["renamed", "dated", "copied"])
def test_each_line_is_read_once_over_rotation(log: Log, way: str) -> None:
    """So are lines before and after it, and those written to the old file after it was last read."""
    log.write(b"one", b"two")
    log.collect()
    log.write(b"three")
    log.rotate(way)
    log.collect()
    log.write(b"four")
    log.rotate(way)
    log.write(b"five")
    log.drain()
    assert log.read == log.written == [b"one", b"two", b"three", b"four", b"five"]


def test_line_written_late_to_the_renamed_file_is_read(log: Log) -> None:
    """rsyslog writes to the renamed file until it is told to reopen; it is read on while the new file is empty."""
    log.write(b"one")
    log.collect()
    with log.path.open("ab") as file:
        log.rotate("renamed")
        log.collect()
        file.write(b"late\n")
    log.collect()
    log.write(b"two")
    log.collect()
    assert log.read == [b"one", b"late", b"two"]


def test_incomplete_line_is_read_only_once_complete(log: Log) -> None:
    log.write(b"one")
    with log.path.open("ab") as file:
        file.write(b"tw")
        file.flush()
        log.collect()
        assert log.read == [b"one"]
        file.write(b"o\n")
    log.collect()
    assert log.read == [b"one", b"two"]


def test_lines_older_than_the_mark_are_not_repeated_when_its_file_is_gone(log: Log) -> None:
    """The mark's file was compressed: its unread lines are lost, newer files are read."""
    log.write(b"ancient")
    log.collect()
    log.rotate("renamed")
    os.utime(log.path.with_name("auth.log.1"), (1_000, 1_000))
    log.write(b"one")
    log.collect()
    assert log.read == [b"ancient", b"one"]
    log.write(b"never seen")
    log.path.rename(log.path.with_name("auth.log.2.gz"))
    log.path.write_bytes(b"")
    log.write(b"two")
    assert log.found
    log.collect()
    assert log.read == [b"ancient", b"one", b"two"]
    assert not log.found


def test_new_content_under_the_same_inode_is_read_from_its_beginning(log: Log) -> None:
    """It is as long as the old one or longer; a checksum in the mark differs."""
    log.write(b"one of some length")
    log.collect()
    inode = log.path.stat().st_ino
    with log.path.open("r+b") as file:
        file.write(b"another line here!\nand one more\n")
    assert log.path.stat().st_ino == inode
    log.collect()
    assert log.read == [b"one of some length", b"another line here!", b"and one more"]


def test_newest_returns_the_last_wanted_lines_and_a_mark(log: Log) -> None:
    """Reading on from the mark gives later lines; an incomplete first line is left out."""
    log.write(*(b"%07d" % number + b"x" * 993 for number in range(2_000)))
    found, mark = text_log.newest(log.path, lambda line: int(line[:7]) % 2 == 0, 3)
    assert [int(line[:7]) for line in found] == [1994, 1996, 1998]
    everything_found, _ = text_log.newest(log.path, everything, 100_000)
    assert {len(line) for line in everything_found} == {1_000}
    assert sum(len(line) for line in everything_found) <= text_log.MOST_ANSWERED + 1_000
    log.write(b"next")
    assert text_log.following(log.path, everything, 9, mark=mark)[0] == [b"next"]


def test_large_additions_are_read_in_bounded_pieces(log: Log) -> None:
    """Many unwanted lines, many wanted ones, one that is too long; no wanted line is lost."""
    log.write(*(b"noise %d " % number + b"x" * 990 for number in range(5_000)), b"wanted")
    mark = text_log.parse_mark(log.mark)
    found: list[bytes] = []
    readings = 0
    while not found:
        assert mark is not None
        found, mark, _ = text_log.following(log.path, lambda line: line == b"wanted", 10, mark=mark)
        readings += 1
    assert (found, readings) == ([b"wanted"], 2)
    log.mark = str(mark)
    log.write(b"w" * 100_000, *(b"v" * 100_000 for _ in range(20)))
    while len(log.read) < 21:
        before = len(log.read)
        log.collect()
        assert 0 < len(log.read) - before <= text_log.MOST_ANSWERED // text_log.MAX_LINE_BYTES
    assert {len(line) for line in log.read} == {text_log.MAX_LINE_BYTES}
    with log.path.open("ab") as file:
        file.write(b"e" * (text_log.MOST_BYTES + 10) + b"\n" + b"after\n")
    log.drain()
    assert log.read[-1] == b"after"


def test_symlink_or_fifo_as_log_is_not_read(log: Log) -> None:
    """Opening a FIFO does not block."""
    log.write(b"one")
    log.path.rename(log.path.with_name("kept"))
    for make in (lambda path: path.symlink_to("kept"), os.mkfifo):
        make(log.path)
        with pytest.raises(OSError):
            log.collect()
        with pytest.raises(OSError):
            text_log.newest(log.path, everything, 1)
        log.path.unlink()
    with pytest.raises(FileNotFoundError):
        log.collect()


@pytest.mark.parametrize(
    "text", ["", "1-2-3-xyz", "1-2-3", "-1-2-3-0123456789abcdef", "1" * 30 + "-2-3-0123456789abcdef"]
)
def test_malformed_mark_is_not_parsed(text: str) -> None:
    assert text_log.parse_mark(text) is None


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.lists(st.integers(0, 40), max_size=5)),
        st.tuples(st.just("collect"), st.integers(1, 4)),
        st.tuples(st.sampled_from(["renamed", "dated", "copied"]), st.none()),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_each_line_is_read_once_in_order_for_any_steps(tmp_path_factory: pytest.TempPathFactory, steps: list) -> None:
    """Steps are random writes, reads and rotations."""
    log = Log(tmp_path_factory.mktemp("log"))
    number = 0
    for step, argument in steps:
        if step == "write":
            for length in argument:
                number += 1
                log.write(b"%06d " % number + b"x" * length)
        elif step == "collect":
            log.collect(argument)
        elif log.path.stat().st_size:  # logrotate leaves empty logs alone (notifempty)
            log.rotate(step)
    log.write(b"the end")
    log.drain()
    assert log.read == log.written
