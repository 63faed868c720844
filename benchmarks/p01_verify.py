"""P1: verifying 10,000 bundles of 64 KiB, beside hashing alone in C and in coreutils."""

from __future__ import annotations

import asyncio
import subprocess
import time
from typing import TYPE_CHECKING

from benchmarks import many, rows
from benchmarks.bench import Bench, Unavailable, say
from latticed.catalog import Catalog
from latticed.kit.clock import SystemClock
from latticed.model.verdict import Verified
from latticed.trust import keys
from latticed.trust import policy as policies
from tests.house import catalogs

if TYPE_CHECKING:
    from pathlib import Path

ARTIFACT_BYTES = 64 << 10
THREADS = 2
XARGS = f"find {{}} -name artifact -print0 | xargs -0 -P{THREADS} sha256sum > /dev/null"


def measure(bench: Bench) -> list[rows.Row]:
    """From an empty catalog to a verdict on each: listing, watching, reading, Ed25519, hashing. Page cache warm."""
    count = bench.some(10_000, 1_000)
    with bench.scratch() as place:
        say(f"P1: writing {count} bundles")
        many.write(place / "plugins", count, artifact_bytes=ARTIFACT_BYTES)
        plugins = place / "plugins"

        def scan() -> float:
            return _scan(plugins, count)

        scan()
        against_xargs = rows.interleave(scan, lambda: _xargs(plugins), count=bench.pairs)
        found = [_row(f"{count:,} bundles verified", "find | xargs -P2 sha256sum", against_xargs, 1.0)]
        try:
            loop = bench.hash_loop()
        except Unavailable as missing:
            return [*found, rows.Row(target="P1", what=f"beside C hash-only: {missing}", ours="-", wanted="≤ 4.0×")]
        against_c = rows.interleave(scan, lambda: _hash_loop(loop, plugins, count), count=bench.pairs)
        return [*found, _row(f"{count:,} bundles verified", "C hash-only, 2 threads", against_c, 4.0)]


def _row(what: str, reference: str, pairs: rows.Pairs, factor: float) -> rows.Row:
    ratio, met = rows.at_most(pairs, factor)
    return rows.Row(
        target="P1",
        what=what,
        ours=rows.seconds(pairs.our_median),
        reference=f"{rows.seconds(pairs.their_median)} {reference}",
        ratio=ratio,
        wanted=f"≤ {factor}×",
        met=met,
        samples=rows.samples(pairs),
    )


def _scan(plugins: Path, count: int) -> float:
    policy = policies.decode(many.policy())

    async def scan() -> float:
        catalog = Catalog({"plugins": plugins}, policy=lambda: policy, host_version="0.1.0", clock=SystemClock())
        keys.take_held()  # a start knows no signature
        began_s = time.perf_counter()
        async with catalog:
            took_s = time.perf_counter() - began_s
            verdicts = catalogs.verdicts(catalog)
        if len(verdicts) != count or not all(isinstance(one, Verified) for one in verdicts.values()):
            raise RuntimeError(f"expected {count} verified bundles, found {len(verdicts)} verdicts, not all good")
        return took_s

    return asyncio.run(scan())


def _xargs(plugins: Path) -> float:
    began_s = time.perf_counter()
    subprocess.run(["/bin/sh", "-c", XARGS.format(plugins)], check=True)
    return time.perf_counter() - began_s


def _hash_loop(program: Path, plugins: Path, count: int) -> float:
    began_s = time.perf_counter()
    ran = subprocess.run([program, plugins, str(THREADS)], check=True, capture_output=True, text=True)
    took_s = time.perf_counter() - began_s
    if int(ran.stdout) != count:
        raise RuntimeError(f"expected the C loop to hash {count} files, found {ran.stdout}")
    return took_s
