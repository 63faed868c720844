"""Pages of plugins in a real browser: their own style and images are there, and nothing else of them has an effect."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import math
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.house import browsers, hosting, netns, pages, routed
from tests.house.routed import ID

pytestmark = [pytest.mark.root, pytest.mark.slow, browsers.needed]

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)
HOSTILE = """<!doctype html><html><head>
<meta http-equiv="content-security-policy" content="default-src * data: 'unsafe-inline' 'unsafe-eval'">
<base href="{evil}/based/">
<meta http-equiv="refresh" content="1; url={evil}/refresh">
<style>@import url("{evil}/import.css"); #own {{ color: rgb(1, 2, 3); background: url("{here}styled.png") }}
#far {{ background: url("{evil}/styled.png") }} #other {{ background: url("{other}styled.png") }}
@font-face {{ font-family: far; src: url("{evil}/font.woff2") }} body {{ font-family: far, sans-serif }}</style>
<link rel="stylesheet" href="{here}files/site.css"><link rel="stylesheet" href="{evil}/link.css">
<link rel="stylesheet" href="{other}link.css"><link rel="manifest" href="{evil}/manifest">
<link rel="prefetch" href="{evil}/prefetch"><link rel="preload" as="image" href="{evil}/preload">
<script>document.title = "ran"; fetch("{evil}/fetch"); new Image().src = "{here}script.png"</script>
<script src="{here}script.js"></script><script src="{evil}/script.js"></script>
<script type="module" src="{evil}/module.js"></script></head>
<body onload="location = '{evil}/onload'"><div id="own">own</div><div id="far">far</div><div id="other">other</div>
<div id="attribute" style="color: rgb(4, 5, 6); background: url('{here}attribute.png')">attribute</div>
<img src="{here}files/image.png"><img src="relative.png"><img src="{evil}/image.png"><img src="{other}image.png">
<img src="{here}../acme.other/up.png"><img src="{here}..%2facme.other/encoded.png">
<img src="{here}files/broken" onerror="location = '{evil}/onerror'"><svg onload="location = '{evil}/svg'"></svg>
<iframe src="{here}frame"></iframe><iframe src="{evil}/frame"></iframe>
<iframe srcdoc="<img src='{evil}/srcdoc'>"></iframe><object data="{evil}/object"></object><embed src="{evil}/embed">
<video poster="{evil}/poster" src="{evil}/video"></video><audio src="{evil}/audio" autoplay></audio>
<form action="{evil}/form" method="post"><button id="send">send</button></form>
<a id="link" href="javascript:location='{evil}/link'">link</a></body></html>"""
DISKS = {"/": 41, "/home": 73, "/srv": 8}
UNREADABLE = "<style>p { color: rgb(9, 9, 9) }</style><p>hello</p>".encode("utf-16")


@dataclass
class Site(routed.SimulatedPlugins):
    """A plugin that answers by path."""

    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)

    async def invoke(self, plugin_id: str, action: str, payload: Any) -> dict[str, Any]:
        self.paths.append(payload["path"])
        result = self.answers.get(payload["path"], {"status": 404, "body": ""})
        return {"ok": True, "message": "", "result": result, "error": None}


@dataclass
class Elsewhere:
    """Another server. It has the hostile page, too, and sends it with no policy at all."""

    page: str = ""
    origin: str = ""
    paths: set[str] = field(default_factory=set)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.paths.add(request.path)
        # Nothing below it: its frames would have frames of their own.
        return web.Response(text=self.page if request.path == "/" else "", content_type="text/html")


@contextlib.asynccontextmanager
async def elsewhere() -> AsyncIterator[Elsewhere]:
    found = Elsewhere()
    server = web.Server(found.handle)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    found.origin = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield found
    finally:
        listening.close()
        await server.shutdown(1)


def in_a_network(scenario) -> None:
    if reason := netns.why_not():
        pytest.skip(reason)
    netns.run((), scenario)


def test_pages_have_their_style_and_images_and_no_script_or_request_elsewhere(tmp_path):
    """The same page without the policy does all that it tries, so the browser can."""

    async def scenario() -> None:
        site = Site()
        async with (
            elsewhere() as visited,
            elsewhere() as evil,
            routed.opened(tmp_path, plugins=site) as world,
            browsers.opened(tmp_path) as browser,
        ):
            for owner in (ID, "acme.other"):
                await world.put(owner, path=f"/{owner}/", target="invoke", action="web", methods=["GET", "POST"])
            await world.put(path=f"/{ID}/files/", target="static")
            await world.call(ID, "static.put", path="site.css", content="#own { margin-left: 7px }")
            here, other = (f"http://127.0.0.1:{world.port(world.pages)}/{one}/" for one in (ID, "acme.other"))
            # Two of them: of a page that it has left the browser may still ask for this and that, such as an icon.
            visited.page = HOSTILE.format(evil=visited.origin, here=here, other=other)
            await browser.call("Page.navigate", url=visited.origin)
            control = {
                "/script.js",
                "/image.png",
                "/styled.png",
                "/import.css",
                "/frame",
                "/based/relative.png",
                "/fetch",
            }
            async with asyncio.timeout(browsers.PATIENCE_S):
                while not control <= visited.paths or not visited.paths & {"/onload", "/refresh", "/onerror", "/svg"}:
                    await browser.call("Page.getLayoutMetrics")
            assert {"/acme.other/image.png", f"/{ID}/script.png"} <= set(site.paths)

            await browser.go("about:blank")
            site.paths.clear()
            page = HOSTILE.format(evil=evil.origin, here=here, other=other)
            site.answers[f"/{ID}/"] = {"content_type": "text/html", "body": page}
            for name in ("styled.png", "relative.png"):
                site.answers[f"/{ID}/{name}"] = {"content_type": "image/png", "body_base64": _base64(PNG)}
            await browser.go(here)
            own, attribute = await browser.style("#own"), await browser.style("#attribute")
            assert (own["color"], own["margin-left"], attribute["color"]) == ("rgb(1, 2, 3)", "7px", "rgb(0, 0, 0)")
            await browser.click("#send")
            await browser.click("#link")
            # What the page would still do has had its time when another one has come.
            site.answers[f"/{ID}/next"] = {"content_type": "text/html", "body": "<img src='last.png'>"}
            await asyncio.sleep(2)  # its refresh would be due after 1 s
            assert (await browser.address(), "ran" in await browser.title()) == (here, False)
            await browser.go(f"{here}next")
            assert evil.paths == set()
            assert set(site.paths) == {f"/{ID}/{one}" for one in ("", "styled.png", "relative.png", "next", "last.png")}

            # The bytes say UTF-16, and the browser believes them: no hash is of that text, so it stays plain.
            site.answers[f"/{ID}/odd"] = {"content_type": "text/html", "body_base64": _base64(UNREADABLE)}
            await browser.go(f"{here}odd")
            assert (await browser.style("p"))["color"] == "rgb(0, 0, 0)"
            template = "<style>p { color: rgb(1, 2, 3) }</style><style>p { top: {{query:x}} }</style><p>{{query:x}}</p>"
            await world.put(path=f"/{ID}/t/", target="template", template=template, content_type="text/html")
            await browser.go(f"{here}t/?x=1px}}%20p{{color:red}}</style><style>p{{color:red}}</style>")
            assert (await browser.style("p"))["color"] == "rgb(1, 2, 3)"
            svg = "<svg xmlns='http://www.w3.org/2000/svg'><style>text{fill:rgb(1,2,3)}</style><script>location='x'</script>"
            svg += f"<image href='{evil.origin}/svg.png'/><text>a</text></svg>"
            site.answers[f"/{ID}/own.svg"] = {"content_type": "image/svg+xml", "body": svg}
            await browser.go(f"{here}own.svg")
            assert ((await browser.style("text"))["fill"], evil.paths) == ("rgb(1, 2, 3)", set())

    in_a_network(scenario)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_sample_of_a_status_page_fits_phones_and_both_schemes(tmp_path):
    """The sample, as a plugin of a real daemon: nothing of it is blocked, it is as wide as the window, dark and light.

    With LATTICED_PICTURES set it writes the picture of the docs.
    """
    sample = pages.CHECKOUT / "plugins-sample" / "host-status"

    async def scenario() -> None:
        with hosting.hosting() as host:
            manifest = json.loads((sample / "manifest.json").read_text())
            # Without its schedules: a look of its own between ours would be on the page.
            wanted = {name: manifest[name] for name in ("id", "capabilities", "version")}
            plugin_id = wanted.pop("id")
            host.up(plugin_id, (sample / "artifact").read_bytes(), **wanted)
            look = host.result(plugin_id, "look")
            assert look["memory"] > 0, "it sees the machine that it runs on"
            hour = [
                {**look, "load": 0.5 + math.sin(at / 5) / 4, "memory": 40 + at // 3, "disks": DISKS} for at in range(60)
            ]

            def remember(looks: list[dict[str, Any]]) -> None:
                kept = host.daemon.ask_raw("PUT", f"/api/kv/plugin:{plugin_id}/looks", json.dumps(looks).encode())
                assert kept.status == 200, kept

            async with browsers.opened(tmp_path) as browser:
                seen, url = {}, f"http://127.0.0.1:8787/{plugin_id}/"
                await browser.size(360, 900)
                remember([{**look, "disks": {"/": 95, "/long" * 40: 8, "<i>": 1}}])
                await browser.go(url)
                assert (await browser.content_size())[0] == 360
                assert "/ is 95 % full" in await browser.title()
                remember(hour)
                for width in (360, 1440):
                    for dark in (False, True):
                        await browser.size(width, 820)
                        await browser.dark(wanted=dark)
                        await browser.go(url)
                        assert (await browser.content_size())[0] == width
                        seen[width, dark] = (await browser.style("body"))["background-color"]
                        _keep(await browser.picture(), f"status-page-{width}{'-dark' if dark else ''}.png", tmp_path)
                assert seen[360, False] == seen[1440, False] != seen[360, True]
                assert float((await browser.style("header img"))["width"].removesuffix("px")) == 40
                assert (await browser.html()).count("<rect x=") == 120, "a bar for each minute"
                assert browser.said == [], "nothing was blocked, nothing was missing"
                assert f"{url}icon.svg" in browser.asked

    in_a_network(scenario)


def _keep(png: bytes, name: str, place: Path) -> None:
    """Write a picture to look at; those of the docs only when that is asked for."""
    (place / name).write_bytes(png)
    if os.environ.get("LATTICED_PICTURES") and name == "status-page-360.png":
        shutil.copy(place / name, pages.CHECKOUT / "docs" / "images" / name)
