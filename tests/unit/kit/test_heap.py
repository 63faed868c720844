"""What malloc keeps: looked at in interpreters of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest


def test_memory_freed_in_the_middle_of_the_heap_is_returned():
    """16 MiB in pieces that malloc keeps, freed below one piece that stays."""
    code = """
from latticed.kit import heap
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4
pieces = [bytes(1000) for _ in range(16_000)]
last = pieces.pop()
pieces.clear()
before = resident()
heap.return_free_memory()
print(before - resident() > 8_000)
"""
    found = subprocess.run([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, check=True)
    assert found.stdout.decode().split() == ["True"]


@pytest.mark.parametrize(("first", "arenas"), [("heap.use_one_arena()", 0), ("pass", 1)])
def test_threads_allocate_from_the_heap_of_the_process(first, arenas):
    """Beside it: an arena of malloc is 64 MiB of addresses, of which what is used is readable (64-bit machines)."""
    code = f"""
import threading
from latticed.kit import heap
{first}
pieces = []
one = threading.Thread(target=lambda: pieces.extend(bytes(1000) for _ in range(100)))
one.start()
one.join()
spans = [line.split()[:2] for line in open("/proc/self/maps")]
sizes = [int(to, 16) - int(since, 16) for (since, to), mode in ((s.split("-"), m) for s, m in spans) if mode == "---p"]
print(sum(60 << 20 < size < 64 << 20 for size in sizes))
"""
    found = subprocess.run([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, check=True)
    assert int(found.stdout) == arenas
