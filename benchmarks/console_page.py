"""UI: the overview of 10,000 plugins in a real Chromium beside the same page as a file, and an hour of changes.

The browser and the console are alone with loopback in a network namespace: a Chromium asks elsewhere by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import shutil
import statistics
import subprocess
import threading
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from benchmarks import daemon, many, processes, rows
from benchmarks.bench import Unavailable, say
from tests.house import browsers, netns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.bench import Bench
    from tests.house.browsers import Browser

MAX_S: Final = 1.0
MAX_GROWTH: Final = 1.1
HOUR: Final = 3_600
"""Changes of an hour: a page asks for itself once a second at most."""
WARM: Final = 10
"""The first tenth of the changes fills what a browser keeps anyway."""
PAUSES: Final = 100
"""Timers of the page are so many times faster."""
FASTER: Final = f"""
const timer = setTimeout, ask = fetch;
window.answers = 0;
window.setTimeout = (work, ms, ...more) => timer(work, ms / {PAUSES}, ...more);
window.fetch = async (...asked) => {{
  const answer = await ask(...asked), text = await answer.text();
  timer(() => window.answers++, 0);
  return new Response(text, {{ status: answer.status }});
}};
"""
LOADED: Final = "performance.getEntriesByType('navigation')[0].loadEventEnd"
ROWS: Final = "document.querySelectorAll('#table tbody tr').length"
MAIN: Final = "document.querySelector('main').textContent"
SETTINGS: Final = '[runners]\nsystem = "noop"\n'


def measure(bench: Bench) -> list[rows.Row]:
    if reason := netns.why_not() or (None if shutil.which("chromium") else "there is no chromium"):
        raise Unavailable(reason)
    found: list[rows.Row] = []
    count = bench.some(10_000, 2_000)
    with bench.scratch() as home:
        place = daemon.Place(home=home, programs=bench.ours())
        place.prepare(SETTINGS)
        say(f"UI: writing {count} bundles")
        many.write(place.plugins, count)
        with daemon.running(place) as running:
            for status in ("installed", "active"):
                running.decide(many.plugin_id(0), status)

            async def scenario() -> None:
                with _console(place) as link:
                    async with browsers.opened(home) as browser:
                        await browser.go(link)
                        base = (await browser.address()).rstrip("/")
                        found.append(await _overview(bench, browser, base, count))
                        found.append(await _hour(bench, running, browser, base))

            netns.run((), scenario)
    return found


@contextlib.contextmanager
def _console(place: daemon.Place) -> Iterator[str]:
    """A console of the daemon; yields a link."""
    links, program = place.home / "link.sock", str(place.programs / "latticectl")
    env = {"LATTICED_SOCKET": str(place.socket)}
    command = [program, "ui", "--act", "--link-socket", str(links)]
    with processes.running(command, place.home / "console.log", env=env):
        processes.until(lambda: processes.accepts(links), "the console's socket of links", pause_s=0.05)
        asked = subprocess.run(
            [program, "ui", "link", "--link-socket", str(links)],
            check=True,
            capture_output=True,
            text=True,
            env={**processes.ENVIRONMENT, **env},
        )
        yield asked.stdout.strip()


async def _overview(bench: Bench, browser: Browser, base: str, count: int) -> rows.Row:
    """From the navigation to the load event, with rows to read: ours asks the daemon each time, a file asks nobody."""
    ours: list[float] = []
    theirs: list[float] = []
    await browser.go(f"{base}/")
    with _copies(await _files(browser, base)) as copied:
        for _ in range(bench.pairs):
            # A list of this very second is kept: each sample is one that was not.
            await asyncio.sleep(1.2)
            for url, samples in ((f"{base}/", ours), (f"{copied}/", theirs)):
                await browser.go(url)
                if (shown := await browser.value(ROWS)) != 50:
                    raise RuntimeError(f"expected 50 rows at {url}, found {shown}")
                samples.append(await browser.value(LOADED) / 1e3)
    say(f"UI: {statistics.median(ours):.3f} s, the file {statistics.median(theirs):.3f} s")
    pairs = rows.Pairs(ours=tuple(ours), theirs=tuple(theirs))
    return rows.Row(
        target="UI",
        what=f"overview of {count:,} plugins in Chromium, from navigation to loaded",
        ours=rows.seconds(pairs.our_median),
        reference=f"{rows.seconds(pairs.their_median)} the same page as a file",
        ratio=rows.spread(pairs.ratios),
        wanted=f"≤ {rows.seconds(MAX_S)}",
        met=pairs.our_median <= MAX_S,
        samples=rows.samples(pairs),
    )


async def _files(browser: Browser, base: str) -> dict[str, tuple[str, bytes]]:
    """The overview and what it brings, by path; a page that follows nothing."""
    path = urlsplit(base).path
    page = (await browser.html()).replace(f"{path}/static/", "/static/").replace('data-live="*"', 'data-live=""')
    found = {"/": ("text/html", page.encode())}
    for name, kind in (("console.css", "text/css"), ("live.js", "text/javascript"), ("icon.svg", "image/svg+xml")):
        text = await browser.value(f"fetch('{path}/static/{name}').then(answer => answer.text())")
        found[f"/static/{name}"] = kind, str(text).encode()
    return found


@contextlib.contextmanager
def _copies(files: dict[str, tuple[str, bytes]]) -> Iterator[str]:
    """A server of these files; yields its origin."""

    class Files(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            kind, body = files.get(self.path, ("text/plain", b""))
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


async def _hour(bench: Bench, running: daemon.Daemon, browser: Browser, base: str) -> rows.Row:
    """A plugin is activated and disabled in turn; its page asks for itself after each change, and shows it."""
    changes, plugin_id = bench.some(HOUR, HOUR // 12), many.plugin_id(0)
    running.client.close()  # the daemon has cut it, being idle for so long; it connects anew
    await browser.call("Performance.enable")
    await browser.call("Page.addScriptToEvaluateOnNewDocument", source=FASTER)
    await browser.go(f"{base}/plugins/{plugin_id}")
    say(f"UI: {changes} changes under an open page")
    early: dict[str, float] = {}
    for number in range(changes):
        status = ("disabled", "active")[number % 2]
        await asyncio.to_thread(running.decide, plugin_id, status)
        before = await browser.value("answers")
        # What an event has it do, without the half second that the console waits for more of them.
        await browser.value("document.dispatchEvent(new Event('visibilitychange'))")
        await browser.until(f"answers > {before}")
        if number + 1 == changes // WARM:
            early = await _memory(browser)
    late = await _memory(browser)
    shown = await browser.value(MAIN)
    await asyncio.to_thread(running.decide, plugin_id, ("disabled", "active")[changes % 2])
    await browser.until(f"{MAIN} !== {json.dumps(shown)}")  # it still follows
    growth = max(late[name] / early[name] for name in late)
    return rows.Row(
        target="UI",
        what=f"memory of an open page over {changes:,} changes, an hour's: script, elements",
        ours=_told(late),
        reference=f"{_told(early)} after the first {changes // WARM}",
        wanted=f"≤ {MAX_GROWTH:g}×",
        met=growth <= MAX_GROWTH,
    )


async def _memory(browser: Browser) -> dict[str, float]:
    """The page's heap in bytes, and its nodes; the least of three, each after a collection."""
    found: dict[str, list[float]] = {"JSHeapUsedSize": [], "Nodes": []}
    for _ in range(3):
        await asyncio.sleep(0.5)
        await browser.call("HeapProfiler.collectGarbage")
        for one in (await browser.call("Performance.getMetrics"))["metrics"]:
            if one["name"] in found:
                found[one["name"]].append(one["value"])
    return {name: min(values) for name, values in found.items()}


def _told(memory: dict[str, float]) -> str:
    return f"{memory['JSHeapUsedSize'] / 2**20:.2f} MiB, {memory['Nodes']:.0f}"
