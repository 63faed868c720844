"""Name look-ups of one plugin leave threads for those of others. Real daemon."""

from __future__ import annotations

import asyncio
import socket
import threading

from latticed.host.egress import resolver
from tests.house import hostcalls, in_process

HERE = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]


async def test_unanswered_lookups_block_only_their_plugin(monkeypatch):
    """One plugin waits for more names than its share of threads; meanwhile another plugin's name is resolved."""
    asked, release = [], threading.Event()

    def getaddrinfo(host, *_args, **_named):
        asked.append(host)
        if host.startswith(b"never"):
            release.wait(30)
        return HERE

    async with in_process.opened() as home:
        bad, good = [
            await hostcalls.caller(home, "http:egress", accept=("http:egress",), plugin_id=f"acme.{name}", name=name)
            for name in ("bad", "good")
        ]
        for one in (bad, good):
            await home.ask("PUT", f"/api/plugins/by-id/{one.id}/grants", {"hosts": ["*"]})
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        waiting = [
            asyncio.create_task(bad.outcome("http.do", method="GET", url=f"https://never{number}.example/"))
            for number in range(resolver.CONCURRENT)
        ]
        try:
            await in_process.until(lambda: len(asked) == resolver.CONCURRENT, "all places of one plugin taken")
            outcome = await good.outcome("http.do", method="GET", url="https://fast.example/")
            assert outcome == "egress_blocked", "it was looked up, and its address is not public"
            assert not any(one.done() for one in waiting), "before any of theirs was given up"
        finally:
            release.set()
            await asyncio.gather(*waiting)
