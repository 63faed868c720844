"""What the root helper insists on before it serves: settings, code and directories that root alone can change."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from latticed.plans import protocol
from tests.house import apply_helpers, processes, traces
from tests.house.apply_helpers import BASE, DAEMON, WIDE

pytestmark = [pytest.mark.daemon, pytest.mark.root]
MODULE = [sys.executable, "-I", "-m", "latticed.apply"]


@pytest.fixture
def place():
    with apply_helpers.place() as place:
        yield place


def ended(place, *options, command=None):
    """Exit code and words of a helper that does not come to serve."""
    ran = subprocess.run(
        [*(command or place.command()), *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=processes.PATIENCE_S,
        env={},
        cwd="/",
    )
    return ran.returncode, ran.stderr


def _config_of_the_daemons(place):
    os.chown(place.config, DAEMON.uid, 0)


def _config_others_may_write(place):
    place.config.chmod(0o664)


def _config_in_a_directory_of_the_daemons(place):
    os.chown(place.home, DAEMON.uid, 0)


def _state_of_the_daemons(place):
    place.state.mkdir()
    os.chown(place.state, DAEMON.uid, 0)


def _socket_in_a_directory_of_the_daemons(place):
    (place.home / "run").mkdir()
    os.chown(place.home / "run", DAEMON.uid, 0)


def _state_behind_a_link(place):
    (place.home / "elsewhere").mkdir()
    place.state.symlink_to(place.home / "elsewhere")


def _code_of_the_daemons(place):
    os.chown(place.home / "code", DAEMON.uid, 0)


def _module_of_the_daemons(place):
    os.chown(place.home / "code/file_kind.py", DAEMON.uid, 0)


def _module_others_may_write(place):
    (place.home / "code/file_kind.py").chmod(0o666)


@pytest.mark.parametrize(
    "spoil",
    [
        _config_of_the_daemons,
        _config_others_may_write,
        _config_in_a_directory_of_the_daemons,
        _state_of_the_daemons,
        _socket_in_a_directory_of_the_daemons,
        _state_behind_a_link,
        _code_of_the_daemons,
        _module_of_the_daemons,
        _module_others_may_write,
    ],
)
def test_what_the_daemons_user_could_change_is_exit_78(place, spoil):
    place.write_settings()
    spoil(place)
    code, words = ended(place)
    assert (code, words.startswith("latticed-apply: settings_invalid: ")) == (78, True), words
    assert not (place.home / "state/key").exists()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("daemon_user", "root", "expected the daemon's user, found root"),
        ("daemon_user", "no-such-user", "expected a user of this host"),
        ("approvers", ["no-such-user"], "expected a user of this host"),
        ("approvers", ["@no-such-group"], "expected a group"),
        ("kinds", ["no-such"], "this version applies no plans of kind 'no-such'"),
        ("state_dir", "state", "expected an absolute path"),
        ("state_dir", "", "expected an absolute path"),
        ("unknown", 1, "unknown key 'apply.unknown'"),
    ],
)
def test_bad_settings_are_exit_78(place, key, value, words):
    place.settings[key] = value
    place.write_settings()
    code, said = ended(place)
    assert code == 78
    assert words in said


def test_second_helper_on_the_same_directory_is_exit_75(place):
    with place.running():
        code, words = ended(place)
        assert (code, "already_running" in words) == (75, True)
        assert place.observed().kinds == ("file", "other")


def test_others_than_root_cannot_run_it(place):
    place.write_settings()
    command = [processes.reachable_python(), "-I", "-m", "latticed.apply"]
    ran = subprocess.run(
        command, user=DAEMON.uid, group=DAEMON.gid, capture_output=True, text=True, check=False, env={}, cwd="/"
    )
    assert (ran.returncode, "not_root" in ran.stderr) == (os.EX_NOPERM, True), ran.stderr


def test_a_kind_that_the_product_has_not_is_an_error_and_without_any_plans_are_refused_by_name(place):
    place.settings["kinds"] = []
    place.write_settings()
    with processes.spawned([*MODULE, "--config", place.config], env={}) as helper:
        processes.until(place.is_up, what="the helper")
        answer = place.ask(protocol.Offer(kind="nft", intent={}), user=DAEMON)
        assert (answer.code, "it applies: none" in answer.message) == ("kind_unknown", True)
        helper.terminate()
        assert helper.wait(processes.PATIENCE_S) == 0
    place.settings["kinds"] = ["no-such"]
    place.write_settings()
    assert ended(place, "--config", str(place.config), command=MODULE)[0] == 78


def test_environment_of_the_caller_is_not_looked_at(place):
    """Variables of latticed, PYTHONPATH, modules in the working directory: a helper without -I starts itself anew."""
    trap = place.home / "trap"
    trap.mkdir()
    for name in ("msgspec", "structlog", "tomllib", "fcntl", "asyncio"):
        (trap / f"{name}.py").write_text(f"open({str(trap / 'sprung')!r}, 'a').write('{name} ')\n")
    place.settings["kinds"] = []
    place.write_settings()
    environment = {"PYTHONPATH": str(trap), "LATTICED_STATE_DIR": "/nonexistent", "LD_BIND_NOW": "1"}
    command = [sys.executable, "-c", "from latticed import apply; apply.main()"]
    with processes.spawned(
        [*command, "--config", place.config], env=environment, cwd=trap, stderr=place.home / "log"
    ) as helper:
        processes.until(lambda: place.is_up() or helper.poll() is not None, what="the helper")
        assert helper.poll() is None, place.log()
        own = Path(f"/proc/{helper.pid}/environ").read_bytes()
        assert own == b""
        assert Path(f"/proc/{helper.pid}/cmdline").read_bytes().split(b"\0")[1] == b"-I"
    assert not (trap / "sprung").exists()


def test_helper_opens_no_file_and_runs_no_program_outside_its_list(place):
    """It is watched by strace from its start through review, apply, undoing and confirming, with its dead-men and
    programs.
    """
    trace = place.home / "trace"
    place.before = traces.watching(trace)
    place.settings["confirm_within_s"] = 6  # strace slows the dead-man's start down
    with place.running() as helper:
        plan = place.offer(WIDE, user=None)
        place.ask(protocol.Approve(plan=plan, review=place.review(plan).review))
        place.ask(protocol.Apply(plan=plan))
        processes.until(lambda: place.state_of(plan) == "rolled_back", what="the undoing")
        place.applied(BASE)
        processes.until(lambda: not place.dead_men(), what="the dead-men to end")
        helper.send_signal(signal.SIGTERM)
        helper.wait(processes.PATIENCE_S)
    found = traces.touched(trace)
    assert found.keys() == {sys.executable, "/usr/bin/tee"}
    assert traces.strays(place, set().union(*found.values()), found) == set()
    with contextlib.suppress(FileNotFoundError):
        assert not any("trace" in one for one in os.listdir(place.state))
