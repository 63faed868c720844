"""The committed wasm artifacts are what their committed sources make, byte for byte."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import wasmtime

from tests.house import long, pages

SAMPLES = pages.CHECKOUT / "plugins-sample"
SOURCES = SAMPLES / "sources"


def test_module_compiled_from_text_equals_the_committed_artifact():
    text = (SOURCES / "hello-wasm.wat").read_text()
    assert bytes(wasmtime.wat2wasm(text)) == (SAMPLES / "hello-wasm/artifact").read_bytes()


@pytest.mark.slow
def test_module_built_from_zig_equals_the_committed_artifact(tmp_path):
    """It is built with empty caches, in the long run in two directories."""
    pytest.importorskip("ziglang", reason="ziglang, which builds a sample, is not installed")
    source = (SOURCES / "hello-wasi.zig").read_text()
    command = re.search(r"zig (build-exe .*?) *\\\n//! *(-femit-bin)=hello-wasi/artifact\n", source)
    assert command is not None, "the source says how it is built"
    words = command[1].replace("sources/", "").split()
    for place in (tmp_path / "one", *long.only(tmp_path / "another/below")):
        place.mkdir(parents=True)
        (place / "hello-wasi.zig").write_text(source)
        caches = {"ZIG_LOCAL_CACHE_DIR": str(place / "local"), "ZIG_GLOBAL_CACHE_DIR": str(place / "global")}
        build = [sys.executable, "-P", "-m", "ziglang", *words, f"{command[2]}={place / 'artifact'}"]
        subprocess.run(build, cwd=place, check=True, timeout=150, env={**os.environ, **caches})
        assert (place / "artifact").read_bytes() == (SAMPLES / "hello-wasi/artifact").read_bytes()
