"""Everything done for a plugin stops when it loses its permission, whatever the cause.

Observed from outside, at processes, sockets and servers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from latticed.host.call import HostError
from latticed.ledger import notifications
from latticed.model.errors import Problem
from tests.house import bundles, children, dns_servers, hostcall_rows_out, hostcalls, in_process, targets

TOML = """
[http]
listen = "127.0.0.1:0"
service_listen = "127.0.0.1:0"
[service.programs]
sh = "/bin/sh"
[task]
total_at_once = 32
[ddns]
poll_s = 1
verify_s = 1
"""
PROCESSES = ("service", "task", "tunnel")
ALL = {
    *PROCESSES,
    *"approved monitor ddns template invoke proxied stream notification files borrowed lent call".split(),
}
BRIEF = {"proxied", "stream", "call"}
KEPT = {"ddns"}
"""Remains at the remote end; the test checks at its end that it is not put again."""
WAITS = "while :; do sleep 0.1; done"
ADDRESS = "93.184.215.14"
CAUSES = "tamper key digest plugin remove disable full trim takeover".split()
CONTROL = "control"
LENDER = "lender.demo"
"""Publishes files that the others serve, and serves those of each of them."""


@dataclass(slots=True, kw_only=True)
class Activities:
    """Activities of one plugin. The sites `watched`, `called` and `streamed` never answer, `proxied` does."""

    home: in_process.Home
    names: dns_servers.NameServer
    author: bundles.Author
    bundle: bundles.Bundle
    call: Any
    client: aiohttp.ClientSession
    watched: targets.Site
    called: targets.Site
    streamed: targets.Site
    proxied: targets.Site
    lender: Any
    task_ids: list[str] = field(default_factory=list)
    calling: asyncio.Task[Any] | None = None
    stream: asyncio.Task[bytes] | None = None

    @property
    def id(self) -> str:
        return self.bundle.id

    @property
    def record(self) -> str:
        return f"{self.id.partition('.')[0]}.{dns_servers.ZONE}"

    @property
    def services(self) -> Any:
        return self.home.app.services

    @property
    def state(self) -> str:
        """State of the waiting task; empty when the id was taken over."""
        with contextlib.suppress(Problem):
            return str(self.services.tasks.get(self.task_ids[-1]).state)
        return ""

    async def begin(self, *, deaf: bool) -> None:
        """Start all but the proxied activities; a `deaf` service ignores SIGTERM."""
        trap = "''" if deaf else "'exit 0'"
        await self.call("service.put", name="nap", program="sh", args=["-c", f"trap {trap} TERM; {WAITS}", self.id])
        for script, target in ((WAITS, [self.id]), ("exit 0", [])):  # one runs at a time: the other waits
            wanted = {"interpreter": "sh", "script": script, "targets": target, "timeout_s": 600}
            self.task_ids.append((await self.call("task.submit", **wanted))["id"])
            assert (await self.approve(self.task_ids[-1])).status == 200
            await in_process.until(lambda: self.processes("task"), "the first task to run")
        await self.call("monitor.put", name="web", kind="http", target=self.watched.url(), interval_s=600, timeout_s=60)
        server = f"127.0.0.1:{self.names.port}"
        provider = {"provider": "rfc2136", "secret": "${secret:KEY}", "server": server, "key": dns_servers.KEY}
        await self.call("ddns.put", name=self.record, type="A", address=ADDRESS, ttl=60, **provider)
        await self.call("tunnel.put", **hostcall_rows_out._TUNNEL)
        for target, more in (("template", {"template": "hello"}), ("invoke", {"action": "answer"})):
            await self.route(target, target, **more)
        await self.call("notify.send", title="hello")
        await self.call("static.put", path="x.txt", content="hello")
        await self.route("files", "static")
        await self.route("borrowed", "static", plugin=LENDER)
        await self.lender("route.put", path=f"/{LENDER}/{self.id}/", target="static", plugin=self.id)
        await self.call("network.plan", kind="nft", intent={})

    async def proxy(self) -> None:
        """Start proxied routes and a pending call.

        Late, since one plugin at a time may use the listener, and a call has a deadline of 10 s.
        """
        self.calling = asyncio.ensure_future(self._call())
        for name, site in (("proxied", self.proxied), ("streamed", self.streamed)):
            await self.route(name, "service", origin=site.url().rstrip("/"), public=["/**"])
        self.stream = asyncio.ensure_future(self._read(self.url("streamed")))

    async def route(self, name: str, target: str, **more: Any) -> None:
        await self.call("route.put", path=self.path(name), target=target, **more)

    def path(self, name: str) -> str:
        return f"/{self.id}/{name}/"

    def url(self, name: str) -> str:
        """The present URL of a route: the listener closes with the last route and opens on another port."""
        table = self.services.upstreams if name in {"proxied", "streamed"} else self.services.pages
        plugin_id = LENDER if name == "lent" else self.id
        path = f"/{plugin_id}/{self.id}/x.txt" if name == "lent" else f"{self.path(name)}x.txt"
        return f"{table.listener.url}{path}"

    async def approve(self, task_id: str) -> in_process.Answer:
        sha256 = self.services.tasks.get(task_id).sha256
        return await self.home.ask("POST", f"/api/tasks/{task_id}/approve", {"sha256": sha256})

    async def until(self, *kinds: str) -> None:
        """Wait until all of these are seen."""
        deadline_s = time.monotonic() + in_process.DEADLINE_S
        while missing := set(kinds) - await self.seen():
            assert time.monotonic() < deadline_s, (self.id, missing)
            await asyncio.sleep(0.02)

    async def seen(self) -> set[str]:
        """The activities that are observed right now."""
        found = {kind for kind in PROCESSES if self.processes(kind)}
        pages = ("template", "invoke", "proxied", "files", "borrowed", "lent")
        found |= {kind for kind in pages if await self.answers(kind)}
        queue = self.services.notifications
        others = {
            "approved": self.state == "approved",
            "monitor": self.watched.open_now,
            "ddns": self.names.addresses(self.record),
            "stream": self.stream is not None and not self.stream.done(),
            "call": self.calling is not None and not self.calling.done(),
            "notification": self.id in set(queue._ledger.read(notifications.senders)) - queue._resting(),
        }
        return found | {kind for kind, there in others.items() if there}

    def processes(self, kind: str) -> list[int]:
        mine = {pid: _words(pid) for pid in children.descendants(os.getpid()) if children.alive(pid)}
        if kind == "tunnel":
            return [pid for pid, words in mine.items() if words[-1:] == ["run"] and f"/{self.id}+" in " ".join(words)]
        shell = [pid for pid, words in mine.items() if words[-1:] == [self.id]]
        return [pid for pid in shell if ("-c" in mine[pid]) is (kind == "service")]

    async def answers(self, name: str) -> bool:
        try:
            async with self.client.get(self.url(name)) as answer:
                return answer.status != 404
        except (aiohttp.ClientConnectionError, aiohttp.InvalidURL):  # the listener closed with its last route
            return False

    async def _call(self) -> None:
        with contextlib.suppress(HostError):
            await self.call("http.do", method="GET", url=self.called.url())

    async def _read(self, url: str) -> bytes:
        with contextlib.suppress(aiohttp.ClientError):
            async with self.client.get(url) as answer:
                return await answer.read()
        return b""


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    except OSError:
        return []


@contextlib.asynccontextmanager
async def activities_of(home: in_process.Home, names: dns_servers.NameServer, cause: str) -> AsyncIterator[Activities]:
    """A plugin with its own publisher and all permissions, and the sites that it uses."""
    author = bundles.author(cause)
    _trust(home, author)
    await home.look()
    async with contextlib.AsyncExitStack() as stack:
        sites = [await stack.enter_async_context(targets.site(answer)) for answer in (None, None, None, targets.OK)]
        client = await stack.enter_async_context(aiohttp.ClientSession())
        made = home.drop(
            cause,
            author=author,
            id=f"{cause}.demo",
            capabilities=hostcalls.EVERYTHING,
            artifact=bundles.ARTIFACT + cause.encode(),
        )
        instance = await home.armed(made.id, accept=hostcalls.HOST_RISK)
        origins = [f"origin={site.url().rstrip('/')}" for site in sites]
        permits = [
            *origins,
            *(f"publish={site.url().rstrip('/')}" for site in sites),
            f"origin=dns://127.0.0.1:{names.port}",
            f"share={LENDER}",
        ]
        granted = await home.ask("PUT", f"/api/plugins/by-id/{made.id}/grants", {"permits": permits})
        assert granted.status == 200, granted
        await home.ask("PUT", f"/api/secrets/KEY/plugins/{made.id}", {})
        watched, called, streamed, proxied = sites
        yield Activities(
            home=home, names=names, author=author, bundle=made, call=instance.call, client=client,
            watched=watched, called=called, streamed=streamed, proxied=proxied,
            lender=home.driven.only(LENDER).call,
        )  # fmt: skip


def _trust(home: in_process.Home, *more: bundles.Author, **fields: Any) -> None:
    """Trust these publishers besides those the daemon trusts already."""
    old = home.app.api.policy.own
    known = {name: list(one.keys) for name, one in old.publishers.items()}
    kept = {kind: sorted(getattr(old.revoked, kind)) for kind in ("keys", "digests", "plugins")}
    for kind, values in fields.items():
        kept[kind] += values
    policy = bundles.policy(*more, revoked=kept)
    policy["trusted_publishers"] = known | policy["trusted_publishers"]
    fresh = home.trust.with_name("fresh")
    fresh.write_text(json.dumps(policy))
    fresh.rename(home.trust)


# Causes that end a plugin's permissions; each returns once the cause is reported.


async def tamper(it: Activities) -> None:
    bundles.tamper(it.bundle.artifact_path)
    await _failed(it, "digest_mismatch")


async def remove(it: Activities) -> None:
    it.bundle.path.rename(it.home.root / "away")
    await _failed(it, "manifest_missing")


async def key(it: Activities) -> None:
    await _revoked(it, keys=[it.author.public])


async def digest(it: Activities) -> None:
    await _revoked(it, digests=[it.bundle.raw["digest_sha256"]])


async def plugin(it: Activities) -> None:
    await _revoked(it, plugins=[f"{it.id}@*"])


async def disable(it: Activities) -> None:
    assert (await it.home.decide(it.id, "disabled")).status == 200


async def full(it: Activities) -> None:
    """Disable the plugin while the ledger cannot be written."""

    async def refuse(*_: Any, **__: Any) -> None:
        raise Problem("ledger_unavailable", "the disk is full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(it.home.app.api.ledger, "write", refuse)
        assert (await it.home.decide(it.id, "disabled")).status == 200


async def trim(it: Activities) -> None:
    wanted = {"trim": [one for one in hostcalls.EVERYTHING if one != "log:write"]}
    assert (await it.home.ask("PUT", f"/api/plugins/by-id/{it.id}/grants", wanted)).status == 200


async def takeover(it: Activities) -> None:
    """Have the id taken over by another publisher, who has all permissions too."""
    other = bundles.author("stranger")
    _trust(it.home, other)
    await it.home.look()
    it.home.drop("other", author=other, id=it.id, capabilities=hostcalls.EVERYTHING, version="2.0.0")
    lifecycle = it.home.app.api.lifecycle
    await in_process.until(lambda: lifecycle.claimant(it.id, "stranger"), "the other's bundle")
    wanted = {"accept_publisher": "stranger", "accept": list(hostcalls.HOST_RISK)}
    answer = await it.home.ask("POST", f"/api/plugins/by-id/{it.id}/upgrade", wanted)
    assert answer.status == 200, answer


async def _revoked(it: Activities, **what: list[str]) -> None:
    _trust(it.home, **what)
    await it.home.look()
    await _failed(it, f"{next(iter(what)).removesuffix('s')}_revoked")


async def _failed(it: Activities, code: str) -> None:
    def told() -> bool:
        runtime = it.home.app.api.supervisor.runtime(it.id)
        return runtime.last_error is not None and runtime.last_error.code == code

    await in_process.until(told, f"{it.id}: {code}")
    assert it.home.app.api.supervisor.runtime(it.id).state == "failed", "not told before it is so"


@pytest.fixture
async def home():
    with hostcalls._tunnels() as tunnels:
        async with in_process.opened(toml=TOML + tunnels.replace("plugin_tunnels = 1", "tunnels = 64")) as found:
            await found.ask("PUT", "/api/secrets/KEY", dns_servers.VALUES[dns_servers.KEY].encode())
            lender = await hostcalls.caller(
                found,
                "worker:route",
                "static:read",
                "static:write",
                accept=("static:write",),
                plugin_id=LENDER,
                name="lender",
            )
            shares = [f"share={one}.demo" for one in (*CAUSES, CONTROL, "crash")]
            granted = await found.ask("PUT", f"/api/plugins/by-id/{LENDER}/grants", {"permits": shares})
            assert granted.status == 200, granted
            await lender.call("static.put", path="x.txt", content="hello")
            yield found


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    kind = next((one for one in ("knot", "bind") if dns_servers.installed(one)), None)
    if kind is None:
        pytest.skip("no name server is installed here")
    with dns_servers.serving(kind, tmp_path_factory.mktemp(kind)) as found:
        yield found


async def test_every_loss_of_permission_stops_all_activities_before_it_is_reported(home, names):
    """Those of the control plugin continue. DNS records stay, but only the control plugin's is put again if removed."""
    async with contextlib.AsyncExitStack() as stack:
        every = {one: await stack.enter_async_context(activities_of(home, names, one)) for one in (*CAUSES, CONTROL)}
        await asyncio.gather(
            *(it.begin(deaf=one not in {"disable", "full", "trim", "takeover"}) for one, it in every.items())
        )
        await asyncio.gather(*(it.until(*(ALL - BRIEF)) for it in every.values()))
        left = {}
        for cause in CAUSES:
            it = every[cause]
            await it.proxy()
            await it.until(*BRIEF)
            await globals()[cause](it)
            left[cause] = await it.seen() - KEPT
        assert left.pop("full") == {"approved"}, "what cannot be written down yet"
        assert left == {cause: set() for cause in CAUSES if cause != "full"}
        await in_process.until(lambda: every["full"].state == "submitted", "the approval to be withdrawn on record")
        assert await every[CONTROL].seen() == ALL - BRIEF
        asked = {one: len(it.watched.requests) for one, it in every.items()}
        for it in every.values():
            names.remove(it.record)
        await every[CONTROL].until("ddns")  # polled every second, by the same clock as the others
        assert {one for one, it in every.items() if it.names.addresses(it.record)} == {CONTROL}
        assert {one: len(it.watched.requests) for one, it in every.items()} == asked


async def test_activities_resume_when_bundle_is_trusted_again(home, names):
    """Services, tunnels, monitors, records, routes; a waiting task needs a new approval, and does not run before."""
    async with activities_of(home, names, "tamper") as it:
        await it.begin(deaf=True)
        await it.proxy()
        await it.until(*ALL)
        before = bundles.tamper(it.bundle.artifact_path)
        await _failed(it, "digest_mismatch")
        refused = await it.approve(it.task_ids[-1])
        assert (refused.status, refused.code) == (409, "not_available")
        assert "digest_mismatch" in refused["detail"]
        it.bundle.artifact_path.write_bytes(before)
        it.names.remove(it.record)
        await it.until("service", "tunnel", "ddns", "template", "invoke", "proxied", "files", "notification")
        await it.until("borrowed", "lent")
        assert it.services.tasks.get(it.task_ids[-1]).state == "submitted"
        assert (await it.approve(it.task_ids[-1])).status == 200
        await in_process.until(lambda: it.services.tasks.get(it.task_ids[-1]).state == "done", "the task to run")


async def test_crash_of_plugin_keeps_its_host_service_activities(home, names):
    """Host services keep working for a plugin while its own process is down."""
    async with activities_of(home, names, "crash") as it:
        await it.begin(deaf=False)
        await it.proxy()
        await it.until(*ALL)
        home.driven.only(it.id).crash()
        await in_process.until(lambda: home.app.api.supervisor.runtime(it.id).state != "armed", "it to be down")
        await home.look()
        assert await it.seen() >= ALL - {"call", "template", "invoke"}
