"""A real Chromium, headless, driven over a pipe by the Chrome DevTools Protocol; in its caller's network namespace.

async with browsers.opened(tmp_path) as browser:
    await browser.go("http://127.0.0.1:8787/acme.page/")
    await browser.size(360, 800)
    png = await browser.picture()
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

PATIENCE_S = 40.0
OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-background-networking --no-first-run"
    " --disable-component-update --disable-sync --metrics-recording-only --hide-scrollbars --remote-debugging-pipe"
).split()
needed = pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed here")


@dataclass(slots=True, kw_only=True)
class Browser:
    """One page of a browser. `asked`: each URL that it wanted, whether that was allowed or not; `said`: its console;
    `held`: requests that `holding` has held back.
    """

    reader: asyncio.StreamReader
    writer: asyncio.WriteTransport
    session: str = ""
    asked: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    loads: int = 0
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of one method; events that come meanwhile are kept."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.writer.write(json.dumps(message).encode() + b"\0")
        async with asyncio.timeout(PATIENCE_S):
            while (answer := await self._next()).get("id") != number:
                pass
        assert "error" not in answer, answer
        return dict(answer["result"])

    async def _next(self) -> dict[str, Any]:
        found = json.loads((await self.reader.readuntil(b"\0"))[:-1])
        params = found.get("params", {})
        match found.get("method"):
            case "Network.requestWillBeSent":
                self.asked.append(params["request"]["url"])
            case "Log.entryAdded":
                self.said.append(params["entry"]["text"])
            case "Fetch.requestPaused":
                self.held.append(params["requestId"])
            # Another page of this browser has another session.
            case "Page.loadEventFired" if found.get("sessionId") == self.session:
                self.loads += 1
        return dict(found)

    async def tab(self, url: str) -> Browser:
        """Another page of the same browser, in a window of its own: both are seen. One of them is asked at a time."""
        # Without a session: that of a page knows no other page.
        found = replace(self, session="")
        page = (await found.call("Target.createTarget", url=url, newWindow=True))["targetId"]
        await found.attach(page)
        return found

    async def attach(self, page: str = "") -> None:
        """Drive this page, or the first."""
        if not page:
            targets = (await self.call("Target.getTargets"))["targetInfos"]
            page = next(one["targetId"] for one in targets if one["type"] == "page")
        self.session = (await self.call("Target.attachToTarget", targetId=page, flatten=True))["sessionId"]
        for domain in ("Page", "Network", "Log", "DOM", "CSS"):
            await self.call(f"{domain}.enable")

    async def go(self, url: str) -> None:
        """Open `url`, and return once it has loaded with all that it brings."""
        before = self.loads
        await self.call("Page.navigate", url=url)
        async with asyncio.timeout(PATIENCE_S):
            while self.loads == before:
                await self._next()

    @contextlib.asynccontextmanager
    async def holding(self, pattern: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Hold back requests that `pattern` (`*/live`) matches while this is open; yields what waits for the first."""
        await self.call("Fetch.enable", patterns=[{"urlPattern": pattern}])

        async def wanted() -> None:
            async with asyncio.timeout(PATIENCE_S):
                while not self.held:
                    await self._next()

        try:
            yield wanted
        finally:
            for request in self.held:
                await self.call("Fetch.continueRequest", requestId=request)
            self.held.clear()
            await self.call("Fetch.disable")

    async def size(self, width: int, height: int) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def dark(self, *, wanted: bool) -> None:
        value = "dark" if wanted else "light"
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    async def content_size(self) -> tuple[float, float]:
        """Width and height of what there is to scroll, in CSS pixels."""
        found = (await self.call("Page.getLayoutMetrics"))["cssContentSize"]
        return found["width"], found["height"]

    async def style(self, selector: str) -> dict[str, str]:
        """The computed style of the first element."""
        root = (await self.call("DOM.getDocument"))["root"]["nodeId"]
        node = (await self.call("DOM.querySelector", nodeId=root, selector=selector))["nodeId"]
        found = (await self.call("CSS.getComputedStyleForNode", nodeId=node))["computedStyle"]
        return {one["name"]: one["value"] for one in found}

    async def click(self, selector: str) -> None:
        """Click in the middle of an element, as a visitor would."""
        root = (await self.call("DOM.getDocument"))["root"]["nodeId"]
        node = (await self.call("DOM.querySelector", nodeId=root, selector=selector))["nodeId"]
        await self.call("DOM.scrollIntoViewIfNeeded", nodeId=node)
        corners = (await self.call("DOM.getBoxModel", nodeId=node))["model"]["content"]
        x, y = sum(corners[::2]) / 4, sum(corners[1::2]) / 4
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def value(self, script: str) -> Any:
        """The value of an expression in the page; of a promise, what it comes to."""
        found = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, script: str) -> None:
        """Wait until an expression is true in the page; what is seen of it instead, when it does not come."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    if await self.value(script):
                        return
                    await asyncio.sleep(0.05)
        except TimeoutError:
            seen = "document.visibilityState + ': ' + document.body.innerText.slice(0, 2000)"
            raise AssertionError(f"waited in vain for {script}; {await self.value(seen)}") from None

    async def html(self) -> str:
        """The document as it is now."""
        root = (await self.call("DOM.getDocument"))["root"]["nodeId"]
        return str((await self.call("DOM.getOuterHTML", nodeId=root))["outerHTML"])

    async def title(self) -> str:
        found = await self.call("Page.getNavigationHistory")
        return str(found["entries"][found["currentIndex"]]["title"])

    async def address(self) -> str:
        """Where the page is now."""
        found = await self.call("Page.getNavigationHistory")
        return str(found["entries"][found["currentIndex"]]["url"])

    async def picture(self) -> bytes:
        """What is seen, as a PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"])


@contextlib.asynccontextmanager
async def opened(home: Path) -> AsyncIterator[Browser]:
    """A browser with a profile below `home`; a child of this thread, and so in its network namespace."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    browser = [shutil.which("chromium") or "", *OPTIONS, f"--user-data-dir={home / 'profile'}", "about:blank"]
    # It reads commands from descriptor 3, and writes to 4.
    command = ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash", *browser]
    quiet: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    child = subprocess.Popen(command, **quiet, start_new_session=True, pass_fds=(theirs_in, theirs_out))
    try:
        os.close(theirs_in)
        os.close(theirs_out)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=64 << 20)
        incoming, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ours_in, "rb", 0)
        )
        writer, _ = await loop.connect_write_pipe(asyncio.Protocol, os.fdopen(ours_out, "wb", 0))
        try:
            found = Browser(reader=reader, writer=writer)
            await found.attach()
            yield found
        finally:
            writer.close()
            incoming.close()
    finally:
        child.terminate()
        await asyncio.to_thread(child.wait)
