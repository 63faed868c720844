"""What the root helper keeps: the chain of steps, records, locks; and the programs that it runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec import structs

from latticed.kit.clock import SystemClock
from latticed.model import chain
from latticed.model.errors import Problem
from latticed.plans import programs, protocol, steps, store
from latticed.plans.programs import ProgramTools
from latticed.plans.records import Armed, Target
from latticed.plans.steps import StepChain
from latticed.plans.store import Store
from tests.house import processes

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0 to give directories to others")


@pytest.fixture
def kept(tmp_path):
    found = Store(tmp_path)
    found.open()
    return found


@pytest.fixture
def linked(tmp_path):
    (tmp_path / "steps").mkdir()
    return StepChain(tmp_path / "steps", SystemClock())


# Steps


def test_steps_are_linked_across_files_and_the_oldest_go(linked, monkeypatch, tmp_path):
    monkeypatch.setattr(steps, "PER_FILE", 3)
    monkeypatch.setattr(steps, "FILES", 2)
    for number in range(8):
        linked.append("plan.apply", "a" * 64, actor="uid:0 user:root pid:1", n=number, word="a\nb", yes=True)
    first, last = linked.bounds()
    assert (first, last) == (4, 8)
    found = linked.after(0, 500)
    assert [one.seq for one in found] == [4, 5, 6, 7, 8]
    assert steps.verify(found, prev=found[0].prev) == 5
    assert found[0].detail == {"n": 3, "word": "a\\x0ab", "yes": True}
    assert [one.seq for one in linked.after(5, 2)] == [6, 7]
    assert linked.after(8, 5) == ()


def test_first_step_follows_the_genesis(linked):
    assert linked.bounds() == (0, 0)
    linked.append("plan.approve", "x", actor="a")
    (one,) = linked.after(0, 5)
    assert (one.seq, one.prev) == (1, chain.GENESIS)


@pytest.mark.parametrize("how", ["edit", "drop", "swap"])
def test_altered_copies_of_steps_are_noticed(linked, how):
    for number in range(5):
        linked.append("plan.apply", "x", actor="a", n=number)
    found = list(linked.after(0, 10))
    match how:
        case "edit":
            found[2] = structs.replace(found[2], reason="forged")
        case "drop":
            del found[2]
        case "swap":
            found[2], found[3] = found[3], found[2]
    assert steps.verify(found) == 2


def test_half_a_line_of_a_killed_writer_is_no_step(linked, tmp_path):
    """It may be cut anywhere: the next step follows the last whole one."""
    for _ in range(3):
        linked.append("plan.apply", "x", actor="a")
    file = tmp_path / "steps/00000000.ndjson"
    whole = file.read_bytes()
    for cut in (*range(1, 12), len(whole) // 2, len(whole) - 1, len(whole)):
        file.write_bytes(whole[: len(whole) - cut])
        linked.append("plan.confirm", "x", actor="a")
        found = linked.after(0, 10)
        assert steps.verify(found) == len(found)
        assert found[-1].action == "plan.confirm"


# Store


def test_killed_writes_leave_nothing(kept, tmp_path):
    """Half-written files, snapshots and secrets that nothing refers to go at the next start; what is armed stays."""
    armed = Armed(
        apply_id="77", plan="a" * 64, intent={}, macs={}, boot_id="b", deadline_ns=1, narrows=False, committed=True
    )
    kept.put_target(Target(kind="file", rendering="66", armed=armed))
    for apply_id, what in (("77", "snapshot"), ("77", "rendering"), ("66", "rendering"), ("55", "snapshot")):
        kept.hold(apply_id, what, b"x")
    kept.put_secrets("c" * 64, {"A": "v"})
    (tmp_path / "plans/.x.json.0123456789ab").write_text("{")
    Store(tmp_path).open()
    assert sorted(os.listdir(tmp_path / "held")) == ["66.rendering", "77.rendering", "77.snapshot"]
    assert os.listdir(tmp_path / "plans") == []
    assert os.listdir(tmp_path / "secrets") == []


def test_all_files_are_the_owners_alone(kept, tmp_path):
    kept.put_target(Target(kind="file"))
    kept.hold("1", "snapshot", b"x")
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {0o600}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir() if path.is_dir()} == {0o700}


def test_target_that_cannot_be_understood_is_no_empty_one(kept, tmp_path):
    (tmp_path / "targets/file.json").write_text('{"kind": "file", "armed"')
    with pytest.raises(Problem, match="state_unusable"):
        kept.target("file")
    assert kept.target("other") == Target(kind="other")


def test_names_lead_nowhere_else(kept):
    for name in ("../key", "a" * 63, "A" * 64, "a" * 64 + "\n", ""):
        assert kept.plan(name) is None


def test_key_stays(kept, tmp_path):
    key = kept.key()
    again = Store(tmp_path)
    again.open()
    assert again.key() == key
    (tmp_path / "key").write_bytes(b"short")
    with pytest.raises(Problem, match="state_unusable"):
        again.key()


def test_lock_is_one_for_each_kind_and_held_by_programs_too(kept):
    with kept.locked("file", deadline_s=0):
        with pytest.raises(Problem, match="busy"), Store(kept.steps.parent).locked("file", deadline_s=0.05):
            pass
        with Store(kept.steps.parent).locked("other", deadline_s=0):
            pass
    with kept.locked("file", deadline_s=0) as lock:
        child = os.posix_spawn("/bin/sleep", ["sleep", "30"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, lock, 9)])
    try:
        with pytest.raises(Problem, match="busy"), kept.locked("file", deadline_s=0.05):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with kept.locked("file", deadline_s=5):
        pass


@root
@pytest.mark.parametrize("spoil", ["owner", "mode", "parent", "link", "file"])
def test_place_that_others_could_change(tmp_path, spoil):
    place = tmp_path / "a/b"
    place.mkdir(parents=True)
    store.check_place(place)
    store.check_place(place / "not/yet")
    match spoil:
        case "owner":
            os.chown(place, 1, 1)
        case "mode":
            place.chmod(0o775)
        case "parent":
            os.chown(place.parent, 1, 1)
        case "link":
            place.rmdir()
            place.symlink_to("/tmp")
        case "file":
            place.rmdir()
            place.touch()
    with pytest.raises(Problem, match="settings_invalid"):
        store.check_place(place)
    with pytest.raises(Problem, match="settings_invalid"):
        store.check_place(place / "not/yet")


# Programs


def tools(deadline_s=5.0, **paths):
    return ProgramTools({"sh": "/bin/sh", "cat": "/bin/cat", **paths}, deadline_s=deadline_s)


@root
def test_program_gets_its_input_an_empty_environment_and_a_group_of_its_own():
    big = os.urandom(1 << 20)
    assert tools().run("cat", stdin=big).stdout == big
    ended = tools().run("sh", "-c", "echo $PPID $$ $HOME $VIRTUAL_ENV; ps -o pgid= $$ >&2; pwd; exit 7")
    assert ended.status == 7
    parent, own = map(int, ended.stdout.split()[:2])
    assert parent == os.getpid()
    assert int(ended.stderr) == own
    assert ended.stdout.split()[-1] == b"/"
    assert len(ended.stdout.split()) == 3, "no variable of ours"


@root
def test_programs_that_wait_for_their_input_are_given_it_in_any_order_or_killed_without(tmp_path):
    told = tmp_path / "told"
    with (
        tools().waiting("cat", first=b"1" * 5_000) as first,
        tools().waiting("cat") as second,
        tools().waiting("sh", "-c", f"echo $$ > {told}; read word; echo $word > {told}") as _,
    ):
        assert second(b"2").stdout == b"2"
        assert first(b"1" * (1 << 20)).stdout == b"1" * ((1 << 20) + 5_000)
        processes.until(lambda: told.exists() and told.read_text().endswith("\n"), what="the third program")
    # Not by the end of its input, which it would have taken for a word.
    assert not Path(f"/proc/{int(told.read_text())}").exists()


@root
def test_program_that_does_not_end_is_killed_with_all_it_started():
    began = time.monotonic()
    with pytest.raises(Problem, match="did not end in time"):
        tools(deadline_s=0.3).run("sh", "-c", "sleep 60 & sleep 60")
    assert time.monotonic() - began < 3
    with pytest.raises(Problem, match="did not end in time"):
        tools(deadline_s=0.3).run("sh", "-c", "exec >&- 2>&- <&-; sleep 60")
    with pytest.raises(Problem, match="printed more than"):
        tools(deadline_s=20).run("sh", "-c", "cat /dev/zero")


@root
def test_program_that_reads_nothing_or_dies():
    assert tools().run("sh", "-c", "exit 3", stdin=b"x" * (1 << 20)).status == 3
    assert tools().run("sh", "-c", "kill -9 $$").status == -9


FAVOURED = """
import sys
from latticed.plans import dead_man, programs
dead_man.be_favoured()
tools = programs.ProgramTools({"sh": "/bin/sh"})
for stays in (False, True):
    ended = tools.run("sh", "-c", "nice; cat /proc/self/oom_score_adj", stays=stays)
    print(*ended.stdout.decode().split())
"""


@root
def test_program_that_stays_is_favoured_no_more_than_others():
    """As nginx or a core that a dead-man has started again: the kernel would end everything else before it."""
    trial = [sys.executable, "-c", "import os; os.setpriority(os.PRIO_PROCESS, 0, -10)"]
    if subprocess.run(trial, capture_output=True, check=False).returncode:
        pytest.skip("no priority below 0 is granted here")
    done = subprocess.run([sys.executable, "-P", "-c", FAVOURED], capture_output=True, text=True, check=True)
    (ends, granted), (stays, score) = (line.split() for line in done.stdout.splitlines())
    assert (int(ends), int(stays)) == (-10, 0)
    # A container may not be granted less than it has.
    assert int(score) == max(0, int(granted))
    # As the words for -900 do it, where only a higher one can be set.
    higher = ["nice", "-n", str(-10 - os.getpriority(os.PRIO_PROCESS, 0)), "choom", "-n", "300", "--"]
    told = ["sh", "-c", "nice; cat /proc/self/oom_score_adj"]
    for words, expected in (([], "-10 300"), (programs._unfavoured(-10, -900), "0 0")):
        shown = subprocess.run([*higher, *words, *told], capture_output=True, text=True, check=True).stdout
        assert " ".join(shown.split()) == expected


@root
def test_program_that_others_could_replace_is_not_run(tmp_path):
    own = tmp_path / "tool"
    own.write_text("#!/bin/sh\necho run\n")
    own.chmod(0o755)
    assert tools(own=str(own)).run("own").stdout == b"run\n"
    own.chmod(0o777)
    with pytest.raises(Problem, match="tool_missing"):
        tools(own=str(own)).run("own")
    with pytest.raises(Problem, match="tool_missing"):
        tools(own=str(tmp_path / "none")).run("own")
    with pytest.raises(KeyError):
        tools().run("unnamed")


@root
def test_words_of_a_failed_program_are_escaped():
    problem = programs.failed("sh", tools().run("sh", "-c", "printf 'a\\033[31mb' >&2; exit 1"))
    assert problem.reason == "sh ended with status 1: a\\x1b[31mb"
    assert protocol.CODES[problem.code] == 502
