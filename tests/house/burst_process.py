"""A Gate over a ledger on this disk, as a process: reads a plugin's lines on stdin, answers on stdout.

Run as a program with the state directory; it ends at the end of its stdin.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from latticed.broker.decide import Rights
from latticed.broker.gate import Broker, GateLimits
from latticed.host import call as service
from latticed.host.kv import KvCalls, quota_of
from latticed.host.log import LogCalls
from latticed.kit.clock import SystemClock
from latticed.kit.token_bucket import Rate
from latticed.ledger import open_ledger
from latticed.ledger.retention import Retention
from latticed.processes.pipes import PipeWriter
from latticed.runners.jsonrpc import JsonRpcSession
from latticed.settings import HostCallSettings

RIGHTS = frozenset({"kv:read", "kv:write", "log:write"})


class _Plugin(asyncio.Protocol):
    """Feeds the session, and keeps what `flow` wants; `gone` once stdin has ended."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.feed: Any = None
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.feed(data)

    def eof_received(self) -> None:
        self.gone.set()

    def flow(self, on: bool) -> None:  # noqa: FBT001 - the session's contract
        self.transport.resume_reading() if on else self.transport.pause_reading()


async def main(state: Path) -> None:
    unlimited = GateLimits(rate=Rate(per_second=1e9, burst=1e9))
    async with open_ledger(state, clock=SystemClock()) as ledger:
        ledger.calls_retention = Retention(max_bytes=64 << 20)  # so that two million calls fit on a small disk
        kv, log = KvCalls(ledger, quota=quota_of(HostCallSettings())), LogCalls(lambda *_: None)
        services = service.table((*kv.calls(), *log.calls()))
        broker = Broker(services, record=ledger.note, clock=SystemClock(), gate_limits=unlimited)
        gate = broker.gate(service.Caller(plugin_id="acme.demo"), Rights(declared=RIGHTS, granted=RIGHTS))
        answers, plugin = await PipeWriter.connect(os.dup(1)), _Plugin()
        session = JsonRpcSession(
            write=answers.write,
            serve=gate.begin,
            refuse=gate.refuse,
            flow=plugin.flow,
            broken=lambda *why: sys.exit(f"broken: {why}"),
            may_write=lambda: answers.may_write,
            drain=answers.drain,
        )
        plugin.feed = session.feed
        await asyncio.get_running_loop().connect_read_pipe(lambda: plugin, os.fdopen(os.dup(0), "rb", buffering=0))
        await plugin.gone.wait()
        await session.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
