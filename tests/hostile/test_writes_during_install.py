"""More than five hundred writes to a bundle while it is being installed: the verified bytes run, or it is refused.

An install reads the bundle twice: to judge it, and to copy what was judged into the store. Each write comes at a
known moment of that, just before one of the reads.
"""

from __future__ import annotations

import os
import shutil

import pytest

from latticed.bundle import read
from latticed.bundle.refusal import BundleRefused
from latticed.catalog.store import Store
from latticed.model.verdict import Code, Refused
from latticed.sandbox import artifact
from latticed.trust import policy, verify
from tests.house import bundles, supervisors

ACME = bundles.author(seed=b"1" * 32)
TRUST = policy.decode(bundles.policy_bytes(ACME))
CHUNKS = 2
GOOD, OTHER, EVIL = (
    b"#!/bin/sh\necho " + word + b"\n" + b"#" * read.BUFFER_BYTES for word in (b"good!", b"other", b"evil!")
)
"""Of one size, two reads long: `OTHER` is that of another bundle of the same publisher, `EVIL` of none."""
VERSIONS = {"v1": False, "v2": True}
MOMENTS = (
    "before",
    *(
        f"{step}, {look}"
        for look in ("judged", "kept")
        for step in ("manifest", *(f"artifact {number}" for number in range(CHUNKS)), "end")
    ),
)
"""Before it is opened; before each read of each look; after its last."""


def _in_place(path, offset):
    with path.open("r+b") as file:
        file.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def _same_times(path, other):
    """The same file, the same size, the same time of its last change."""
    found = path.stat()
    _in_place(path, 40)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def _instead(make):
    def write(path, other):
        path.unlink()
        make(path, other)

    return write


def _append(path, _):
    with path.open("ab") as file:
        file.write(b"\nid\n")


FILE_WRITES = {
    "first byte": lambda path, _: _in_place(path, 0),
    "last byte": lambda path, _: _in_place(path, -2),
    "a byte, with the old times": _same_times,
    "the other's, renamed over it": lambda path, other: shutil.copy(other, path.with_suffix(".new")).replace(path),
    "the other's, in place": lambda path, other: path.write_bytes(other.read_bytes()),
    "the same again": lambda path, _: path.write_bytes(path.read_bytes()),
    "evil": lambda path, _: path.write_bytes(EVIL),
    "more": _append,
    "half": lambda path, _: os.truncate(path, path.stat().st_size // 2),
    "nothing": lambda path, _: os.truncate(path, 0),
    "endless": lambda path, _: os.truncate(path, 1 << 40),
    "gone": _instead(lambda path, other: None),
    "a link": _instead(lambda path, other: path.symlink_to(other)),
    "a hard link": _instead(lambda path, other: path.hardlink_to(other)),
    "a fifo": _instead(lambda path, other: os.mkfifo(path)),
    "a directory": _instead(lambda path, other: path.mkdir()),
}


def _whole(bundle, other):
    """Replace both files by those of the other bundle, which verifies as well."""
    for name in ("manifest.json", "artifact"):
        shutil.copy(other / name, bundle / ".new")
        (bundle / ".new").replace(bundle / name)


def _exchange(bundle, other):
    bundle.rename(bundle.with_name("away"))
    other.rename(bundle)


def _to(name, write):
    return lambda bundle, other: write(bundle / name, other / name)


WRITES = {
    **{f"manifest: {what}": _to("manifest.json", write) for what, write in FILE_WRITES.items()},
    **{f"artifact: {what}": _to("artifact", write) for what, write in FILE_WRITES.items()},
    "both of the other": _whole,
    "the other directory": _exchange,
    "no directory": lambda bundle, other: bundle.rename(bundle.with_name("away")),
}


class Interrupted:
    """A bundle as the installer reads it; `write` happens once, before the read of the number `at`."""

    def __init__(self, monkeypatch, at, write):
        self.steps, self._at, self._write, self._readv = 0, at, write, os.readv
        monkeypatch.setattr(os, "readv", self._read)

    def step(self):
        """Count one moment; write if it is the chosen one."""
        if self.steps == self._at:
            self._write()
        self.steps += 1

    def _read(self, fd, buffers):
        self.step()
        return self._readv(fd, buffers)


def _install(bundle, store, moments):
    """Install as a catalog does: judge, then keep. Returns the verdict, or the code of the refusal."""
    moments.step()
    try:
        with read.open_bundle(bundle, limits=read.ReadLimits(), owners=supervisors.owners()) as found:
            verdict = verify.verify(found, TRUST, host_version="0.1.0")
            if isinstance(verdict, Refused):
                return verdict.code
            moments.step()
            store.keep(found, verdict)
    except BundleRefused as refused:
        return refused.code
    moments.step()
    return verdict


def _runs(store, verdict):
    """The bytes that a child would execute: read from the store and sealed in memory."""
    with (
        store.open(verdict.identity) as pair,
        artifact.seal(pair, sha256=verdict.artifact_sha256) as sealed,
    ):
        return os.pread(sealed.fd, sealed.size + 1, 0)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("originals")
    for name, v2 in VERSIONS.items():
        bundles.drop(root, f"good-{name}", author=ACME, artifact=GOOD, v2=v2)
        bundles.drop(root, f"other-{name}", author=ACME, artifact=OTHER, v2=v2, version="2.0.0")
    return root


@pytest.fixture
def pairs(originals, tmp_path):
    """The bundle that is installed, and the other."""

    def of(version):
        found = []
        for name in ("good", "other"):
            found.append(tmp_path / name)
            shutil.copytree(originals / f"{name}-{version}", found[-1])
        return found

    return of


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("write", WRITES)
def test_write_during_install_is_refused_or_only_verified_bytes_run(
    pairs, tmp_path, monkeypatch, write, moment, version
):
    """When it is refused with a code, nothing is stored; otherwise the stored bytes, which run, are those that were
    signed.
    """
    bundle, other = pairs(version)
    store = Store(tmp_path / "store")
    moments = Interrupted(monkeypatch, MOMENTS.index(moment), lambda: WRITES[write](bundle, other))
    found = _install(bundle, store, moments)
    if isinstance(found, str):
        Code(found)  # or a ValueError
        assert not (tmp_path / "store").exists() or os.listdir(tmp_path / "store") == []
    else:
        assert _runs(store, found) == {"1.0.0": GOOD, "2.0.0": OTHER}[found.manifest.version]
        assert store.identities() == [found.identity]
        assert store.verify(found.identity, TRUST, host_version="0.1.0").identity == found.identity


@pytest.mark.parametrize("version", VERSIONS)
def test_undisturbed_install_takes_exactly_the_steps_in_moments(pairs, tmp_path, monkeypatch, version):
    """The other tests interrupt it at each of MOMENTS: so they leave out no step."""
    bundle, _ = pairs(version)
    moments = Interrupted(monkeypatch, -1, lambda: None)
    found = _install(bundle, Store(tmp_path / "store"), moments)
    assert (found.manifest.version, moments.steps) == ("1.0.0", len(MOMENTS))
