"""`data` of service.put: kept, bounded, and what a hostile program can do about the bound; with real children."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.host.call import HostError
from latticed.host.program import data_tree, quota
from latticed.host.program.data import ServiceData
from latticed.host.program.data_tree import DataUse
from latticed.host.program.quota import FreeSpace, Looked
from latticed.host.program.rules import ProgramRefused
from tests.house import processes
from tests.unit.host.test_program_keeper import A, B, tree, until, world

QUOTA = {"bytes": 8 << 20, "files": 200}
MIB = 1 << 20


def place(tmp_path, caller=A, name="web"):
    return tmp_path / "state" / "services" / "-" / caller.plugin_id / name / "data"


@pytest.fixture
async def here(tmp_path):
    async with world(tmp_path) as opened:
        yield opened


# What is kept.


async def test_data_is_kept_over_restarts_and_deletion_until_it_is_to_be_removed(here, tmp_path):
    """Nobody else sees it: another service and another plugin have their own; /scratch is not kept."""
    script = (
        "cat /data/said /scratch/said 2>/dev/null; echo one >>/data/said; echo two >/scratch/said; echo up; sleep 99"
    )
    await here.put("web", script, data=QUOTA)
    await here.until_said("up", "web")
    assert "one" not in here.program("web").output()["stdout"]
    await here.put("web", script + "9", data=QUOTA)
    await here.until_said("one\nup", "web")
    assert await here.call("service.delete", name="web") == {"ok": True}
    await here.put("web", script, data=QUOTA)
    await here.until_said("one\none\nup", "web")
    for caller, name in ((A, "other"), (B, "web")):
        await here.put(name, script, caller, data=QUOTA)
        await here.until_said("up", name, caller)
        assert "one" not in here.program(name, caller).output()["stdout"]
    assert place(tmp_path).joinpath("said").read_text() == "one\n" * 3
    assert await here.call("service.delete", name="web", data=True) == {"ok": True}
    assert not place(tmp_path).parent.exists()
    assert place(tmp_path, name="other").exists()
    assert await here.call("service.delete", name="web", data=True) == {"ok": False}


async def test_data_survives_the_daemon_and_shows_what_is_used(tmp_path):
    """A put without `data` leaves what is there, for a later one."""
    async with world(tmp_path) as here:
        await here.put("web", "head -c 100000 /dev/zero >/data/file; mkdir /data/more; echo up; sleep 999", data=QUOTA)
        await here.until_said("up", "web")
        # Measured again once it has grown, or after some seconds.
        await until(lambda: here.programs.get(A.plugin_id, "web").kept.use.files == 2)
        shown = (await here.status("web"))["data"]
        assert (shown["bytes"], shown["files"], shown["used_files"]) == (8 << 20, 200, 2)
        assert 100_000 <= shown["used_bytes"] < 120_000
        await here.put("web", "ls /data; echo none; sleep 999")
        await here.until_said("none", "web")
        assert (await here.status("web"))["data"] is None
        assert "file" not in here.program("web").output()["stdout"]
        await here.put("web", "wc -c /data/file; sleep 999", data=QUOTA)
        await here.until_said("100000", "web")
    async with world(tmp_path) as here:
        await here.until_said("100000 /data/file", "web")


async def test_what_deleted_services_have_kept_counts_for_the_quota_of_services(tmp_path):
    """Else each new name would come with a new quota, and the disk would be full. A name that has something is free to
    be put again, and what needs no directory is not counted; another plugin has a quota of its own.
    """
    async with world(tmp_path, plugin_services=2) as here:
        for name in ("one", "two"):
            await here.put(name, "echo up; sleep 999", data=QUOTA)
            await here.until_said("up", name)
            assert await here.call("service.delete", name=name) == {"ok": True}
        with pytest.raises(HostError, match=r"quota_exceeded: expected at most 2 services of acme\.a .*: one, two"):
            await here.put("three", "sleep 999", data=QUOTA)
        assert here.programs.of(A.plugin_id) == []
        assert not place(tmp_path, name="three").exists()
        await here.put("three", "sleep 999", B, data=QUOTA)
        await here.put("three", "sleep 999")
        with pytest.raises(HostError, match="quota_exceeded"):
            await here.put("three", "sleep 998", data=QUOTA)
        await here.put("two", "echo up; sleep 999", data=QUOTA)
        await here.until_said("up", "two")
        assert await here.call("service.delete", name="one", data=True) == {"ok": True}
        await here.put("three", "sleep 998", data=QUOTA)


async def test_services_with_data_count_before_they_have_a_directory(tmp_path):
    """It is made when they start; those whose plugin may not act do not."""
    async with world(tmp_path, plugin_services=2, allowed=()) as here:
        place(tmp_path, name="old").mkdir(parents=True)
        await here.put("one", "sleep 999", data=QUOTA)
        with pytest.raises(HostError, match=r"quota_exceeded.*: old"):
            await here.put("two", "sleep 999", data=QUOTA)


async def test_files_of_data_cannot_be_executed_and_lead_nowhere(here, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("not for it")
    script = (
        f"cp /bin/true /data/true; chmod 755 /data/true; /data/true && echo executed; ln -s {secret} /data/link;"
        " cat /data/link && echo read; ln /bin/true /data/hard && echo linked; mkfifo /data/fifo && echo fifo;"
        " touch /datum && echo beside; echo done; sleep 999"
    )
    await here.put("web", script, data=QUOTA)
    await here.until_said("done", "web")
    assert here.program("web").output()["stdout"] == "done\n"


async def test_more_than_the_operator_allows_is_refused(here):
    for bad in ({"bytes": (256 << 20) + 1, "files": 1}, {"bytes": 1, "files": 10_001}, {"bytes": 0, "files": 1}):
        with pytest.raises((HostError, ValueError)):
            await here.put("web", "sleep 9", data=bad)
    assert here.programs.of(A.plugin_id) == []


# Quota, against programs that do not want it.

FILLERS = {
    "one file": "cat /dev/zero >/data/file",
    "many files": "i=0; while :; do echo $i >/data/$i; i=$((i+1)); done",
    "many directories": "i=0; while :; do mkdir /data/$i; i=$((i+1)); done",
    "deep directories": "cd /data; while mkdir d && cd d; do :; done; sleep 999",
    "forks": "for i in 1 2 3 4 5 6; do (trap '' TERM; cat /dev/zero >/data/$i) & done; trap '' TERM; wait",
    "sparse": """python3 -c "
import os, time
for i in range(5): os.truncate(os.open(f'/data/{i}', os.O_CREAT | os.O_RDWR), 4 << 20)
time.sleep(999)" """,
    "allocated": """python3 -c "
import os, time
fd = os.open('/data/one', os.O_CREAT | os.O_RDWR)
for i in range(4): os.posix_fallocate(os.open(f'/data/{i}', os.O_CREAT | os.O_RDWR), 0, 4 << 20)
time.sleep(999)" """,
    "deleted and open": """python3 -c "
import os, time
for i in range(5):
    fd = os.open(f'/data/{i}', os.O_CREAT | os.O_RDWR)
    os.unlink(f'/data/{i}')
    for _ in range(4): os.write(fd, bytes(1 << 20))
time.sleep(999)" """,
    "deleted and mapped": """python3 -c "
import mmap, os, time
maps = []
for i in range(5):
    fd = os.open(f'/data/{i}', os.O_CREAT | os.O_RDWR)
    os.unlink(f'/data/{i}')
    for _ in range(4): os.write(fd, bytes(1 << 20))
    maps.append(mmap.mmap(fd, 4 << 20, mmap.MAP_SHARED)); os.closerange(3, 64)  # mmap has one of its own
    del fd
time.sleep(999)" """,
    "deleted and mapped, with a line's end in its name": r"""python3 -c "
import mmap, os, time
maps = []
for i in range(5):
    fd = os.open(f'/data/{i}\r', os.O_CREAT | os.O_RDWR)
    os.unlink(f'/data/{i}\r')
    for _ in range(4): os.write(fd, bytes(1 << 20))
    maps.append(mmap.mmap(fd, 4 << 20, mmap.MAP_SHARED)); os.closerange(3, 64)  # mmap has one of its own
    del fd
time.sleep(999)" """,
    "deleted and open, by threads of a process whose first has ended": """python3 -c "
import ctypes, os, threading, time
def fill():
    time.sleep(0.5)
    for i in range(5):
        os.posix_fallocate(os.open(f'/data/{i}', os.O_CREAT | os.O_RDWR), 0, 4 << 20)
        os.unlink(f'/data/{i}')
    time.sleep(999)
threading.Thread(target=fill).start()
ctypes.CDLL(None).pthread_exit(None)" """,
    "deleted and mapped, by threads of a process whose first has ended": """python3 -c "
import ctypes, mmap, os, threading, time
def fill():
    time.sleep(0.5)
    maps = []
    for i in range(5):
        fd = os.open(f'/data/{i}', os.O_CREAT | os.O_RDWR)
        os.posix_fallocate(fd, 0, 4 << 20)
        maps.append(mmap.mmap(fd, 4 << 20, mmap.MAP_SHARED))
        os.unlink(f'/data/{i}')
        os.closerange(3, 64)
    time.sleep(999)
threading.Thread(target=fill).start()
ctypes.CDLL(None).pthread_exit(None)" """,
    "deleted and open, by a thread with descriptors of its own": """python3 -c "
import ctypes, mmap, os, time
libc, stack = ctypes.CDLL(None), mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
top = ctypes.addressof(ctypes.c_char.from_buffer(stack)) + (1 << 20)
for i in range(5):
    os.posix_fallocate(os.open(f'/data/{i}', os.O_CREAT | os.O_RDWR), 0, 4 << 20)
    os.unlink(f'/data/{i}')
# CLONE_VM, CLONE_FS, CLONE_SIGHAND, CLONE_THREAD, CLONE_SYSVSEM: all that a thread has but CLONE_FILES.
assert libc.clone(libc.pause, ctypes.c_void_p(top), 0x100 | 0x200 | 0x800 | 0x10000 | 0x40000, None) > 0
os.closerange(3, 64)
time.sleep(999)" """,
    "unreadable": "mkdir /data/d; head -c 9000000 /dev/zero >/data/d/a; chmod 0 /data/d; sleep 999",
}


@pytest.mark.parametrize("how", FILLERS)
async def test_program_over_its_quota_is_ended_for_good(here, how):
    """All its processes are killed, and it starts again only when it is put again with what is there now."""
    one = {**QUOTA, "bytes": 16 * MIB} if "deep" in how or "many" in how else QUOTA
    await here.put("web", FILLERS[how], data=one)
    found = await here.until_state("failed", "web")
    assert found["last_error"]["code"] in {"data_full", "file_too_large"}
    assert tree() == set()
    if "deleted" in how:  # they went with the processes
        await here.put("web", "echo up; sleep 999", data=one)
        await here.until_said("up", "web")
        return
    await here.put("web", "echo up; sleep 999", data=one)
    await here.until_state("failed", "web")
    assert "up" not in here.program("web").output()["stdout"]
    assert await here.call("service.delete", name="web", data=True) == {"ok": True}
    await here.put("web", "echo up; sleep 999", data=one)
    await here.until_said("up", "web")


# What the daemon finds of processes of its own user: what it may go on with, or the code of their end.
LOOK = """
import asyncio, ctypes, os, signal, sys
from pathlib import Path
from latticed.host.program.data import KeptDirectory
from latticed.host.program.data_tree import DataUse

def process(*, dumpable=1, ends=False):
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        ctypes.CDLL(None).prctl(4, dumpable, 0, 0, 0)
        os.write(writing, b"x")
        ends or signal.pause()
        os._exit(0)
    os.read(reading, 1)
    if ends:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid

ours, hiding, ended = process(), process(dumpable=0), process(ends=True)
for roots in ((ours, ended), (ours, hiding), (hiding, ended)):
    found = KeptDirectory(Path(sys.argv[1]), DataUse(bytes=1 << 30, files=10))._look(roots)
    print(found.code if found else "goes on")
for pid in (ours, hiding):
    os.kill(pid, signal.SIGKILL)
for _ in range(3):
    os.wait()
"""


def test_process_that_hides_which_files_it_has_is_over_its_quota():
    """One that has ended hides nothing. Where no process can be looked at, the host is at fault, and none is ended."""
    nobody = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        command = [sys.executable, "-P", "-c", LOOK, place]
        environment = {**os.environ, "PYTHONPATH": os.fspath(Path(__file__).parents[3])}
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, **nobody)
    assert found.stdout.split("\n")[:-1] == ["goes on", "data_full", "goes on"]


async def test_overshoot_is_bounded_by_what_is_written_between_two_looks(here, tmp_path):
    """RLIMIT_FSIZE alone would let each of these files grow to the whole quota."""
    await here.put("web", "i=0; while :; do i=$((i+1)); head -c 4000000 /dev/zero >/data/$i; done", data=QUOTA)
    await here.until_state("failed", "web")
    use = data_tree.measure(place(tmp_path), DataUse(bytes=1 << 50, files=1 << 50))
    # Far below the quota times the number of files: the watch ended it, not the disk.
    assert QUOTA["bytes"] < use.bytes < 200 * QUOTA["bytes"]


async def test_program_within_its_quota_runs_on_while_others_write(here, tmp_path):
    """Its own directory counts, not the disk's free space."""
    await here.put("web", "echo a >/data/a; echo up; sleep 999", data=QUOTA)
    await here.until_said("up", "web")
    await asyncio.to_thread((tmp_path / "noise").write_bytes, bytes(64 * MIB))
    kept = here.programs.get(A.plugin_id, "web").kept
    before = kept._last.at_s
    await until(lambda: kept._last.at_s > before)
    assert (await here.status("web"))["state"] == "running"


async def test_program_waits_while_the_disk_is_nearly_full(here, monkeypatch):
    """It does not open the breaker, however long that lasts."""
    monkeypatch.setattr(quota, "RESERVE_BYTES", 1 << 60)
    await here.put("web", "echo up; sleep 999", data=QUOTA)
    await until(lambda: here.program("web").restarts > 4)
    found = await here.status("web")
    assert found["last_error"]["code"] == "disk_full"
    monkeypatch.setattr(quota, "RESERVE_BYTES", 1)
    await here.until_said("up", "web")
    monkeypatch.setattr(quota, "RESERVE_BYTES", 1 << 60)
    await until(lambda: here.program("web").state == "waiting")
    assert tree() == set()


async def test_lowered_bound_of_the_operator_counts_at_the_next_start(here):
    await here.put("web", "head -c 100000 /dev/zero >/data/file; echo up; sleep 999", data=QUOTA)
    await here.until_said("up", "web")
    here.programs.settings = here.settings.__class__(programs=here.settings.programs, data_bytes=50_000)
    here.allowed.clear()
    await here.until_state("stopped", "web")
    here.allowed.add(A.plugin_id)
    found = await here.until_state("failed", "web")
    assert found["last_error"]["code"] == "data_full"


# The directory's functions.


def test_any_tree_is_removed(tmp_path):
    """Thousands of levels, directories without permissions, links to elsewhere."""
    top, outside = tmp_path / "top", tmp_path / "outside"
    outside.mkdir(mode=0o750)
    (outside / "kept").write_text("kept")
    top.mkdir()
    (top / "link").symlink_to(outside)
    os.mkfifo(top / "fifo")
    closed = top / "closed"
    closed.mkdir()
    (closed / "file").write_text("x")
    (closed / "inner").mkdir(mode=0)
    closed.chmod(0)
    os.mkdir(os.fsencode(top) + b"/\xff\n")
    fd = os.open(top, os.O_RDONLY)
    for _ in range(3_000):
        os.mkdir("deep", dir_fd=fd)
        below = os.open("deep", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    assert data_tree.remove(top)
    assert not top.exists()
    assert not data_tree.remove(top)
    assert (outside / "kept").read_text() == "kept"
    assert stat.S_IMODE(outside.stat().st_mode) == 0o750


def test_measuring_counts_sparse_files_whole_and_links_once(tmp_path):
    most = DataUse(bytes=1 << 40, files=1_000)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    (tmp_path / "small").write_text("x")
    os.link(tmp_path / "small", tmp_path / "again")
    (tmp_path / "away").symlink_to("/usr")
    found = data_tree.measure(tmp_path, most)
    assert found.files == 4
    assert (1 << 30) + 1 <= found.bytes < (1 << 30) + 3 * 4_096
    assert data_tree.measure(tmp_path, DataUse(bytes=1 << 40, files=1)).files == 2


def test_too_deep_a_tree_is_told(tmp_path):
    Path(tmp_path, *["d"] * (data_tree.MAX_LEVELS - 1)).mkdir(parents=True)
    assert data_tree.measure(tmp_path, DataUse(bytes=1 << 40, files=1_000)).files == data_tree.MAX_LEVELS - 1
    Path(tmp_path, *["d"] * data_tree.MAX_LEVELS).mkdir()
    Path(tmp_path, *["d"] * (data_tree.MAX_LEVELS + 1)).mkdir()
    with pytest.raises(data_tree.TooDeep):
        data_tree.measure(tmp_path, DataUse(bytes=1 << 40, files=1_000))


@pytest.mark.parametrize("other", ["file", "link", "nothing"])
def test_directory_that_is_replaced_while_a_tree_is_walked_counts_as_vanished(tmp_path, other):
    (tmp_path / "d" / "below").mkdir(parents=True)
    (tmp_path / "e").write_text("")
    seen = set()
    for entry in data_tree.walk(tmp_path):
        seen.add(entry.path)
        if entry.path == b"d":
            (tmp_path / "d").rename(tmp_path / "moved")
            if other == "file":
                (tmp_path / "d").write_text("")
            elif other == "link":
                (tmp_path / "d").symlink_to("moved")
    assert seen == {b"d", b"e"}


RENAME = """
import os, sys
os.chdir(sys.argv[1])
print("up", flush=True)
while True:
    for number in range(5_000):
        os.rename(f"file-with-a-name-{number}", "other")
        os.rename("other", f"file-with-a-name-{number}")
"""


def test_file_that_is_renamed_while_a_tree_is_walked_is_seen_once(tmp_path):
    """On a tmpfs a new name is listed after all others, also when it was listed before."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else tmp_path) as top:
        for number in range(5_000):
            Path(top, f"file-with-a-name-{number}").touch()
        with processes.spawned([sys.executable, "-c", RENAME, top]) as child:
            assert child.stdout.readline() == b"up\n"
            for _ in range(60):
                seen = [entry.path for entry in data_tree.walk(Path(top))]
                assert len(seen) == len(set(seen))


def test_link_in_place_of_the_directory_is_not_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OSError, match="Not a directory"):
        list(data_tree.walk(tmp_path / "link"))


async def test_purge_removes_what_services_of_any_publisher_kept(tmp_path):
    data = ServiceData(tmp_path / "services")
    for owner, name in (("acme/one.a", "web"), ("other/one.a", "db"), ("acme/one.b", "web")):
        await data.made(owner, name, DataUse(bytes=1_000, files=10))
    assert await data.count("one.a") == 2
    assert await data.purge("one.a") == 2
    assert await data.count("one.a") == 0
    assert data.services() == [("acme", "one.b", "web")]
    assert await data.purge("one.a") == 0


async def test_full_directory_refuses_the_start(tmp_path):
    data = ServiceData(tmp_path / "services")
    (await data.made("acme/a", "web", DataUse(bytes=10, files=1))).path.joinpath("file").write_bytes(bytes(11))
    with pytest.raises(ProgramRefused) as refused:
        await data.made("acme/a", "web", DataUse(bytes=10, files=1))
    assert (refused.value.code, refused.value.ended.final) == ("data_full", True)
    shutil.rmtree(tmp_path / "services")


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40), st.floats(0, 100), st.floats(0, 3))
def test_measurement_is_due_before_the_quota_can_be_passed_unseen(used, fallen, since_s, took_s):
    """A fall of the free space by more than what is left, or enough time, is always looked into."""
    most = DataUse(bytes=1 << 40, files=1_000)
    last = Looked(use=DataUse(bytes=used), free=FreeSpace(bytes=1 << 41, files=9), at_s=0.0, took_s=took_s)
    due = quota.scan_due(last, FreeSpace(bytes=(1 << 41) - fallen, files=9), most, now_s=since_s)
    if since_s >= max(quota.LOOK_S, 20 * took_s) or (fallen > most.bytes - used and since_s >= 2 * took_s):
        assert due
    if since_s < min(quota.LOOK_S, 2 * took_s):
        assert not due
