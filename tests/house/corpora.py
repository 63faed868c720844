"""The outside test suites, which are published separately and lie beside the checkout when they are there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

_LINE = re.compile(rb"(?P<method>[^\r\n ]+) (?P<target>[^\r\n ]+)(?P<rest> HTTP/[^\r\n]*)")
_HOST = re.compile(rb"^host[ \t]*:[^\r\n]*", re.IGNORECASE | re.MULTILINE)
PLACE = Path(__file__).resolve().parents[2].parent / "shared" / "corpora"


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of the suite `name`; skips the calling module when it is not there."""
    path = PLACE / name
    if not path.is_file():
        pytest.skip(f"outside test suites are not here ({name})", allow_module_level=True)
    found: list[dict[str, Any]] = json.loads(path.read_bytes())
    return found


def aimed(raw: bytes, path: str, *fields: str) -> bytes:
    """`raw` with `path` as its target and `fields` behind the request line, as far as it has one; its oddities stay."""
    more = b"".join(b"%s\r\n" % one.encode() for one in fields[1:])
    hosts = _HOST.findall(raw)
    host = fields[0].encode()
    if len(hosts) == 1:
        raw = raw.replace(hosts[0], host)
    elif not hosts:
        more = b"%s\r\n%s" % (host, more)
    start = len(raw) - len(raw.lstrip(b"\r\n"))
    line, end, rest = raw[start:].partition(b"\n")
    found = _LINE.match(line)
    if found is None:
        return raw
    return raw[:start] + b"%s %s%s" % (found["method"], path.encode(), line[found.start("rest") :]) + end + more + rest
