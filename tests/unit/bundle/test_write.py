"""Bundles are written completely or not at all."""

from __future__ import annotations

import pytest

from latticed.bundle import write
from latticed.kit import files


def test_bundle_is_written_completely(tmp_path):
    """Two files, readable by the daemon, and no leftovers."""
    write.write_bundle(tmp_path / "demo", b"{}\n", b"artifact")
    assert (tmp_path / "demo/manifest.json").read_bytes() == b"{}\n"
    assert (tmp_path / "demo/artifact").read_bytes() == b"artifact"
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_writing_bundle_does_not_overwrite_an_existing_target(tmp_path):
    """The target is a directory, a file or a dangling link."""
    (tmp_path / "demo").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("demo", "link"):
        with pytest.raises(FileExistsError):
            write.write_bundle(tmp_path / name, b"{}", b"artifact")
    assert not (tmp_path / "demo/artifact").exists()


def test_failed_write_leaves_no_files_behind(tmp_path, monkeypatch):
    """The temporary directory is removed, too."""
    honest = files.replace

    def full(path, data, *, mode):
        if path.name == "manifest.json":
            raise OSError(28, "No space left on device")
        honest(path, data, mode=mode)

    monkeypatch.setattr(files, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write.write_bundle(tmp_path / "demo", b"{}", b"artifact")
    assert list(tmp_path.iterdir()) == []


def test_manifest_is_replaced_atomically(tmp_path):
    """It is indented, UTF-8, and ends in a newline."""
    write.write_bundle(tmp_path / "demo", b"{}", b"artifact")
    write.write_manifest(tmp_path / "demo", write.render({"name": "Größe"}))
    assert (tmp_path / "demo/manifest.json").read_text(encoding="utf-8") == '{\n  "name": "Größe"\n}\n'
