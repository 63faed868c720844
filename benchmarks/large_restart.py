"""BIG: from the exit of a plugin of 60 MiB to its restart, beside the same daemon that keeps no artifact."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
from typing import TYPE_CHECKING, Any, Final

from benchmarks import living, rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.bench import Bench

MIB: Final = 60
DEATHS: Final = 3
MAX_S: Final = 60e-3
ID: Final = "acme.big"
SETTINGS: Final = "[supervision]\nbackoff_base_s = 0\nbreaker_failures = 1000\n"
WITHOUT: Final = SETTINGS + "kept_artifact_bytes = 0\n"


def measure(bench: Bench) -> list[rows.Row]:
    """A program is executed from the memory that is kept; a script each child copies into its own root."""
    program = bench.compiled("answering", "-static").read_bytes()
    script = living.ANSWERING + b"exit 0\n"
    return [_row(bench, what, head.ljust(MIB << 20, b"#")) for what, head in (("program", program), ("script", script))]


def _row(bench: Bench, what: str, artifact: bytes) -> rows.Row:
    with bench.scratch() as place, asyncio.Runner() as runner, contextlib.ExitStack() as stack:

        def daemon(name: str, settings: str) -> tuple[str, Callable[[], float]]:
            opened: Any = living.opened(place / name, settings)
            home = runner.run(opened.__aenter__())
            stack.callback(lambda: runner.run(opened.__aexit__(None, None, None)))
            runner.run(home.activate(ID, artifact))
            return home.sandbox, lambda: statistics.median(runner.run(living.crash(home, ID)) for _ in range(DEATHS))

        level, ours_s = daemon("k", SETTINGS)
        _, theirs_s = daemon("n", WITHOUT)
        pairs = rows.interleave(ours_s, theirs_s, count=bench.pairs)
    return rows.Row(
        target="BIG",
        what=f"a {what} of {MIB} MiB, killed to verified, started ({level}) and answering, backoff 0",
        ours=rows.seconds(pairs.our_median),
        reference=f"{rows.seconds(pairs.their_median)} no artifact kept",
        ratio=rows.spread(pairs.ratios),
        wanted=f"≤ {rows.seconds(MAX_S)}",
        met=pairs.our_median <= MAX_S,
        samples=rows.samples(pairs),
    )
