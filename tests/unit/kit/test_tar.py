"""kit.tar: readable by other tools, and safe against crafted archives."""

from __future__ import annotations

import contextlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.kit import tar


def archive(files: dict[str, bytes]) -> bytes:
    parts = []
    for name, data in files.items():
        parts += [tar.header(name, len(data), mode=0o600, mtime_s=1), data, bytes(tar.padding(len(data)))]
    return b"".join([*parts, tar.END])


def contents(data: bytes) -> dict[str, bytes]:
    reader = tar.TarReader(io.BytesIO(data))
    found = {}
    while (member := reader.next()) is not None:
        found[member.name] = b"".join(reader.chunks())
        assert len(found[member.name]) == member.size
    return found


class Dribble(io.BytesIO):
    """A pipe that gives a few bytes at a time."""

    def read(self, size=-1, /):
        return super().read(min(size, 7))


names = st.from_regex(r"[a-z0-9/._-]{1,98}[a-z]", fullmatch=True)


@given(files=st.dictionaries(names, st.binary(max_size=1500), max_size=5))
def test_written_archive_is_read_back_and_by_tarfile(files):
    data = archive(files)
    assert contents(data) == files
    with tarfile.open(fileobj=io.BytesIO(data)) as other:
        assert {one.name: other.extractfile(one).read() for one in other.getmembers()} == files


def test_archive_is_read_from_source_with_short_reads():
    files = {"a": b"x" * 2000, "b": b""}
    reader = tar.TarReader(Dribble(archive(files)))
    assert reader.next().name == "a"
    assert b"".join(reader.chunks()) == files["a"]
    assert reader.next().name == "b"


def test_file_sizes_beyond_octal_round_trip():
    """8 GiB and more (GNU's binary form)."""
    block = tar.header("ledger.sqlite3", 9 << 33, mode=0o600, mtime_s=1)
    assert tar.TarReader(io.BytesIO(block)).next().size == 9 << 33


def test_overlong_name_is_refused_when_writing_an_archive():
    with pytest.raises(ValueError, match="100 characters"):
        tar.header("x" * 101, 1, mode=0o600, mtime_s=1)


@pytest.mark.parametrize(
    "kind",
    [
        *(tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.XHDTYPE),
        *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE, tarfile.XGLTYPE),
    ],
)
def test_archive_members_other_than_regular_files_are_refused(kind):
    info = tarfile.TarInfo("a")
    info.type = kind
    with pytest.raises(tar.BadTar, match="regular files only"):
        contents(info.tobuf() + tar.END)


@pytest.mark.parametrize("cut", [1, 511, 512, 513, 600, 1023, 1024, 1535, 1536, 2047])
def test_truncated_archive_is_refused(cut):
    with pytest.raises(tar.BadTar):
        contents(archive({"a": b"x" * 300})[:cut])


def test_archive_with_data_after_its_end_is_refused():
    """GNU tar fills up its record of 10 KiB."""
    data = archive({"a": b"x"})
    assert contents(data + bytes(10240 - len(data))) == {"a": b"x"}
    for more in (b"x", bytes(512) + b"x", bytes(1 << 20)):
        with pytest.raises(tar.BadTar):
            contents(data + more)


def test_archive_with_data_in_the_padding_is_refused():
    """Otherwise data could be hidden there."""
    data = bytearray(archive({"a": b"x"}))
    data[tar.BLOCK + 5] = 1
    with pytest.raises(tar.BadTar, match="zeros after a file"):
        contents(bytes(data))


@given(data=st.binary(max_size=2000))
def test_any_bytes_are_read_as_tar_or_raise_bad_tar(data):
    """No other exception is raised."""
    with contextlib.suppress(tar.BadTar):
        contents(data)


@given(at=st.integers(0, 511), bit=st.integers(0, 7))
def test_header_with_one_flipped_bit_is_read_or_raises_bad_tar(at, bit):
    data = bytearray(archive({"a": b"x" * 10}))
    data[at] ^= 1 << bit
    with contextlib.suppress(tar.BadTar):
        contents(bytes(data))
