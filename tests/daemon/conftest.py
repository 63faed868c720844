"""A place for a daemon, a publisher it trusts, and the daemon itself, fresh for each test."""

from __future__ import annotations

import os

import pytest

from tests.house import bundles, daemons, faults


def pytest_runtest_setup(item):
    if item.get_closest_marker("root") and os.getuid() != 0:
        pytest.skip("other uids, and files of theirs, need uid 0")


@pytest.fixture
def acme():
    return bundles.author("acme")


@pytest.fixture
def place(acme):
    """Directories of an unprivileged user, with a policy that trusts acme."""
    with daemons.placed() as place:
        place.trust_us(acme)
        yield place


@pytest.fixture
def daemon(place):
    with place.running() as daemon:
        yield daemon


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    """The library that makes calls fail, compiled once."""
    return faults.compiled(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def sick(place, shim):
    """Injects faults into the daemon of `place`; none until the test sets one."""
    with faults.attached(place, shim) as sick:
        yield sick
