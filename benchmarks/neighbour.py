"""NEIGHBOUR: what a plugin's host calls cost while another plugin sends as much as it is let."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from benchmarks import living, rows

if TYPE_CHECKING:
    from benchmarks.bench import Bench

MAX_MORE_S: Final = 0.010
"""How much another's call may cost at p99 beside a flood, more than without it."""
FLOODS: Final = {
    "calls as fast as it can": '{"key": "a"}',
    "messages of 50,000 values": '{"a": [[]] * 49_000}',
    "512 KiB of control characters": '{"level": "info", "message": "\\x7f" * 80_000}',
}
_QUIET: Final = b"""#!/usr/bin/env python3
import time
from latticed.sdk import Plugin

class Quiet(Plugin):
    def do_time(self, count):
        self.kv.put("a", "1")
        found = []
        for _ in range(count):
            began_s = time.perf_counter()
            self.kv.get("a")
            found.append(time.perf_counter() - began_s)
            time.sleep(0.001)
        return found

Quiet().run()
"""
_LOUD: Final = b"""#!/usr/bin/env python3
import json, sys, threading

CALL = json.dumps({"method": METHOD, "params": PARAMS}, separators=(",", ":")).encode()

def flood():
    number = 0
    while True:
        number += 1
        say(b'{"jsonrpc":"2.0","id":"%d",%b\\n' % (number, CALL[1:]))

lock = threading.Lock()
def say(line):
    with lock:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()

for line in sys.stdin.buffer:
    message = json.loads(line)
    if "method" not in message:
        continue
    result = {"status": "healthy", "ok": True, "message": "", "result": None}
    say(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode() + b"\\n")
    if message["method"] == "invoke":
        threading.Thread(target=flood, daemon=True).start()
"""


def measure(bench: Bench) -> list[rows.Row]:
    """One house for each flood; the same plugin is timed before the flood and during it."""
    return [_beside(bench, what, params) for what, params in FLOODS.items()]


def _beside(bench: Bench, what: str, params: str) -> rows.Row:
    count = bench.some(3_000, 300)
    method = "log.write" if "message" in params else "kv.get"
    loud = _LOUD.replace(b"METHOD", repr(method).encode()).replace(b"PARAMS", params.encode())
    rights = {"capabilities": ["kv:read", "kv:write", "log:write"]}
    with bench.scratch() as place, asyncio.Runner() as runner, contextlib.ExitStack() as stack:
        opened = living.opened(place / "h")
        home = runner.run(opened.__aenter__())
        stack.callback(lambda: runner.run(opened.__aexit__(None, None, None)))
        runner.run(home.activate("acme.quiet", _QUIET, runtime={"limits": {"invoke_timeout_s": 30}}, **rights))
        runner.run(home.activate("acme.loud", loud, runtime={"sandbox": {"features": ["threads"]}}, **rights))
        runner.run(home.invoke("acme.quiet", "time", 50))
        alone = runner.run(home.invoke("acme.quiet", "time", count))
        runner.run(home.invoke("acme.loud", "begin", None))
        beside = runner.run(home.invoke("acme.quiet", "time", count))
    more_s = rows.percentile(beside, 0.99) - rows.percentile(alone, 0.99)
    return rows.Row(
        target="NEIGHBOUR",
        what=f"p99 of kv.get beside another plugin's {what} (p50, worst)",
        ours=f"{rows.seconds(rows.percentile(beside, 0.99))} ({rows.seconds(rows.percentile(beside, 0.5))},"
        f" {rows.seconds(max(beside))})",
        reference=f"{rows.seconds(rows.percentile(alone, 0.99))} without it",
        wanted=f"≤ {rows.seconds(MAX_MORE_S)} more",
        met=more_s <= MAX_MORE_S,
        samples={"beside": beside, "alone": alone},
    )
