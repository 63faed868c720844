"""What services keep in a backup: all of it, however hostile, and nothing that leads elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latticed.host.program import data_tree
from latticed.lifecycle import service_archive
from tests.house import files_seen, processes

MOST = 8 << 20


@pytest.fixture
def state(tmp_path):
    made = tmp_path / "state"
    made.mkdir()
    return made


@pytest.fixture
def staging(tmp_path):
    made = tmp_path / "staging"
    made.mkdir()
    return made


def kept(state, publisher="acme", plugin="acme.demo", name="web"):
    made = state / "services" / publisher / plugin / name / "data"
    made.mkdir(mode=0o700, parents=True)
    return made


def test_everything_comes_back(state, staging, tmp_path):
    """Bytes, modes, empty directories, links as they are, any name; files of two publishers of one id."""
    one, other = kept(state), kept(state, publisher="-")
    (one / "a b").write_bytes(bytes(range(256)) * 9_000)
    (one / "empty").mkdir(mode=0o750)
    (one / "deep" / "er").mkdir(parents=True)
    (one / "deep" / "er" / "tool").write_text("x")
    (one / "deep" / "er" / "tool").chmod(0o755)
    (one / "out").symlink_to("/etc/passwd")
    with open(os.fsencode(one) + b"/\xff\n%", "wb") as file:
        file.write(b"odd")
    os.mkfifo(one / "fifo")
    (other / "theirs").write_text("theirs")
    names = service_archive.stage(state, staging, data_bytes=MOST)
    assert names == ["services/0001.json", "services/0001.data", "services/0002.json", "services/0002.data"]
    assert all(service_archive.FILE.fullmatch(name) and (staging / name).is_file() for name in names)
    assert service_archive.unpack(staging, tmp_path / "new")
    expected = files_seen.tree(state / "services")
    expected.pop("acme/acme.demo/web/data/fifo")
    assert files_seen.tree(tmp_path / "new") == expected
    assert os.readlink(tmp_path / "new/acme/acme.demo/web/data/out") == "/etc/passwd"


def test_without_services_there_is_nothing(state, staging, tmp_path):
    assert service_archive.stage(state, staging, data_bytes=MOST) == []
    assert not service_archive.unpack(staging, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_links_of_a_program_are_not_followed(state, staging, tmp_path):
    """Neither is what it puts in place of a directory or file; what it cannot read itself is in it all the same."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("the host's own")
    data = kept(state)
    (data / "dir").symlink_to(secret)
    (data / "file").symlink_to(secret / "key")
    (data / "closed").write_text("closed")
    (data / "closed").chmod(0)
    service_archive.stage(state, staging, data_bytes=MOST)
    said = (staging / "services/0001.data").read_bytes()
    assert said == b"closed"


def test_tree_that_is_too_deep_does_not_prevent_the_backup_of_others(state, staging, tmp_path, capsys):
    deep = kept(state, name="a")
    for _ in range(100):
        deep /= "d"
    deep.mkdir(parents=True)
    (kept(state, name="b") / "file").write_text("kept")
    service_archive.stage(state, staging, data_bytes=MOST)
    service_archive.unpack(staging, tmp_path / "new")
    assert (tmp_path / "new/acme/acme.demo/b/data/file").read_text() == "kept"
    assert not (tmp_path / "new/acme/acme.demo/a").exists()
    assert "backup_left_out" in capsys.readouterr().out


STAGE = """
import sys
from pathlib import Path
from latticed.lifecycle import service_archive
service_archive.stage(Path(sys.argv[1], "state"), Path(sys.argv[1], "staging"), data_bytes=1 << 20)
"""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0 to become another user")
def test_what_cannot_be_read_is_left_out_of_the_backup_and_told_once_for_each_service(tmp_path):
    """Files and directories of another owner, and a whole service's directory; all else is in it."""
    python = processes.reachable_python()
    with processes.home_of(processes.STRANGER, tmp_path) as home:
        for part in ("state", "staging"):
            (home / part).mkdir()
        some, whole, closed = (kept(home / "state", name=name) for name in "abc")
        for number in range(3):
            (some / f"before{number}").write_text("mine")
            (some / f"theirs{number}").write_text("closed")
            (some / f"inner{number}").mkdir()
            (some / f"inner{number}" / "file").write_text("closed")
        (whole / "file").write_text("kept")
        (closed / "file").write_text("closed")
        theirs = {*some.glob("theirs*"), *some.glob("inner*"), closed}
        for one in home.rglob("*"):
            if one not in theirs:
                os.chown(one, processes.STRANGER.uid, processes.STRANGER.gid)
        for one in theirs:
            one.chmod(0o700)
        ran = subprocess.run(
            [python, "-c", STAGE, str(home)],
            check=False,
            user=processes.STRANGER.uid,
            group=processes.STRANGER.gid,
            extra_groups=[],
            env={"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=processes.LONG_PATIENCE_S,
        )
        assert ran.returncode == 0, ran
        service_archive.unpack(home / "staging", home / "new")
        found = files_seen.tree(home / "new/acme/acme.demo")
    assert {path for path, (mode, _) in found.items() if stat.S_ISREG(mode)} == {
        *(f"a/data/before{number}" for number in range(3)),
        "b/data/file",
    }
    assert ran.stdout.count("backup_left_out") == 2, ran
    assert "6 entries that cannot be read" in ran.stdout
    assert "all of it: Permission denied" in ran.stdout


def test_copy_that_cannot_be_written_fails_the_backup(state, staging):
    """It is not taken for a file that cannot be read."""
    (kept(state) / "file").write_bytes(bytes(1 << 16))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            service_archive.stage(state, staging, data_bytes=MOST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_file_of_many_names_is_copied_once_and_comes_back_as_one(state, staging, tmp_path):
    """Within the quota it may have ten thousand; another of the same size is another."""
    data = kept(state)
    (data / "inner").mkdir()
    (data / "a").write_bytes(bytes(range(256)) * 256)
    for number in range(300):
        os.link(data / "a", data / "inner" / f"a{number}")
    (data / "b").write_bytes(bytes(1 << 16))
    os.link(data / "b", data / "c")
    (data / "link").symlink_to("a")
    os.link(data / "link", data / "link2", follow_symlinks=False)
    service_archive.stage(state, staging, data_bytes=MOST)
    assert (staging / "services/0001.data").stat().st_size == 2 << 16
    service_archive.unpack(staging, tmp_path / "new")
    assert files_seen.tree(tmp_path / "new") == files_seen.tree(state / "services")
    new = tmp_path / "new/acme/acme.demo/web/data"
    assert ((new / "a").stat().st_nlink, (new / "b").stat().st_nlink) == (301, 2)
    most = data_tree.DataUse(bytes=MOST, files=400)
    assert data_tree.measure(new, most).bytes <= data_tree.measure(data, most).bytes


@pytest.mark.parametrize("how", ["sparse", "many"])
def test_service_with_more_than_twice_the_quota_is_left_out(state, staging, tmp_path, capsys, how):
    """A sparse file takes no space in its directory, but would in the copy."""
    data = kept(state, name="a")
    for number in range(1 if how == "sparse" else 17):
        with (data / f"f{number}").open("wb") as file:
            file.truncate(1 << 40 if how == "sparse" else 1 << 20)
    (kept(state, name="b") / "file").write_text("kept")
    service_archive.stage(state, staging, data_bytes=MOST)
    service_archive.unpack(staging, tmp_path / "new")
    assert list(files_seen.tree(tmp_path / "new/acme/acme.demo")) == ["b", "b/data", "b/data/file"]
    assert sorted(os.listdir(staging / "services")) == ["0001.data", "0001.json"]
    assert "twice service.data_bytes" in capsys.readouterr().out


def test_service_that_was_allowed_more_before_is_in_the_backup_whole(state, staging, tmp_path):
    """`service.data_bytes` was lowered since, which removes nothing; on another host it would be missing."""
    data = kept(state)
    for number in range(5):
        (data / f"f{number}").write_bytes(os.urandom(MOST // 8))
    service_archive.stage(state, staging, data_bytes=MOST // 32)
    service_archive.unpack(staging, tmp_path / "new")
    restored = tmp_path / "new" / data.relative_to(state / "services")
    assert [one.read_bytes() for one in sorted(restored.iterdir())] == [
        one.read_bytes() for one in sorted(data.iterdir())
    ]


def test_service_whose_names_no_restore_would_read_is_left_out(state, staging, tmp_path, capsys):
    """Within the quota of files they may be hundreds of megabytes; the daemon holds none of that in memory."""
    top = kept(state, name="a")
    name = b"\x80" * 255
    above = os.open(top, os.O_RDONLY)
    for _ in range(60):
        os.mkdir(name, dir_fd=above)
        below = os.open(name, os.O_RDONLY, dir_fd=above)
        os.close(above)
        above = below
    for number in range(1_600):
        os.close(os.open(f"f{number}", os.O_CREAT | os.O_WRONLY, dir_fd=above))
    os.close(above)
    (kept(state, name="b") / "file").write_text("kept")
    assert data_tree.measure(top, data_tree.DataUse(bytes=MOST, files=10_000)).files == 1_660
    tracemalloc.start()
    try:
        names = service_archive.stage(state, staging, data_bytes=MOST)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
        data_tree.remove(top)  # longer paths than what removes the test's own directories can name
    assert names == ["services/0001.json", "services/0001.data"]
    assert sorted(os.listdir(staging / "services")) == ["0001.data", "0001.json"]
    service_archive.unpack(staging, tmp_path / "new")
    assert list(files_seen.tree(tmp_path / "new/acme/acme.demo")) == ["b", "b/data", "b/data/file"]
    assert "expected names with at most" in capsys.readouterr().out


@pytest.mark.parametrize("files", [0, 1, 3])
def test_largest_index_is_restored_and_a_larger_one_is_left_out(state, staging, tmp_path, monkeypatch, files):
    data = kept(state)
    for number in range(files):
        (data / f"file{number}").write_text("kept")
    assert service_archive.stage(state, staging, data_bytes=MOST)
    size = (staging / "services/0001.json").stat().st_size
    if files:
        shutil.rmtree(staging / "services")
        monkeypatch.setattr(service_archive, "MAX_INDEX_BYTES", size - 1)
        assert service_archive.stage(state, staging, data_bytes=MOST) == []
        shutil.rmtree(staging / "services")
        monkeypatch.setattr(service_archive, "MAX_INDEX_BYTES", size)
        assert service_archive.stage(state, staging, data_bytes=MOST)
    assert service_archive.unpack(staging, tmp_path / "new")
    assert files_seen.tree(tmp_path / "new") == files_seen.tree(state / "services")


EXCHANGE = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
os.chdir(sys.argv[1])
print("up", flush=True)
while True:
    for number in range(100):
        libc.renameat2(-100, b"d%d" % number, -100, b"f%d" % number, 2)
        os.rename(b"m%d" % number, b"n%d" % number)
        os.rename(b"n%d" % number, b"m%d" % number)
"""


def test_program_that_exchanges_files_and_directories_does_not_prevent_the_backup(state, staging):
    """Nor the restore: what is renamed meanwhile may be listed twice."""
    data = kept(state)
    for number in range(100):
        (data / f"d{number}").mkdir()
        (data / f"f{number}").write_bytes(b"")
        (data / f"m{number}").write_bytes(b"")
    with processes.spawned([sys.executable, "-c", EXCHANGE, str(data)]) as child:
        assert child.stdout.readline() == b"up\n"
        for _ in range(40):
            assert service_archive.stage(state, staging, data_bytes=MOST)
            entries = json.loads((staging / "services/0001.json").read_bytes())["entries"]
            assert len({path for _, path, *_ in entries}) == len(entries)
            shutil.rmtree(staging / "services")


def test_service_that_is_removed_meanwhile_is_no_fault(state, staging, monkeypatch, capsys):
    (kept(state, name="b") / "file").write_text("kept")
    monkeypatch.setattr(
        service_archive.ServiceData, "services", lambda _: [("acme", "acme.demo", name) for name in ("a", "b")]
    )
    assert service_archive.stage(state, staging, data_bytes=MOST) == ["services/0001.json", "services/0001.data"]
    assert "backup_left_out" not in capsys.readouterr().out


SOUND = {"publisher": "acme", "plugin": "acme.demo", "name": "web", "entries": [["f", "file", 0o600, 3]]}
FORGED = {
    "publisher": {"publisher": "../.."},
    "plugin": {"plugin": "acme..demo"},
    "name": {"name": ".."},
    "no text": {"name": 5},
    "up": {"entries": [["f", "../file", 0o600, 3]]},
    "encoded up": {"entries": [["f", "%2e%2e/file", 0o600, 3]]},
    "absolute": {"entries": [["f", "/etc/file", 0o600, 3]]},
    "encoded slash": {"entries": [["d", "a", 0o700, 0], ["f", "a%2f..%2fb", 0o600, 3]]},
    "nul": {"entries": [["f", "a%00", 0o600, 3]]},
    "through a link": {"entries": [["l", "a", 0o777, "{here}"], ["f", "a/file", 0o600, 3]]},
    "over a link": {"entries": [["l", "a", 0o777, "{here}/elsewhere"], ["f", "a", 0o600, 3]]},
    "twice": {"entries": [["f", "a", 0o600, 1], ["f", "a", 0o600, 2]]},
    "no parent": {"entries": [["f", "a/b", 0o600, 3]]},
    "device": {"entries": [["c", "a", 0o600, 3]]},
    "less": {"entries": [["f", "file", 0o600, 2]]},
    "more": {"entries": [["f", "file", 0o600, 4]]},
    "another name up": {"entries": [["f", "file", 0o600, 3], ["h", "a", 0o600, "../file"]]},
    "another name of one elsewhere": {"entries": [["f", "file", 0o600, 3], ["h", "a", 0o600, "{here}/secret"]]},
    "another name through a link": {
        "entries": [["f", "file", 0o600, 3], ["l", "b", 0o777, "{here}"], ["h", "a", 0o600, "b/secret"]]
    },
    "another name of nothing": {"entries": [["f", "file", 0o600, 3], ["h", "a", 0o600, "b"]]},
    "another name of a directory": {"entries": [["f", "file", 0o600, 3], ["d", "b", 0o700, 0], ["h", "a", 0, "b"]]},
    "another name over a file": {"entries": [["f", "file", 0o600, 3], ["h", "file", 0o600, "file"]]},
    "another name that is none": {"entries": [["f", "file", 0o600, 3], ["h", "a", 0o600, 5]]},
    "negative": {"entries": [["f", "file", 0o600, -1]]},
    "mode": {"entries": [["f", "file", 1 << 20, 3]]},
    "short": {"entries": [["f", "file"]]},
    "not a list": {"entries": "file"},
}


@pytest.mark.parametrize("how", FORGED)
def test_forged_index_is_refused_and_writes_nothing_elsewhere(staging, tmp_path, how):
    (staging / "services").mkdir()
    index = json.dumps({**SOUND, **FORGED[how]}).replace("{here}", str(tmp_path))
    (staging / "services/0001.json").write_text(index)
    (staging / "services/0001.data").write_bytes(b"abc")
    (tmp_path / "secret").write_text("the host's own")
    before = set(os.listdir(tmp_path))
    with pytest.raises((ValueError, OSError, TypeError, KeyError)):
        service_archive.unpack(staging, tmp_path / "new")
    assert set(os.listdir(tmp_path)) - before <= {"new"}
    assert (tmp_path / "secret").stat().st_nlink == 1


def test_setuid_is_not_restored(staging, tmp_path):
    (staging / "services").mkdir()
    (staging / "services/0001.json").write_text(json.dumps({**SOUND, "entries": [["f", "file", 0o4755, 3]]}))
    (staging / "services/0001.data").write_bytes(b"abc")
    service_archive.unpack(staging, tmp_path / "new")
    assert stat.S_IMODE((tmp_path / "new/acme/acme.demo/web/data/file").stat().st_mode) == 0o755


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(entries=st.lists(st.lists(st.one_of(st.text(max_size=9), st.integers(-9, 9)), max_size=5), max_size=4))
def test_no_index_writes_outside(tmp_path_factory, entries):
    """Whatever an index says, the only thing that appears is the directory that it was to make."""
    place = tmp_path_factory.mktemp("one")
    (place / "staging" / "services").mkdir(parents=True)
    (place / "staging/services/0001.json").write_text(json.dumps({**SOUND, "entries": entries}))
    (place / "staging/services/0001.data").write_bytes(b"abcabcabc")
    with contextlib.suppress(ValueError, OSError, TypeError, KeyError):
        service_archive.unpack(place / "staging", place / "new")
    assert set(os.listdir(place)) <= {"staging", "new"}
