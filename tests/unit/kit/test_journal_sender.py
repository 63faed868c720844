"""kit.journal_sender: entries in journald's native protocol, on a real datagram socket."""

from __future__ import annotations

import array
import os
import socket
import struct
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.kit import journal_sender


def parse(data: bytes) -> dict[str, bytes]:
    """Parse an entry by the rules of the protocol: `NAME=value` lines, or NAME, length and bytes."""
    fields: dict[str, bytes] = {}
    while data:
        line, _, rest = data.partition(b"\n")
        if b"=" in line:
            name, _, fields[name.decode()] = line.partition(b"=")
            data = rest
        else:
            (size,) = struct.unpack_from("<Q", rest)
            fields[line.decode()] = rest[8 : 8 + size]
            assert rest[8 + size : 9 + size] == b"\n"
            data = rest[9 + size :]
    return fields


@pytest.fixture
def journald(tmp_path):
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listening:
        listening.bind(str(tmp_path / "socket"))
        listening.settimeout(5)
        yield listening


@given(value=st.text(max_size=200))
def test_journal_value_cannot_inject_a_field(value):
    """Exactly the fields that were sent are parsed, with their bytes."""
    found = parse(journal_sender.encode({"MESSAGE": value, "PRIORITY": "6"}))
    assert found == {"MESSAGE": value.encode("utf-8", "backslashreplace"), "PRIORITY": b"6"}


def test_small_journal_entry_is_one_datagram(journald):
    with journal_sender.JournalSender(journald.getsockname()) as sender:
        assert sender.send(journal_sender.encode({"MESSAGE": "plugin armed", "LATTICED_EVENT": "plugin_armed"}))
    assert parse(journald.recv(65536)) == {"MESSAGE": b"plugin armed", "LATTICED_EVENT": b"plugin_armed"}


def test_large_journal_entry_is_sent_as_sealed_memfd(journald):
    """It exceeds the size of a datagram."""
    message = "x" * (4 << 20)
    with journal_sender.JournalSender(journald.getsockname()) as sender:
        assert sender.send(journal_sender.encode({"MESSAGE": message}))
    data, ancillary, _, _ = journald.recvmsg(16, socket.CMSG_SPACE(4))
    assert data == b""
    fd = array.array("i", ancillary[0][2])[0]
    try:
        assert parse(os.pread(fd, 8 << 20, 0)) == {"MESSAGE": message.encode()}
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"forged", 0)
    finally:
        os.close(fd)


def test_journal_send_returns_false_without_journald(tmp_path, journald):
    """The next entry is sent once journald is back."""
    with journal_sender.JournalSender(str(tmp_path / "nobody")) as sender:
        assert not sender.send(journal_sender.encode({"MESSAGE": "one"}))
        assert not sender.send(journal_sender.encode({"MESSAGE": "two"}))
        sender._path = journald.getsockname()
        assert sender.send(journal_sender.encode({"MESSAGE": "three"}))


def test_entry_for_stuck_journald_is_dropped_after_the_timeout(journald):
    """Nobody reads the socket."""
    with journal_sender.JournalSender(journald.getsockname()) as sender:
        sender._socket.settimeout(0.001)
        sent = 0
        while sender.send(journal_sender.encode({"MESSAGE": "x"})):
            sent += 1
            assert sent < 100_000


def test_journal_stream_must_match_device_and_inode(tmp_path):
    """$JOURNAL_STREAM may be inherited although stderr was redirected (systemd.exec(5))."""
    with (tmp_path / "a").open("wb") as file:
        found = os.fstat(file.fileno())
        assert journal_sender.is_stream(file.fileno(), {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
        assert not journal_sender.is_stream(file.fileno(), {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + 1}"})
        assert not journal_sender.is_stream(file.fileno(), {})
    assert not journal_sender.is_stream(987_654, {"JOURNAL_STREAM": "1:2"})
