"""Checks of every test: it leaves nothing running, warnings are errors, and latticed never blocks its loop."""

from __future__ import annotations

import compileall
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).resolve().parent

# `from tests.house import ...` without the checkout on sys.path: there, `latticed` would hide the installed wheel.
if not hasattr(sys.modules.get("tests"), "__path__"):
    sys.modules["tests"] = ModuleType("tests")
sys.modules["tests"].__path__ = [str(HERE)]

from tests.house import blocking, leftovers, long, skips  # noqa: E402 - after the path is made


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # A directory of this session's own for `tmp_path`. The usual one (/tmp/pytest-of-USER) is shared: each pytest that
    # starts takes it away from other users again, and some tests here run programs as such.
    if config.option.basetemp is None and not hasattr(config, "workerinput"):
        place = tempfile.mkdtemp(prefix="lt-")
        config.option.basetemp = os.path.join(place, "p")
        config.add_cleanup(lambda: shutil.rmtree(place, ignore_errors=True))
    config.pluginmanager.register(skips.from_file(HERE / "skips.txt"), "skip-rule")


def pytest_sessionstart() -> None:
    from hypothesis import HealthCheck, settings

    import latticed

    # Hypothesis fails an example of more than 200 ms otherwise, and a test whose first examples take more than a second
    # to draw: one that imports a library, on a busy machine. The sample is the same in each run, as in Hypothesis's own
    # profile for CI, so that whoever runs it finds what the last one found; the long run searches.
    settings.register_profile(
        "ours",
        settings.default,
        max_examples=long.times(50, 500),
        derandomize=not long.LONG,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("ours")

    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background: every program would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    place = Path(latticed.__file__).resolve()
    if os.environ.get("LATTICED_TEST_INSTALLED") == "1":
        assert "site-packages" in place.parts, f"expected the installed wheel, found {place}"
    if not sys.dont_write_bytecode:
        # Daemons under other uids cannot write bytecode here: each of them would compile every module again (0.4 s).
        compileall.compile_dir(place.parent, quiet=2)


@pytest.fixture(autouse=True)
def nothing_left_alive() -> Iterator[None]:
    """Fail a test that leaves a task, a thread, a child process, a descriptor or an unheard exception."""
    before = leftovers.survey()
    with leftovers.watched_loops() as tasks, leftovers.Unheard() as unheard:
        yield
    found = [*tasks, *unheard.found, *leftovers.settled(before)]
    if found:
        pytest.fail("left behind by this test:\n  " + "\n  ".join(found), pytrace=False)


@pytest.fixture(autouse=True)
def blocking_calls_raise(nothing_left_alive: None) -> Iterator[None]:
    """Raise, and fail the test, when latticed blocks its own event loop."""
    with pytest.MonkeyPatch.context() as patches:
        caught = blocking.forbid(patches)
        yield
    if caught:
        pytest.fail("latticed blocked its event loop:\n  " + "\n  ".join(caught), pytrace=False)
