"""Collecting while pairs are being kept: no pair that a caller was just given is removed."""

from __future__ import annotations

import os

import pytest

from latticed.bundle import read
from latticed.catalog.store import Store
from latticed.trust import policy, verify
from tests.house import bundles


@pytest.fixture
def acme():
    return bundles.author("acme")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def _opened(path):
    return read.open_bundle(path, limits=read.ReadLimits(), owners=frozenset({os.geteuid()}))


def _judged(bundle, acme):
    with _opened(bundle.path) as directory:
        return verify.verify(directory, policy.decode(bundles.policy_bytes(acme)), host_version="0.1.0")


def _keep(store, bundle, verified):
    with _opened(bundle.path) as directory:
        store.keep(directory, verified)


def test_pair_kept_after_mark_is_not_collected(store, acme, tmp_path):
    """It is new to the store or was there before: `in_use` does not include it yet."""
    bundle = bundles.drop(tmp_path, author=acme)
    verified = _judged(bundle, acme)
    for _ in range(2):  # the second time it is found intact, and nothing is written
        store.mark()
        _keep(store, bundle, verified)
        assert store.collect([]) == 0
        assert store.path(verified.identity).is_dir()


def test_pair_not_kept_after_mark_is_collected(store, acme, tmp_path):
    """It can be kept again."""
    bundle = bundles.drop(tmp_path, author=acme)
    verified = _judged(bundle, acme)
    _keep(store, bundle, verified)
    store.mark()
    assert store.collect([]) == 1
    assert list((tmp_path / "store").iterdir()) == []
    _keep(store, bundle, verified)
    assert store.path(verified.identity).is_dir()
