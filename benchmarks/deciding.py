"""Eight clients of a daemon that install plugins, then activate them: `python -m benchmarks.deciding SOCKET COUNT`.

A process of its own, so that whoever measures meanwhile does not wait for their interpreter. It writes a line before
the first installation and one before the first activation.
"""

from __future__ import annotations

import contextlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import many, processes

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENTS = 8


def main() -> None:
    path, count = Path(sys.argv[1]), int(sys.argv[2])
    for status in ("installed", "active"):
        sys.stdout.write(f"{status}\n")
        sys.stdout.flush()
        waiting = iter([many.plugin_id(number) for number in range(count)])
        with ThreadPoolExecutor(CLIENTS) as pool:
            for one in [pool.submit(_decide, path, waiting, status) for _ in range(CLIENTS)]:
                one.result()


def _decide(path: Path, waiting: Iterator[str], status: str) -> None:
    with contextlib.closing(processes.UnixHttp(path)) as client:
        for plugin_id in waiting:
            client.ask("POST", "/api/plugins/lifecycle", json.dumps({"id": plugin_id, "status": status}).encode())


if __name__ == "__main__":
    main()
