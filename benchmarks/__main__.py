"""`python -m benchmarks`: run the benches, each in a process of its own, and print one table."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from benchmarks import rows, table
from benchmarks.bench import REPOSITORY, Bench, say
from latticed.kit import logs

BENCHES: Final = {
    "P1": "p01_verify",
    "P2": "p02_events",
    "P3": "p03_drop",
    "P4": "p04_audit",
    "P5": "p05_calls",
    "P6": "p06_crash",
    "P7": "p07_socket",
    "P8": "p08_cli",
    "P9": "p09_start",
    "P10": "p10_ticking",
    "P11": "p11_wasm",
    "P12": "p12_worker_route",
    "BIG": "large_restart",
    "PROXY": "proxy_users",
    "NGINX": "nginx_sites",
    "WG": "wireguard_peers",
    "STARTS": "p10_processes",
    "SPAWN": "spawning",
    "STALL": "stalled",
    "NEIGHBOUR": "neighbour",
    "CALLS": "host_calls",
    "STREAMS": "streams",
    "LAG": "lag",
    "SCALE": "scale",
    "DEV": "developing",
    "UI": "console_page",
    "FLEET": "fleet_changes",
    "FLEET10K": "fleet_large",
    "FLEETWIRE": "fleet_wire",
    "FLEETHOSTS": "fleet_hosts",
}
PAIRS: Final = 9
QUICK_PAIRS: Final = 3


def main(argv: list[str] | None = None) -> int:
    """0 when every bench could be run, whatever it found; 1 when one failed."""
    options = _parser().parse_args(argv)
    if options.one:
        return _one(options)
    wanted = options.only.upper().split(",") if options.only else list(BENCHES)
    if unknown := [name for name in wanted if name not in BENCHES]:
        sys.stderr.write(f"bench: expected some of {','.join(BENCHES)}, found {unknown[0]}\n")
        return 2
    where = table.machine()
    with tempfile.TemporaryDirectory(prefix="lb-", ignore_cleanup_errors=True) as thrown_away:
        work = Path(options.work or thrown_away).resolve()
        work.mkdir(parents=True, exist_ok=True)
        found, failed = _all(wanted, work, options)
    print(where)
    print(table.text(found))
    for name in failed:
        print(f"{name} FAILED: see above")
    if options.json:
        Path(options.json).write_text(table.document(found, where=where, failed=failed), encoding="utf-8")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure latticed beside its references.")
    parser.add_argument("--only", metavar="P1,P3", help=f"some of {','.join(BENCHES)}")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller: to see that it works, not how fast")
    parser.add_argument(
        "--pairs", type=int, default=0, help=f"interleaved pairs (default {PAIRS}, quick {QUICK_PAIRS})"
    )
    parser.add_argument("--json", metavar="FILE", help="write everything, samples included, to FILE")
    parser.add_argument(
        "--work", metavar="DIR", help="keep environments and the compiled reference there (default: none)"
    )
    parser.add_argument("--one", metavar="BENCH", help=argparse.SUPPRESS)
    return parser


def _all(wanted: list[str], work: Path, options: argparse.Namespace) -> tuple[list[rows.Row], list[str]]:
    found: list[rows.Row] = []
    failed: list[str] = []
    for name in wanted:
        say(f"{name}: {BENCHES[name]}")
        answer = work / f"{name}.json"
        answer.unlink(missing_ok=True)
        command = [sys.executable, "-m", "benchmarks", "--one", name, "--work", str(work), "--json", str(answer)]
        command += ["--pairs", str(options.pairs), *(["--quick"] if options.quick else [])]
        if subprocess.run(command, check=False, cwd=REPOSITORY, stdout=sys.stderr).returncode == 0:
            some = [rows.row_of(plain) for plain in json.loads(answer.read_text())]
            say("\n" + table.text(some))
            found += some
        else:
            failed.append(name)
    return found, failed


def _one(options: argparse.Namespace) -> int:
    pairs = options.pairs or (QUICK_PAIRS if options.quick else PAIRS)
    logs.configure("error", form="json")  # log lines would disturb the table
    bench = Bench(work=Path(options.work), quick=options.quick, pairs=pairs)
    found: list[rows.Row] = importlib.import_module(f"benchmarks.{BENCHES[options.one]}").measure(bench)
    Path(options.json).write_text(json.dumps([row.plain() for row in found]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
