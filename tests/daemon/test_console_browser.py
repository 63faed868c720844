"""The console in a real Chromium, alone with loopback: each page on a phone and on a screen, each act, what is live.

With LATTICED_PICTURES set it writes the pictures of the docs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.house import axes, browsers, bundles, consoles, hosting, netns, pages, programs
from tests.house.browsers import Browser

pytestmark = [pytest.mark.root, pytest.mark.daemon, pytest.mark.slow, browsers.needed]

ID = "acme.demo"
PAGES = (
    "/",
    f"/plugins/{ID}",
    "/plugins/acme.later",
    f"/plugins/{ID}/logs",
    "/rejected",
    "/market",
    "/plans",
    "/tasks",
)
MORE = ("/audit", "/notifications", "/health")
PICTURES = {"/": "console-overview", f"/plugins/{ID}": "console-plugin"}
AXE = """JSON.stringify((await axe.run(document, {resultTypes: ["violations"]})).violations.map(
    one => [one.impact, one.id, one.nodes.map(node => node.html).slice(0, 3)]))"""

SHOWN = "document.getElementById('table').querySelector('tbody').textContent"
PRESS = "[...document.querySelectorAll('#acts button')].find(one => one.textContent === '{label}').click()"


def in_a_network(scenario) -> None:
    if reason := netns.why_not():
        pytest.skip(reason)
    netns.run((), scenario)


@contextlib.asynccontextmanager
async def opened(tmp_path: Path, *options: str) -> AsyncIterator[tuple[hosting.Host, consoles.RunningConsole, Browser]]:
    """A daemon with an armed plugin, one not decided about and a refused bundle; its console, opened in a browser."""
    with hosting.hosting() as host, contextlib.ExitStack() as stack:
        host.up(ID, programs.GREETER)
        host.result(ID, "greet", {"name": "Ada"})
        host.drop("acme.later", programs.GREETER, capabilities=["kv:read", "http:egress"])
        host.daemon.place.drop("stranger", author=bundles.author("stranger"), id="stranger.demo")
        host.daemon.until_rejected("stranger", "publisher_untrusted")
        host.daemon.until(lambda: host.daemon.plugin("acme.later"), "acme.later to be seen")
        console = stack.enter_context(consoles.running(host.daemon, *options))
        async with browsers.opened(tmp_path) as browser:
            await browser.go(console.link)
            assert await browser.address() == f"{console.origin}{console.base}/"
            yield host, console, browser


async def ran(browser: Browser, script: str) -> Any:
    """The value of an expression in the page."""
    wrapped = f"(async () => {{ return {script} }})()"
    found = await browser.call("Runtime.evaluate", expression=wrapped, awaitPromise=True, returnByValue=True)
    assert "exceptionDetails" not in found, found
    return found["result"].get("value")


async def until(browser: Browser, script: str) -> None:
    """Wait until an expression is true in the page; a page that is being exchanged is asked again."""
    async with asyncio.timeout(browsers.PATIENCE_S):
        while True:
            with contextlib.suppress(AssertionError):
                if await ran(browser, script):
                    return
            await asyncio.sleep(0.05)


def remote_addresses() -> set[str]:
    """The other ends of all TCP connections of this network namespace, as the kernel writes them."""
    lines = [
        line for name in ("tcp", "tcp6") for line in Path(f"/proc/thread-self/net/{name}").read_text().splitlines()[1:]
    ]
    return {line.split()[2].rsplit(":", 1)[0] for line in lines}


LOOPBACK = {"0100007F", "00000000", "0" * 32, "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def test_the_console_in_a_real_browser(tmp_path):
    """One daemon and one browser for all: starting them takes longer than what is looked at."""
    axe = axes.script()

    async def scenario() -> None:
        async with opened(tmp_path, "--act") as (host, console, browser):
            await every_page_on_a_phone_and_a_screen(console, browser, axe, tmp_path)
            await what_is_clicked_is_carried_out_and_pages_follow(host, console, browser)
            await it_is_read_with_the_keyboard_and_without_scripts(console, browser)
            assert {urlsplit(one).netloc for one in browser.asked} == {urlsplit(console.link).netloc}

    in_a_network(scenario)


async def every_page_on_a_phone_and_a_screen(
    console: consoles.RunningConsole, browser: Browser, axe: str, place: Path
) -> None:
    """It is as wide as the window, serious barriers there are none, nothing is blocked, and nothing leaves loopback."""
    barriers, grounds = [], {}
    for width, dark, paths in (
        (360, False, (*PAGES, *MORE)),
        (360, True, PAGES[:2]),
        (1440, False, (*PAGES, *MORE)),
        (1440, True, PAGES[:1]),
    ):
        await browser.size(width, 900)
        await browser.dark(wanted=dark)
        for path in paths:
            await browser.go(f"{console.origin}{console.base}{path}")
            assert (await browser.content_size())[0] == width, path
            # What has the same elements in another width has the same barriers, but for a few that the layout makes.
            if width == 360 or path in PAGES[:2]:
                # A debugger's evaluation is not under the page's policy.
                await browser.call("Runtime.evaluate", expression=axe)
                found = json.loads(await ran(browser, AXE))
                barriers += [(path, width, dark, one) for one in found if one[0] in {"serious", "critical"}]
            _keep(await browser.picture(), path, width, dark, place)
            assert remote_addresses() <= LOOPBACK
        grounds[dark] = (await browser.style("body"))["background-color"]
    assert barriers == []
    assert grounds[False] != grounds[True]
    assert browser.said == [], "nothing was blocked, nothing was missing"


async def what_is_clicked_is_carried_out_and_pages_follow(
    host: hosting.Host, console: consoles.RunningConsole, browser: Browser
) -> None:
    """Buttons act, the overview and the log follow the daemon without a reload, and a command can be copied."""
    here = f"{console.origin}{console.base}"
    await browser.go(f"{here}/plugins/acme.later")
    for label, status in (("Install", "installed"), ("Activate", "active")):
        loads = browser.loads
        await ran(browser, PRESS.format(label=label))
        await _loaded(browser, loads)
        assert host.daemon.plugin("acme.later")["status"] == status
        assert f"acme.later is {status}" in await ran(browser, "document.querySelector('main').textContent")
    assert "latticectl caps grant acme.later http:egress" in await browser.html()
    await until(browser, "document.querySelector('.command .copy') !== null")

    await browser.go(f"{here}/")
    await until(browser, "document.getElementById('link-state').textContent === 'live'")
    loads = browser.loads
    # The console's own stream of the daemon begins a moment after the page's: decide until one is heard.
    async with asyncio.timeout(browsers.PATIENCE_S):
        while "disabled" not in await ran(browser, SHOWN):
            for status in ("active", "disabled"):
                await asyncio.to_thread(host.daemon.set_status, status, "acme.later")
            await asyncio.sleep(1.5)
    assert browser.loads == loads, "the page was not loaded anew"

    await browser.go(f"{here}/plugins/{ID}/logs")
    await until(browser, "document.getElementById('log').textContent.includes('greeting Ada')")
    await asyncio.to_thread(host.result, ID, "greet", {"name": "Grace"})
    await until(browser, "document.getElementById('log').textContent.includes('greeting Grace')")
    assert await ran(browser, "document.getElementById('log').textContent.split('greeting Ada').length") == 2


async def it_is_read_with_the_keyboard_and_without_scripts(console: consoles.RunningConsole, browser: Browser) -> None:
    """Tab leads to the skip link first; without JavaScript each page has the same words."""
    here = f"{console.origin}{console.base}"
    await browser.go(f"{here}/")
    for kind in ("keyDown", "keyUp"):
        await browser.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert await ran(browser, "document.activeElement.className") == "skip"
    await browser.call("Emulation.setScriptExecutionDisabled", value=True)
    for path, words in (("/", ID), (f"/plugins/{ID}", "What it may do"), (f"/plugins/{ID}/logs", "greeting Ada")):
        await browser.go(here + path)
        assert words in await browser.html()


async def _loaded(browser: Browser, before: int) -> None:
    """Wait for another document than the one before."""
    async with asyncio.timeout(browsers.PATIENCE_S):
        while browser.loads == before:
            await browser.call("Page.getLayoutMetrics")


def _keep(png: bytes, path: str, width: int, dark: bool, place: Path) -> None:  # noqa: FBT001 - a row of a table
    """Write a picture to look at; those of the docs only when that is asked for."""
    name = f"{path.strip('/').replace('/', '-') or 'overview'}-{width}{'-dark' if dark else ''}.png"
    (place / name).write_bytes(png)
    wanted = PICTURES.get(path)
    if os.environ.get("LATTICED_PICTURES") and wanted and not dark:
        shutil.copy(place / name, pages.CHECKOUT / "docs" / "images" / f"{wanted}-{width}.png")
