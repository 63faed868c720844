#!/usr/bin/env python3
"""A plugin of latticed-stdio-1 without the SDK: makes host calls with a given number of them under way.

`invoke` with `{"method", "params", "count", "depth"}` answers with the seconds they took. It looks at no answer but for
errors: what is measured is who answers.
"""

from __future__ import annotations

import json
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CHUNK = 1 << 16


def main() -> None:
    held = b""
    while True:
        while b"\n" not in held:
            more = os.read(0, CHUNK)
            if not more:
                return
            held += more
        line, held = held.split(b"\n", 1)
        asked = json.loads(line)
        result: dict[str, Any] = {"status": "healthy", "message": ""}
        if asked["method"] == "invoke":
            result = {"ok": True, "message": "", "result": calls(**asked["params"]["payload"])}
        write(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}).encode() + b"\n")


def calls(method: str, params: dict[str, Any], count: int, depth: int) -> float:
    asked: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params}
    lines = [json.dumps({**asked, "id": number}).encode() + b"\n" for number in range(count)]
    sent = answered = 0
    began_s = time.perf_counter()
    while answered < count:
        if sent < count and sent - answered <= depth // 2:  # fill up in pieces, as one who has much to ask would
            upto = min(count, answered + depth)
            write(b"".join(lines[sent:upto]))
            sent = upto
        data = os.read(0, CHUNK)
        if not data or b'"error"' in data:
            raise SystemExit(repr(data[:300]))
        answered += data.count(b"\n")
    return time.perf_counter() - began_s


def write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


main()
