"""Coverage-guided fuzzing of everything that reads untrusted bytes (atheris, which drives libFuzzer).

    make fuzz                                  # every target for 15 seconds
    make fuzz FUZZ_ARGS="--seconds 3600 urls"  # one of them for an hour

A target fails by an exception that it does not expect, or by an input that takes more than 50 ms of processor time.
The input is kept then, and the way to try it again is printed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_CPU_S = 0.05
TRIES = 3  # of a slow input: the least counts, so that a collection or a neighbour is not taken for the input's fault
MOST_BYTES = 16 << 10
HERE = Path(__file__).resolve().parent


def main() -> int:
    options = _options()
    if options.one:
        return _fuzz_one(options)
    import_tests()
    from tests.fuzz import targets

    names = options.targets or list(targets.ALL)
    kept = Path(tempfile.mkdtemp(prefix="fuzz-"))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        codes = list(pool.map(lambda name: _child(name, options.seconds, kept), names))
    failed = [name for name, code in zip(names, codes, strict=True) if code]
    for name in failed:
        print(f"{name}: failed; again: python -P {HERE / 'run.py'} --one --input {kept}/{name}-* {name}")
    print(f"{len(names) - len(failed)} passed, {len(failed)} failed")
    return int(bool(failed))


def import_tests() -> None:
    """Make `tests` importable without the checkout on sys.path, which would hide an installed latticed."""
    package = sys.modules.setdefault("tests", ModuleType("tests"))
    package.__path__ = [str(HERE.parent)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fuzz what reads strangers' bytes.")
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=15, help="for each target")
    parser.add_argument("--input", type=Path, help="try this input alone")
    parser.add_argument(
        "--one", action="store_true", help="in this process, one target: what the others are started as"
    )
    parser.add_argument("--kept", type=Path, default=Path(), help="where an input that fails is kept")
    return parser.parse_args()


def _child(name: str, seconds: int, kept: Path) -> int:
    command = [sys.executable, "-P", __file__, "--one", "--seconds", str(seconds), "--kept", str(kept), name]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, text=True)
    last = next((line for line in reversed(done.stderr.splitlines()) if line[:2] > "#0" and line[1].isdigit()), "")
    print(f"{name}: exit {done.returncode}; {last[:100]}", flush=True)
    if done.returncode:
        print(done.stdout[-2_000:], done.stderr[-6_000:], flush=True)
    return done.returncode


def _fuzz_one(options: argparse.Namespace) -> int:
    import atheris

    import_tests()
    with atheris.instrument_imports(include=["latticed"]):
        from tests.fuzz import targets

        target = targets.ALL[options.targets[0]]
    if options.input:
        _timed(target.judge)(options.input.read_bytes())
        return 0
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(target.seeds):
            Path(corpus, str(number)).write_bytes(seed)
        kept = f"-artifact_prefix={options.kept / options.targets[0]}-"
        flags = [
            f"-max_total_time={options.seconds}",
            f"-max_len={MOST_BYTES}",
            "-rss_limit_mb=2048",
            "-timeout=10",
            kept,
        ]
        atheris.Setup([sys.argv[0], corpus, *flags], _timed(target.judge))
        atheris.Fuzz()  # ends the process
    return 0


def _timed(judge: Callable[[bytes], None]) -> Callable[[bytes], None]:
    def once(data: bytes) -> float:
        begun = time.process_time()
        judge(data)
        return time.process_time() - begun

    def tried(data: bytes) -> None:
        if once(data) > MOST_CPU_S and (least := min(once(data) for _ in range(TRIES))) > MOST_CPU_S:
            raise AssertionError(f"expected at most {MOST_CPU_S} s of processor time, found {least:.3f}")

    return tried


if __name__ == "__main__":
    sys.exit(main())
