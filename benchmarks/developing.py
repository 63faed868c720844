"""DEV: `latticectl dev`, from a saved source to an answer of the new code, beside the bare start of a Python."""

from __future__ import annotations

import json
import os
import subprocess
import time
from typing import TYPE_CHECKING

from benchmarks import processes, rows
from benchmarks.bench import SYSTEM_PYTHON

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.bench import Bench

SAVES, QUICK_SAVES = 20, 5
PLUGIN = """#!/usr/bin/env python3
from latticed.sdk import Plugin

class Dev(Plugin):
    def do_say(self, payload):
        return "this is save NUMBER."

Dev().run()
"""
MANIFEST = {
    "schema": "latticed.manifest.v2",
    "id": "bench.dev",
    "name": "Dev",
    "type": "system",
    "version": "0.1.0",
    "capabilities": ["log:write"],
}


def measure(bench: Bench) -> list[rows.Row]:
    with bench.scratch() as place:
        bundle = place / "bench.dev"
        bundle.mkdir()
        (bundle / "manifest.json").write_text(json.dumps(MANIFEST))
        _save(bundle, 0)
        command = [str(bench.ours() / "latticectl"), "dev", str(bundle), "--invoke", "say"]
        env = {**processes.ENVIRONMENT, "TMPDIR": str(place)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with subprocess.Popen(command, env=env, **pipes) as process:  # type: ignore[call-overload]
            try:
                _until(process, "bench.dev runs")
                numbers = iter(range(1, SAVES + 1))
                pairs = rows.interleave(
                    lambda: _saved_s(process, bundle, next(numbers)),
                    _python_s,
                    count=bench.some(SAVES, QUICK_SAVES),
                )
            finally:
                process.terminate()
    return [
        rows.Row(
            target="DEV",
            what="latticectl dev: source saved to new code answering, median",
            ours=rows.seconds(pairs.our_median),
            reference=f"{rows.seconds(pairs.their_median)} python3 -c pass",
            ratio=rows.spread(pairs.ratios),
            wanted="≤ 1 s",
            met=pairs.our_median <= 1.0,
            samples=rows.samples(pairs),
        )
    ]


def _save(bundle: Path, number: int) -> None:
    (bundle / "artifact").write_text(PLUGIN.replace("NUMBER", str(number)))


def _saved_s(process: subprocess.Popen[bytes], bundle: Path, number: int) -> float:
    began = time.perf_counter()
    _save(bundle, number)
    _until(process, "reloaded in")
    os.write(process.stdin.fileno(), b"\n")  # type: ignore[union-attr]
    _until(process, f"this is save {number}.")
    return time.perf_counter() - began


def _python_s() -> float:
    began = time.perf_counter()
    subprocess.run([SYSTEM_PYTHON, "-c", "pass"], check=True)
    return time.perf_counter() - began


def _until(process: subprocess.Popen[bytes], word: str) -> None:
    """Read lines until one has the word; RuntimeError when it ends before."""
    for line in process.stdout or ():
        if word in line.decode():
            return
    raise RuntimeError(f"expected {word!r}, found the end of what latticectl dev prints")
