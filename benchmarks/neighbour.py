"""NEIGHBOUR: what a plugin's host calls cost while another plugin sends as much as it can."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from benchmarks import daemon, many, rows
from tests.house import bundles

if TYPE_CHECKING:
    from benchmarks.bench import Bench

MAX_MORE_S: Final = 0.010
"""How much more a call may cost at p99 during a flood of another plugin."""
FLOODS: Final = {
    "calls as fast as it can": '{"key": "a"}',
    "messages of 50,000 values": '{"a": [[]] * 49_000}',
    "messages of 80,000 control characters": '{"level": "info", "message": "\\x7f" * 80_000}',
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
    """One daemon for each flood; the same plugin is timed before the flood and during it."""
    return [_beside(bench, what, params) for what, params in FLOODS.items()]


def _beside(bench: Bench, what: str, params: str) -> rows.Row:
    count = bench.some(1_000, 200)
    method = "log.write" if "message" in params else "kv.get"
    loud = _LOUD.replace(b"METHOD", repr(method).encode()).replace(b"PARAMS", params.encode())
    rights = {"capabilities": ["kv:read", "kv:write", "log:write"]}
    threads = {"sandbox": {"features": ["threads"]}, "limits": {"invoke_timeout_s": 30}}
    with bench.scratch() as place:
        home = place / "d"
        home.mkdir()
        ours = daemon.Place(home=home, programs=bench.ours())
        ours.prepare()
        for plugin_id, artifact in (("acme.quiet", _QUIET), ("acme.loud", loud)):
            raw = bundles.signed(bundles.manifest_v2(id=plugin_id, runtime=threads, **rights), artifact, many.AUTHOR)
            bundles.write(ours.plugins / plugin_id, raw, artifact)
        with daemon.running(ours) as running:
            for plugin_id in ("acme.quiet", "acme.loud"):
                for status in ("installed", "active"):
                    running.decide(plugin_id, status)
            _invoked(running, "acme.quiet", "time", 50)
            alone = _invoked(running, "acme.quiet", "time", count)
            _invoked(running, "acme.loud", "begin", None)
            beside = _invoked(running, "acme.quiet", "time", count)
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


def _invoked(running: daemon.Daemon, plugin_id: str, action: str, payload: Any) -> list[float]:
    body = json.dumps({"action": action, "payload": payload}).encode()
    answer = json.loads(running.client.ask("POST", f"/api/plugins/by-id/{plugin_id}/invoke", body))
    if not answer["ok"]:
        raise RuntimeError(f"{action} failed: {answer['error']}")
    return answer["result"] or []
