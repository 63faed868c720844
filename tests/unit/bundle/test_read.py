"""Reading the two files safely, whatever is in their place."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
from contextlib import contextmanager

import pytest

from latticed.bundle import read
from latticed.kit import files
from tests.house import bundles

ME = frozenset({0, os.geteuid()})
LIMITS = read.ReadLimits(manifest_bytes=1000, artifact_bytes=5000)


@pytest.fixture
def bundle(tmp_path):
    return bundles.write(tmp_path / "demo", b"{}", b"artifact")


@contextmanager
def _opened(path, *, limits=LIMITS, owners=ME, **more):
    with read.open_bundle(path, limits=limits, owners=owners, **more) as found:
        yield found


def _code(path, what="manifest", **more):
    with pytest.raises(read.BundleRefused) as caught:
        _read(path, what, **more)
    assert caught.value.reason.startswith("expected ")
    assert caught.value.hint
    return caught.value.code


def _read(path, what, **more):
    with _opened(path, **more) as found:
        found.manifest()
        if what == "artifact":
            found.hash_artifact()


def _replace(path, kind):
    path.unlink()
    match kind:
        case "link":
            path.symlink_to("/etc/hostname")
        case "dangling link":
            path.symlink_to("nowhere")
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "device":
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
        case "socket":
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))


def test_manifest_bytes_and_artifact_digest_are_read(bundle):
    """The artifact can also be hashed alone, and twice."""
    expected = hashlib.sha256(b"artifact").hexdigest(), 8
    with _opened(bundle) as found:
        assert found.manifest() == b"{}"
        assert found.hash_artifact() == expected
        assert found.hash_artifact(bytearray(3)) == expected
    with _opened(bundle) as found:
        assert found.hash_artifact() == expected


def test_empty_artifact_and_one_of_exactly_the_limit_are_read(bundle):
    """Limits are inclusive."""
    for size in (0, 5000):
        (bundle / "artifact").write_bytes(b"x" * size)
        (bundle / "manifest.json").write_bytes(b" " * 1000)
        with _opened(bundle) as found:
            assert len(found.manifest()) == 1000
            assert found.hash_artifact() == (hashlib.sha256(b"x" * size).hexdigest(), size)


def test_copied_artifact_equals_the_hashed_bytes(bundle, tmp_path):
    """The size of the buffer does not matter."""
    data = os.urandom(4999)
    (bundle / "artifact").write_bytes(data)
    target = os.open(tmp_path / "copy", os.O_WRONLY | os.O_CREAT)
    with files.closing(target), _opened(bundle) as found:
        assert found.hash_artifact(bytearray(64), copy_to=target) == (hashlib.sha256(data).hexdigest(), 4999)
    assert (tmp_path / "copy").read_bytes() == data


@pytest.mark.parametrize("kind", ["link", "dangling link", "fifo", "directory", "socket", "device"])
def test_bundle_files_that_are_not_regular_are_refused_without_blocking(bundle, kind):
    """Links are not followed, devices and FIFOs not opened."""
    if kind == "device" and os.geteuid() != 0:
        pytest.skip("only root makes device nodes")
    _replace(bundle / "artifact", kind)
    assert _code(bundle, "artifact") == "artifact_not_regular"
    _replace(bundle / "manifest.json", kind)
    assert _code(bundle) == "manifest_not_regular"


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_file_swapped_between_lstat_and_open_is_refused(bundle, kind, monkeypatch):
    """O_NOFOLLOW, O_NONBLOCK and fstat protect, not the lstat before."""
    honest = os.stat(bundle / "manifest.json")
    _replace(bundle / "manifest.json", kind)
    look = os.stat

    def fooled(path, **more):
        return honest if path == "manifest.json" else look(path, **more)

    monkeypatch.setattr(os, "stat", fooled)
    assert _code(bundle) == "manifest_not_regular"


def test_missing_manifest_or_artifact_is_refused_with_its_code(bundle):
    """A bundle that is gone is `manifest_missing`."""
    (bundle / "artifact").unlink()
    assert _code(bundle, "artifact") == "artifact_missing"
    (bundle / "manifest.json").unlink()
    assert _code(bundle) == "manifest_missing"
    bundle.rmdir()
    assert _code(bundle) == "manifest_missing"


def test_symlink_in_place_of_bundle_directory_is_refused(bundle, tmp_path):
    """A file in its place is refused, too."""
    (tmp_path / "link").symlink_to(bundle)
    assert _code(tmp_path / "link") == "unreadable"
    assert _code(bundle / "artifact") == "unreadable"


def test_bundle_is_read_after_its_plugin_directory_was_renamed(bundle):
    """It is opened beneath the directory's descriptor."""
    with files.closing(files.open_directory(bundle.parent)) as parent:
        bundle.parent.rename(bundle.parent.with_name("moved"))
        with _opened("demo", beneath=parent) as found:
            assert found.manifest() == b"{}"


def test_file_over_the_size_limit_is_refused(bundle):
    """One byte over the limit is enough, in the artifact and in the manifest."""
    (bundle / "artifact").write_bytes(b"x" * 5001)
    assert _code(bundle, "artifact") == "artifact_too_large"
    (bundle / "manifest.json").write_bytes(b"x" * 1001)
    assert _code(bundle) == "manifest_too_large"


@pytest.mark.parametrize("name", ["manifest.json", "artifact"])
def test_file_that_grows_beyond_the_limit_while_read_is_refused(bundle, name, monkeypatch):
    """The size from before reading is not relied on."""
    honest = os.readv

    def growing(fd, buffers):
        with (bundle / name).open("ab") as file:
            file.write(b"y" * 4000)
        return honest(fd, buffers)

    monkeypatch.setattr(os, "readv", growing)
    # One read more than the limit allows: the file grows by 4000 bytes with each.
    expected = "manifest_too_large" if name == "manifest.json" else "artifact_too_large"
    assert _code(bundle, "artifact") == expected


@pytest.mark.parametrize("name", ["manifest.json", "artifact"])
def test_file_that_changes_while_read_is_refused(bundle, name, monkeypatch):
    """Its size may be the same, and the new bytes need not have been read."""
    honest = os.readv

    def rewriting(fd, buffers):
        found = honest(fd, buffers)
        data = (bundle / name).read_bytes()
        (bundle / name).write_bytes(data)
        os.utime(bundle / name, ns=(1, 1))
        return found

    monkeypatch.setattr(os, "readv", rewriting)
    assert _code(bundle, "artifact") == "changed_while_reading"


def test_slow_read_of_bundle_ends_at_the_deadline(bundle):
    """It is checked between chunks, by the clock passed in."""
    times = iter([0.0, 1.0, 31.0])
    assert _code(bundle, clock=lambda: next(times, 31.0)) == "unreadable"


def test_bundle_with_read_error_is_unreadable(bundle, monkeypatch):
    """This holds for any errno."""

    def broken(fd, buffers):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "readv", broken)
    assert _code(bundle) == "unreadable"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", ["manifest.json", "artifact"])
def test_file_of_foreign_owner_is_refused_before_the_manifest_is_read(bundle, name):
    """The artifact's owner takes precedence over faults of the manifest."""
    os.chown(bundle / name, 12345, -1)
    assert _code(bundle) == "foreign_owner"
    with _opened(bundle, owners=ME | {12345}) as found:
        assert found.manifest() == b"{}"


@pytest.mark.parametrize("name", ["manifest.json", "artifact"])
def test_file_without_permission_is_unreadable(bundle, name, monkeypatch):
    """It takes precedence over a missing manifest."""
    honest = files.open_file

    def refuse(found, *, beneath):
        if found == name:
            raise PermissionError(13, "Permission denied")
        return honest(found, beneath=beneath)

    monkeypatch.setattr(files, "open_file", refuse)
    assert _code(bundle) == "unreadable"
    if name == "artifact":
        (bundle / "manifest.json").unlink()
        assert _code(bundle) == "unreadable"


def test_bundle_fingerprint_differs_after_any_write(bundle):
    """It is None for a part that is missing, or when the name is no real directory."""
    with files.closing(files.open_directory(bundle.parent)) as parent:
        first = read.fingerprint("demo", beneath=parent)
        assert None not in first
        assert read.fingerprint("demo", beneath=parent) == first
        (bundle / "artifact").chmod(0o600)
        second = read.fingerprint("demo", beneath=parent)
        assert second != first
        (bundle / "artifact").unlink()
        assert read.fingerprint("demo", beneath=parent) == (first[0], None)
        bundle.rename(bundle.with_name("real"))
        bundle.symlink_to("real")
        assert read.fingerprint("demo", beneath=parent) == (None, None)
        assert read.fingerprint("gone", beneath=parent) == (None, None)
