"""What processes use, by /proc."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from latticed.processes import tree
from tests.house import processes

# 64 MiB; then its first thread ends, and another one goes on.
FIRST_ENDS = """
import ctypes, sys, threading
held = b"x" * (64 << 20)
def wait():
    sys.stdin.read()
    held[0]
threading.Thread(target=wait).start()
print("up", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def test_memory_is_that_of_the_threads_when_the_first_has_ended():
    with subprocess.Popen([sys.executable, "-c", FIRST_ENDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"up\n"
            first = Path(f"/proc/{process.pid}/task/{process.pid}/stat")
            processes.until(lambda: b") Z" in first.read_bytes(), what="its first thread to end")
            assert tree.used([process.pid]).memory_bytes >= 64 << 20
        finally:
            process.kill()
