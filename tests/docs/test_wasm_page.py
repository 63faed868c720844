"""docs/write/wasm.md agrees with the code."""

from __future__ import annotations

import re
from typing import get_args

from latticed.runners import wasm, wasm_children
from latticed.runners.wasm_inside import calls, engine, polling, wasi
from tests.house import pages

PAGE = "docs/write/wasm.md"
TEXT = (pages.CHECKOUT / PAGE).read_text(encoding="utf-8")


def test_table_of_failure_codes_equals_the_code():
    """Every code that a child may give, and that of a compiler that failed."""
    listed = {code for row in pages.table(PAGE, "code") for code in re.findall(r"\w+", row[0])}
    assert listed == {*get_args(wasm_children.Code), "wasm_compiler"}


def test_default_limits_on_the_page_equal_the_code():
    limits = {row[0]: row[1] for row in pages.table(PAGE, "limit of")}
    caps = wasm.Caps()
    compiling = f"{caps.compile.time_s:g} s, {caps.compile.memory_bytes >> 20} MiB"
    assert limits["compiling"] == f"{compiling}, {caps.compile.code_bytes >> 20} MiB of code"
    assert limits["tables"] == f"{caps.table_elements:,} elements each, 4 tables"
    assert limits["stack"] == f"{engine.STACK_BYTES >> 10} KiB"
    assert limits["computing before it first waits for its host"] == f"{caps.start_s:g} s"
    assert f"and {wasm.OVERHEAD_BYTES >> 20} MiB for Python" in TEXT
    assert f"at most {caps.cache_bytes >> 20} MiB in all" in TEXT
    assert f"at most {calls.MOST_BYTES >> 20} MiB:" in TEXT


def test_wasi_functions_that_the_page_names_are_implemented():
    """The number of functions on the page is correct, too."""
    assert f"All {len(wasi.SIGNATURES)} functions" in TEXT
    assert f"up to {polling.MOST} at once" in TEXT
    named = set(re.findall(r"`((?:fd|path|sock|args|environ|clock|poll|random|proc|sched)_\w+)`", TEXT))
    assert named <= set(wasi.SIGNATURES)
