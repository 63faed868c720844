"""Bursts of host calls before a real ledger: a process that is killed in the middle, a disk that is full meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from latticed.kit.clock import SystemClock
from latticed.ledger import kv, open_ledger
from latticed.trust import audit_chain
from tests.house import burst_process, exports, flocks, long, processes

KILLS = long.times(2, 200)
MANY = long.times(4_000, 2_000_000)
BURST = 900
OWN = "plugin:acme.demo"


def call(number):
    """Call `number` as a line: every third is of a service that waits."""
    method, params = [
        ("kv.put", {"key": f"p{number}", "value": str(number)}),
        ("kv.get", {"key": f"p{number - 1}"}),
        ("log.write", {"message": f"line {number}"}),
    ][number % 3]
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode() + b"\n"


def sha256(number):
    """The hash that is recorded for call `number`."""
    params = json.dumps(json.loads(call(number))["params"]).encode()
    return hashlib.sha256(params).hexdigest()


@contextlib.contextmanager
def serving(state):
    command = [sys.executable, "-P", burst_process.__file__, os.fspath(state)]
    environment = {**os.environ, "PYTHONPATH": os.fspath(Path(__file__).parents[2])}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()
            with contextlib.suppress(BrokenPipeError):  # calls that were not written yet
                process.stdin.close()


def send(process, numbers):
    """Write these calls from a thread of its own, as fast as they are taken."""

    def write():
        with contextlib.suppress(BrokenPipeError):
            for number in numbers:
                process.stdin.write(call(number))
            process.stdin.flush()

    thread = threading.Thread(target=write)
    thread.start()
    return thread


def answers(process, count):
    return [json.loads(process.stdout.readline()) for _ in range(count)]


def on_record(state):
    """(whether the chains hold, (hash of the parameters, decision) of each host call, the plugin's values)."""

    async def look():
        async with open_ledger(state, clock=SystemClock()) as ledger:
            report = await ledger.read_slow(lambda db: audit_chain.verify(exports.export(db)))
            rows = ledger.read(lambda db: db.execute("SELECT detail, decision FROM calls ORDER BY seq").fetchall())
            keys = ledger.read(lambda db: kv.keys(db, OWN))
            return report.ok, [(json.loads(detail)["sha256"], decision) for detail, decision in rows], set(keys)

    return asyncio.run(look())


def code(answer):
    return answer.get("error", {}).get("data", {}).get("code", "")


@pytest.mark.parametrize("seed", range(KILLS))
def test_kill_9_in_a_burst_leaves_every_answered_call_on_record_in_its_order(tmp_path, seed):
    """What is on record are the first calls of the plugin, without a gap, and among them all that were answered."""
    numbers, wanted = range(BURST), random.Random(seed).randrange(1, BURST)
    with serving(tmp_path) as process:
        sending = send(process, numbers)
        answered = answers(process, wanted)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().splitlines(keepends=True)
        answered += [json.loads(line) for line in rest if line.endswith(b"\n")]
        sending.join()
    holds, rows, keys = on_record(tmp_path)
    assert holds
    assert {code(one) for one in answered} == {""}
    assert rows == [(sha256(number), "allow") for number in numbers[: len(rows)]]
    assert max(one["id"] for one in answered) < len(rows)
    assert {f"p{one['id']}" for one in answered if one["id"] % 3 == 0} <= keys


def test_calls_of_a_burst_that_a_full_disk_does_not_take_are_refused_and_not_made(tmp_path):
    """Files may grow no further from some moment on; once they may again, all goes on without a restart."""
    with serving(tmp_path) as process:
        sending = send(process, range(30))
        before = answers(process, 30)
        sending.join()
        largest = max(path.stat().st_size for path in tmp_path.iterdir())
        unlimited = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest + (64 << 10), unlimited[1]))
        sending = send(process, range(30, BURST))
        meanwhile = answers(process, BURST - 30)
        sending.join()
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, unlimited)
        sending = send(process, range(BURST, BURST + 60))
        after = answers(process, 60)
        sending.join()
        process.stdin.close()
        assert process.wait(processes.PATIENCE_S) == 0
    assert {code(one) for one in before} == {""}
    assert "audit_unavailable" in {code(one) for one in meanwhile} <= {"", "audit_unavailable", "service_unavailable"}
    assert [code(one) for one in after[30:]] == [""] * 30
    holds, rows, keys = on_record(tmp_path)
    assert holds
    allowed = [one for one, decision in rows if decision == "allow"]
    places = {sha256(number): number for number in range(BURST + 60)}
    assert [places[one] for one in allowed] == sorted(places[one] for one in allowed), "in the order of the calls"
    for one in (*before, *meanwhile, *after):
        number, recorded = one["id"], sha256(one["id"]) in allowed
        assert recorded or code(one) == "audit_unavailable"
        if number % 3 == 0:
            assert recorded or f"p{number}" not in keys
            assert code(one) != "" or f"p{number}" in keys
        elif code(one) == "audit_unavailable":
            assert not recorded, "what waits for nothing is answered once it is on record"


@pytest.mark.timeout(1_800)
def test_millions_of_calls_take_no_memory(tmp_path):
    """After the first tenth, in which caches fill, it grows by no more than allocators round."""
    get = b'{"jsonrpc":"2.0","id":1,"method":"kv.get","params":{"key":"a"}}\n'
    with serving(tmp_path) as process:
        for part in range(10):
            thread = threading.Thread(target=lambda: process.stdin.write(get * (MANY // 10)) and process.stdin.flush())
            thread.start()
            left = MANY // 10
            while left:
                line = process.stdout.readline()
                assert b'"result"' in line or b"audit_removed" in line, line
                left -= line.startswith(b"{")
            thread.join()
            if part == 0:
                before_mb = flocks.resident_mb(process.pid)
        assert flocks.resident_mb(process.pid) - before_mb < 8
