"""kit.trusted_files: every component of the path is judged, and the judged descriptor is what is read."""

from __future__ import annotations

import os
import threading

import pytest

from latticed.kit import trusted_files

OWNERS = frozenset({0, os.geteuid()})
STRANGER = 65_501


@pytest.fixture
def home(tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/trust.json").write_text("good")
    return tmp_path


def read(path):
    return trusted_files.read(path, 1024, owners=OWNERS)


def test_safe_file_is_read_directly_and_behind_symlinks(home):
    """All directories and links on the way are as safe as the file."""
    (home / "there").symlink_to(home / "conf")
    (home / "up").symlink_to("conf/../conf/./trust.json")
    assert read(home / "conf/trust.json") == read(home / "there/trust.json") == read(home / "up") == b"good"


@pytest.mark.parametrize("place", ["conf/trust.json", "conf"])
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_path_component_writable_by_others_is_refused(home, place, mode):
    """The file or any directory above it; the message names it."""
    (home / place).chmod(mode)
    with pytest.raises(trusted_files.ForeignFile, match=place):
        read(home / "conf/trust.json")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
@pytest.mark.parametrize("place", ["conf/trust.json", "conf", "there", "mine"])
def test_foreign_owner_of_a_path_component_is_refused(home, place):
    """A directory that holds a link to a safe place too, and the link itself."""
    (home / "mine").mkdir()
    (home / "mine/conf").symlink_to(home / "conf")
    (home / "there").symlink_to(home / "mine/conf")
    assert read(home / "there/trust.json") == b"good"
    os.chown(home / place, STRANGER, STRANGER, follow_symlinks=False)
    with pytest.raises(trusted_files.ForeignFile, match=str(STRANGER)):
        read(home / "there/trust.json")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_symlink_swapped_during_the_check_yields_no_foreign_bytes(home):
    """In a sticky directory, another user swaps a link between a safe file and his own."""
    swap = home / "sticky"
    swap.mkdir()
    swap.chmod(0o1777)
    evil = home / "evil.json"
    evil.write_text("evil")
    os.chown(evil, STRANGER, STRANGER)
    stop = threading.Event()

    def flip():
        while not stop.is_set():
            for target in (home / "conf/trust.json", evil):
                (swap / "new").unlink(missing_ok=True)
                (swap / "new").symlink_to(target)
                (swap / "new").rename(swap / "link")

    flipper = threading.Thread(target=flip)
    flipper.start()
    outcomes = set()
    try:
        while len(outcomes) < 2 and flipper.is_alive():
            try:
                outcomes.add(read(swap / "link"))
            except trusted_files.ForeignFile:
                outcomes.add("refused")
            except FileNotFoundError:
                continue
    finally:
        stop.set()
        flipper.join()
    assert outcomes == {b"good", "refused"}


def test_loop_of_symlinks_is_an_error(home):
    """There are too many links, as for the kernel."""
    (home / "a").symlink_to("b")
    (home / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many"):
        read(home / "a")


@pytest.mark.parametrize("make", ["directory", "fifo"])
def test_directory_or_fifo_as_trusted_file_is_refused(home, make):
    """Opening the FIFO does not block."""
    path = home / "odd"
    path.mkdir() if make == "directory" else os.mkfifo(path)
    with pytest.raises(ValueError, match="regular file"):
        read(path)


def test_too_large_or_missing_trusted_file_is_an_error(home):
    """A missing file is reported as missing."""
    with pytest.raises(ValueError, match="at most 3 bytes"):
        trusted_files.read(home / "conf/trust.json", 3, owners=OWNERS)
    with pytest.raises(FileNotFoundError):
        read(home / "conf/none")
