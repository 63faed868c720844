"""The autouse fixtures of tests/conftest.py fail the tests that they should, and no others."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]

# Each test is named for the word its failure must show, or for being fine.
SAMPLE = '''
import asyncio, os, socket, subprocess, sys, threading, time, types, warnings
import pytest

kept = []

def latticed_module(source):
    """A function that claims to live in latticed."""
    module = {"__name__": "latticed.module"}
    exec("import asyncio, socket, subprocess, threading, time\\n" + source, module)
    return module["work"]

async def test_task():
    kept.append(asyncio.create_task(asyncio.Event().wait(), name="forgotten"))

def test_thread():
    kept.append(threading.Thread(target=time.sleep, args=(8,), daemon=True))
    kept[-1].start()

def test_child():
    kept.append(subprocess.Popen(["sleep", "8"]))

def test_descriptor():
    kept.append(os.open("/dev/null", os.O_RDONLY))

async def test_reported():
    async def fail():
        raise ValueError("unheard")
    task = asyncio.create_task(fail())
    await asyncio.wait([task])
    del task

def test_warning():
    warnings.warn("old")

@pytest.mark.parametrize("call", ["time.sleep(0)", "subprocess.run(['true'])", "socket.socketpair()[0].recv(1)"])
async def test_blocked(call):
    work = latticed_module(f"def work(): {call}")
    try:
        work()
    except Exception:
        pass  # swallowed, and still seen

async def test_fine():
    work = latticed_module("""
async def work():
    await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_unix_connection(sock=socket.socketpair()[0])
    writer.close()
    process = await asyncio.create_subprocess_exec("true")
    await process.wait()
    await asyncio.to_thread(time.sleep, 0)
    helper = threading.Thread(target=time.sleep, args=(0,)); helper.start()
    await asyncio.to_thread(helper.join)
""")
    await work()
    time.sleep(0)
    subprocess.run(["true"], check=True)

def test_fine_without_a_loop():
    latticed_module("def work(): time.sleep(0); subprocess.run(['true'])")()

def test_listed_skip():
    pytest.skip("the weather is bad")

def test_other_skip():
    pytest.skip("no reason given")
'''


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """The output of pytest over SAMPLE in a tree with our conftest, in CI's mode."""
    tree = tmp_path_factory.mktemp("tree")
    (tree / "tests").mkdir()
    (tree / "setup.cfg").write_text((TESTS.parent / "setup.cfg").read_text())
    shutil.copy(TESTS / "conftest.py", tree / "tests")
    shutil.copytree(TESTS / "house", tree / "tests/house", ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "tests/skips.txt").write_text("weather\tit changes\n")
    (tree / "tests/test_sample.py").write_text(SAMPLE)
    leftovers = tree / "tests/house/leftovers.py"
    leftovers.write_text(re.sub(r"SETTLE_S = \S+", "SETTLE_S = 0.3", leftovers.read_text()))
    command = [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rA", "--tb=short", "tests"]
    env = {**os.environ, "CI": "true", "COLUMNS": "200"}
    ran = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, check=False, timeout=50)
    return ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("task", "task 'forgotten'"),
        ("thread", r"thread 'Thread-\d+"),
        ("child", r"child process \d+ \(sleep 8\)"),
        ("descriptor", r"descriptor \d+ \(/dev/null\)"),
        ("reported", "asyncio reported: Task exception was never retrieved"),
    ],
)
def test_leftovers_fail_the_test_that_left_them(outcome, name, seen):
    """Each is an error at the end of that test."""
    assert re.search(rf"^ERROR tests/test_sample.py::test_{name} - .*left behind", outcome, re.MULTILINE), outcome
    assert re.search(seen, outcome), outcome


def test_warning_fails_its_test(outcome):
    assert "FAILED tests/test_sample.py::test_warning - UserWarning: old" in outcome


@pytest.mark.parametrize("call", ["time.sleep", "communicate", "socket.recv"])
def test_blocking_call_in_the_event_loop_fails_its_test(outcome, call):
    """It fails even if latticed swallows the exception."""
    assert re.search(rf"  {call} in the event loop, called by", outcome), outcome
    assert len(re.findall(r"^ERROR .*test_blocked", outcome, re.MULTILINE)) == 3


def test_blocking_call_outside_the_event_loop_passes(outcome):
    """It may be made in a thread, where no loop runs, or in the test itself."""
    for name in ("fine", "fine_without_a_loop"):
        assert f"PASSED tests/test_sample.py::test_{name}" in outcome, outcome
        assert f"ERROR tests/test_sample.py::test_{name} " not in outcome


def test_unlisted_skip_fails_the_run_in_ci(outcome):
    """Only the skips of tests/skips.txt are accepted."""
    section = outcome.split("skips that tests/skips.txt does not list")[1]
    assert "test_other_skip: no reason given" in section
    assert "test_listed_skip" not in section.split("short test summary")[0]
