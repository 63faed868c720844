"""A plugin directory on a file system that is really mounted read-only."""

from __future__ import annotations

import os
import subprocess

import pytest

from latticed.catalog import Store
from latticed.model.verdict import Verified
from tests.house import bundles
from tests.house.catalogs import until, watching

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0 to mount")]

ACME = bundles.author()


async def test_read_only_plugin_directory_is_judged_stored_and_followed(tmp_path):
    """Nothing is written there; changes beneath the mount are seen."""
    source, mounted = tmp_path / "source", tmp_path / "mounted"
    source.mkdir()
    mounted.mkdir()
    bundle = bundles.drop(source, "demo", author=ACME)
    if subprocess.run(["mount", "--bind", source, mounted], capture_output=True, check=False).returncode:
        pytest.skip("no disk of its own can be made here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", mounted], check=True)
        with pytest.raises(OSError, match="Read-only"):
            (mounted / "demo" / "artifact").write_bytes(b"")
        store = Store(tmp_path / "store")
        async with watching(mounted, ACME, store=store) as seen:
            assert seen.code("plugins/demo") == "verified"
            verified = seen.now["plugins/demo"]
            assert isinstance(verified, Verified)
            await seen.catalog.keep("plugins/demo", verified)
            assert (store.path(verified.identity) / "artifact").read_bytes() == bundle.artifact
            before = bundles.tamper(source / "demo" / "artifact")
            await until(lambda: seen.code("plugins/demo") == "digest_mismatch", "the tampering to be seen")
            (source / "demo" / "artifact").write_bytes(before)
            await until(lambda: seen.code("plugins/demo") == "verified", "the bundle to verify again")
            assert seen.catalog.problems() == ()
    finally:
        subprocess.run(["umount", "-l", mounted], check=True)
