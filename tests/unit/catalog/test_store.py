"""The store holds complete verified pairs only."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

import pytest

from latticed.bundle import read
from latticed.bundle.refusal import BundleRefused
from latticed.catalog import Store
from latticed.model.errors import Problem
from latticed.model.verdict import Code, Refused, Verified
from latticed.trust import verify
from latticed.trust.policy import NOBODY
from tests.house import bundles, catalogs

ACME = bundles.author()
POLICY = catalogs.trusting(ACME)
OWNERS = frozenset({0, os.geteuid()})


@pytest.fixture
def bundle(tmp_path: Path) -> bundles.Bundle:
    return bundles.drop(tmp_path, "demo", author=ACME, artifact=b"artifact" * 100_000)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state" / "store")


def judged(path: Path) -> Verified:
    with read.open_bundle(path, limits=read.ReadLimits(), owners=OWNERS) as directory:
        verdict = verify.verify(directory, POLICY, host_version=catalogs.HOST_VERSION)
    assert isinstance(verdict, Verified), verdict
    return verdict


def keep(store: Store, path: Path, verified: Verified) -> None:
    with read.open_bundle(path, limits=read.ReadLimits(), owners=OWNERS) as directory:
        store.keep(directory, verified)


def test_kept_pair_equals_the_verified_one(store: Store, bundle: bundles.Bundle) -> None:
    """Both files are equal byte for byte and have mode 0400, in directories of mode 0700."""
    verified = judged(bundle.path)
    keep(store, bundle.path, verified)
    place = store.path(verified.identity)
    assert (place / "manifest.json").read_bytes() == bundle.manifest_path.read_bytes()
    assert (place / "artifact").read_bytes() == bundle.artifact
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (place.parent, place, *sorted(place.iterdir()))]
    assert modes == [0o700, 0o700, 0o400, 0o400]
    assert os.listdir(place.parent) == [verified.identity]
    assert store.verify(verified.identity, POLICY, host_version=catalogs.HOST_VERSION) == verified


def test_keeping_a_stored_intact_pair_rewrites_nothing(store: Store, bundle: bundles.Bundle) -> None:
    """A pair that is there and intact is not written again."""
    verified = judged(bundle.path)
    keep(store, bundle.path, verified)
    inode = store.path(verified.identity).stat().st_ino
    keep(store, bundle.path, verified)
    assert store.path(verified.identity).stat().st_ino == inode


@pytest.mark.parametrize("part", ["artifact", "manifest.json"])
def test_damaged_pair_is_refused_and_replaced(store: Store, bundle: bundles.Bundle, part: str) -> None:
    """It does not verify; keeping the bundle again replaces it."""
    verified = judged(bundle.path)
    keep(store, bundle.path, verified)
    damaged = store.path(verified.identity) / part
    damaged.chmod(0o600)
    bundles.tamper(damaged, offset=40)
    assert isinstance(store.verify(verified.identity, POLICY, host_version=catalogs.HOST_VERSION), Refused)
    keep(store, bundle.path, verified)
    assert store.verify(verified.identity, POLICY, host_version=catalogs.HOST_VERSION) == verified
    assert os.listdir(store.path(verified.identity).parent) == [verified.identity]


def test_pair_damaged_under_the_same_stamp_is_replaced_once_it_was_refused(
    store: Store, bundle: bundles.Bundle
) -> None:
    """The kernel notes the time of the first write to a mapped page, not of those that follow."""
    verified = judged(bundle.path)
    keep(store, bundle.path, verified)
    damaged = store.path(verified.identity) / "artifact"
    damaged.chmod(0o600)
    with damaged.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[40] = mapped[40]
        keep(store, bundle.path, verified)
        mapped[40] ^= 1
        assert isinstance(store.verify(verified.identity, POLICY, host_version=catalogs.HOST_VERSION), Refused)
        keep(store, bundle.path, verified)
    assert store.verify(verified.identity, POLICY, host_version=catalogs.HOST_VERSION) == verified


def test_pair_stored_under_another_identity_is_a_mismatch(store: Store, bundle: bundles.Bundle, tmp_path: Path) -> None:
    """The pair itself verifies."""
    verified = judged(bundle.path)
    keep(store, bundle.path, verified)
    other = judged(bundles.drop(tmp_path, "other", author=ACME, id="acme.other").path)
    keep(store, tmp_path / "other", other)
    os.rename(store.path(verified.identity), tmp_path / "aside")
    os.rename(store.path(other.identity), store.path(verified.identity))
    verdict = store.verify(verified.identity, POLICY, host_version=catalogs.HOST_VERSION)
    assert isinstance(verdict, Refused)
    assert verdict.code is Code.DIGEST_MISMATCH


def test_present_policy_applies_at_each_verification(store: Store, bundle: bundles.Bundle) -> None:
    """A pair in the store is trusted no longer than the policy says."""
    verified = judged(bundle.path)
    keep(store, bundle.path, verified)
    verdict = store.verify(verified.identity, NOBODY, host_version=catalogs.HOST_VERSION)
    assert isinstance(verdict, Refused)
    assert verdict.code is Code.PUBLISHER_UNTRUSTED


def test_artifact_swapped_after_verification_is_not_kept(store: Store, bundle: bundles.Bundle) -> None:
    """The store has no file of it afterwards."""
    verified = judged(bundle.path)
    bundles.tamper(bundle.artifact_path, offset=70_000)
    with pytest.raises(BundleRefused) as caught:
        keep(store, bundle.path, verified)
    assert caught.value.code is Code.DIGEST_MISMATCH
    assert os.listdir(store.path(verified.identity).parent) == []


def test_manifest_swapped_after_verification_is_not_kept(store: Store, bundle: bundles.Bundle, tmp_path: Path) -> None:
    """Another valid manifest with the same artifact is another pair."""
    verified = judged(bundle.path)
    bundles.drop(tmp_path, "demo", author=ACME, artifact=bundle.artifact, capabilities=["http:egress"])
    with pytest.raises(BundleRefused) as caught:
        keep(store, bundle.path, verified)
    assert caught.value.code is Code.CHANGED_WHILE_READING
    assert os.listdir(store.path(verified.identity).parent) == []


def test_verifying_a_missing_pair_is_refused(store: Store) -> None:
    """Text that is no identity is an error of the caller."""
    verdict = store.verify("0" * 64, POLICY, host_version=catalogs.HOST_VERSION)
    assert isinstance(verdict, Refused)
    assert verdict.code is Code.MANIFEST_MISSING
    with pytest.raises(ValueError, match="64 hex digits"):
        store.path("../../etc")


def test_store_collect_removes_unused_pairs(store: Store, bundle: bundles.Bundle, tmp_path: Path) -> None:
    """Files of interrupted writes are removed, too; pairs in use and files of others stay."""
    assert store.collect([]) == 0
    kept = judged(bundle.path)
    keep(store, bundle.path, kept)
    unused = judged(bundles.drop(tmp_path, "unused", author=ACME, id="acme.unused").path)
    keep(store, tmp_path / "unused", unused)
    place = store.path(kept.identity).parent
    bundles.write(place / ".tmp-0123456789abcdef", b"half a mani", b"half")
    (place / "notes").write_text("an operator's")
    store.mark()
    assert store.collect([kept.identity]) == 2
    assert sorted(os.listdir(place)) == sorted([kept.identity, "notes"])


@pytest.mark.parametrize("mode", ["a file", "no space"])
def test_unwritable_store_is_store_unavailable(tmp_path: Path, bundle: bundles.Bundle, mode: str) -> None:
    """The problem has the operating system's reason; no partial pair stays."""
    store = Store(tmp_path / "broken")
    verified = judged(bundle.path)
    if mode == "a file":
        (tmp_path / "broken").write_text("in the way")
    import resource
    import signal

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(Problem) as caught:
            keep(store, bundle.path, verified)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert caught.value.code == "store_unavailable"
    if mode != "a file":
        assert os.listdir(tmp_path / "broken") == []
