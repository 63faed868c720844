"""kit.struct_types: no type is read for the first time by two threads at once."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import msgspec
import latticed.app
from latticed.kit import struct_types
from latticed.model import manifest

struct_types.prepare()
read = []
# msgspec's Python code is called for each Struct that it has not seen yet, and for no other.
sys.setprofile(lambda frame, *_: read.append(frame.f_code.co_name) if "msgspec" in frame.f_code.co_filename else None)

class Later(msgspec.Struct):
    number: int

raw = {"id": "acme.demo", "name": "Demo", "type": "system", "capabilities": ["kv:read"]}
msgspec.convert(raw, manifest.Manifest, strict=True)
print(len(read))
msgspec.convert({"number": 1}, Later)
print("get_class_annotations" in read)
"""


def test_manifest_is_not_read_for_the_first_time_in_a_thread():
    """A type that is defined later is, which shows that the test would notice."""
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert ran.stdout.split() == ["0", "True"], ran.stdout + ran.stderr
