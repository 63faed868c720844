"""FLEETHOSTS: real daemons, each with both processes of an agent, on one nats-server: a change acted on by all of them.

The reference is the same change on one of them by hand: the same requests to the daemon's control socket, one after the
other, for a bundle that lies in `market.import_dir` already.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final

from benchmarks import fleet_changes, processes, rows
from benchmarks.bench import say
from latticed.fleet import chunks, deployment, messages
from tests.house import fleet_hosts, fleet_reports

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.bench import Bench
    from latticed.fleet import documents
    from latticed.fleet.nats_engine import NatsControllerEngine
    from tests.house.fleet_hosts import FleetHost
    from tests.house.fleet_reports import Reports

HOSTS: Final = 20
MAX_MB: Final = 45


def measure(bench: Bench) -> list[rows.Row]:
    count = bench.some(HOSTS, 3)
    with bench.scratch() as place:
        return asyncio.run(_measure(place, bench, count))


async def _measure(place: Path, bench: Bench, count: int) -> list[rows.Row]:
    sizes = deployment.Sizes(nodes=count, bundles_bytes=64 << 20)
    ours, theirs, everywhere = list[float](), list[float](), list[float]()
    with contextlib.ExitStack() as stack:
        async with fleet_changes.provided(place, 1, sizes) as (fleet, engine):
            hosts = [stack.enter_context(fleet_hosts.hosted(name="web-0"))]
            stack.enter_context(hosts[0].joined(fleet, reconcile_s=60.0))
            async with fleet_reports.followed(engine) as reports:
                await _settled(engine, reports, hosts, hosts[0].intent(), None)
                memory = _memory(hosts[0])
                for number in range(1, count):
                    hosts.append(stack.enter_context(fleet_hosts.hosted(name=f"web-{number}")))
                    stack.enter_context(hosts[-1].joined(fleet, reconcile_s=60.0))
                    say(f"FLEETHOSTS: {number + 1} hosts")
                await _settled(engine, reports, hosts, hosts[0].intent(), None)
                for pair in range(bench.pairs):
                    for which in (0, 1) if pair % 2 else (1, 0):
                        if which:
                            ours.append(await _changed(engine, reports, place, hosts[:1], f"acme.one{pair}"))
                        else:
                            theirs.append(await asyncio.to_thread(_by_hand, hosts[0], f"acme.hand{pair}"))
                    everywhere.append(await _changed(engine, reports, place, hosts, f"acme.all{pair}"))
    pairs = rows.Pairs(ours=tuple(ours), theirs=tuple(theirs))
    return [
        rows.Row(
            target="FLEETHOSTS",
            what="one host: a document's publication to the plugin installed, active and reported",
            ours=rows.seconds(pairs.our_median),
            reference=f"{rows.seconds(pairs.their_median)} the same requests by hand",
            ratio=rows.spread(pairs.ratios),
            samples=rows.samples(pairs),
        ),
        rows.Row(
            target="FLEETHOSTS",
            what=f"{count} hosts on this machine: ... the same on the last of them",
            ours=rows.seconds(rows.percentile(everywhere, 0.5)),
            samples={"ours": everywhere},
        ),
        rows.Row(
            target="FLEETHOSTS",
            what="memory of an agent, both processes: as the host's (PSS), and resident with what they share",
            ours=" and ".join(f"{value:.0f} MB" for value in memory),
            wanted=f"≤ {MAX_MB} MB",
            met=memory[0] <= MAX_MB,
        ),
    ]


async def _changed(
    engine: NatsControllerEngine, reports: Reports, place: Path, hosts: list[FleetHost], plugin_id: str
) -> float:
    """Seconds from the publication of the first document to the last report; the bundle is in the engine before."""
    bundle = hosts[0].bundle(plugin_id)
    source = hosts[0].source(bundle)
    (place / "bundle").write_bytes(hosts[0].tars[source.sha256])
    await chunks.put(engine, place / "bundle")
    return await _settled(engine, reports, hosts, hosts[0].intent(hosts[0].wanted(bundle)), source)


async def _settled(
    engine: NatsControllerEngine,
    reports: Reports,
    hosts: list[FleetHost],
    intent: documents.Intent,
    source: documents.BundleSource | None,
) -> float:
    generation = next(fleet_hosts.GENERATIONS)
    sources = () if source is None else (source,)
    made = {one.name: one.fleet.desired(generation, intent=intent, bundles=sources) for one in hosts}
    found = {name: await engine.desired(name) for name in made}
    began_s = time.monotonic()
    for name, document in made.items():
        before = found[name]
        await engine.put_desired(name, document, 0 if before is None else before.revision)
    await reports.until(lambda: all(reports.settled(one.name, intent) for one in hosts))
    return time.monotonic() - began_s


def _by_hand(host: FleetHost, plugin_id: str) -> float:
    """What the node asks for, by a client of the socket."""
    bundle = host.bundle(plugin_id)
    source = host.source(bundle)
    name = messages.spool_name(source.sha256)
    path = host.spool / name
    path.write_bytes(host.tars[source.sha256])
    path.chmod(0o644)
    began_s = time.monotonic()
    host.daemon.post("/api/market/import", {"name": name, "sha256": source.sha256})
    host.daemon.activate(bundle.id)
    return time.monotonic() - began_s


def _memory(host: FleetHost) -> tuple[float, float]:
    """MB of both processes: proportional to who shares it, and resident."""
    proportional = resident = 0.0
    for process in (host.process, host.link_process):
        assert process is not None
        with open(f"/proc/{process.pid}/smaps_rollup", encoding="ascii") as lines:
            proportional += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6
        resident += processes.memory_mib(process.pid) * (1 << 20) / 1e6
    return proportional, resident
