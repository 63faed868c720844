"""The console in a real Chromium among others: hostile text on its pages, hostile pages beside it, two tabs.

The network namespace has a way out that leads nowhere: what a page sends there is seen at a packet socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.server
import json
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.house import api_server, browsers, consoles, netns, ports
from tests.house.browsers import Browser

pytestmark = [pytest.mark.root, pytest.mark.daemon, pytest.mark.slow, browsers.needed]

ID = "acme.demo"
HOSTILE = (
    "<script>window.hit = 1</script>\"><img src=x onerror='window.hit = 2'><svg onload=window.hit=3>"
    "</title></div><base href=//192.0.2.9/>\u202egnp.exe\u2066\u200b\x1b[2J\x1b]0;hit\x07\r\n"
)
ENDLESS = "A" * 65_536
AWAY = "203.0.113.7"
MAKERS = (".google.com", ".googleapis.com")
PAGES = ("/", f"/plugins/{ID}", f"/plugins/{ID}/logs", "/rejected", "/tasks", "/tasks/5c0f", "/audit", "/notifications")

# Everything that a page of another origin can try; each gives "failed" or what it got.
TRIES = """(async () => {
  const said = {};
  const tried = async (name, what) => {
    const late = new Promise(done => setTimeout(done, 8000, "failed: nothing came"));
    try { said[name] = await Promise.race([what(), late]); }
    catch (error) { said[name] = "failed: " + error.name; }
  };
  const read = async (path, options) => (await (await fetch(path, options)).text()).length;
  await tried("read", () => read(CONSOLE + "/"));
  await tried("read as the operator", () => read(CONSOLE + "/", {credentials: "include"}));
  await tried("read blindly", async () => (await fetch(CONSOLE + "/", {mode: "no-cors", credentials: "include"})).text()
    .then(text => text.length || "failed: opaque"));
  const form = new URLSearchParams({act: "restart"});
  const post = {method: "POST", mode: "no-cors", credentials: "include", body: form};
  await tried("post blindly", async () => (await fetch(CONSOLE + "/plugins/ID", post)).status || "failed: opaque");
  await tried("post as JSON", () => read(CONSOLE + "/plugins/ID",
    {method: "POST", credentials: "include", headers: {"Content-Type": "application/json"}, body: "{}"}));
  const loaded = (element, name, value) => new Promise((done, fail) => {
    element.onload = () => done("loaded"); element.onerror = () => fail(new Error("refused"));
    element[name] = value; document.body.append(element);
  });
  await tried("image", () => loaded(document.createElement("img"), "src", CONSOLE + "/static/icon.svg"));
  await tried("script", () => loaded(document.createElement("script"), "src", CONSOLE + "/static/live.js"));
  await tried("style", () => loaded(Object.assign(document.createElement("link"), {rel: "stylesheet"}), "href",
    CONSOLE + "/static/console.css"));
  await tried("stream", () => new Promise((done, fail) => {
    const stream = new EventSource(CONSOLE + "/live", {withCredentials: true});
    stream.onopen = () => done("open"); stream.onerror = () => fail(new Error("refused"));
  }));
  await tried("frame", async () => {
    const frame = document.createElement("iframe");
    await loaded(frame, "src", CONSOLE + "/");
    return frame.contentDocument === null ? "failed: not ours" : frame.contentDocument.body.textContent.length
      ? "shown" : "failed: empty";
  });
  await tried("form", async () => {
    const frame = document.createElement("iframe");
    frame.name = "into";
    document.body.append(frame);
    const made = document.createElement("form");
    Object.assign(made, {method: "post", action: CONSOLE + "/plugins/ID", target: "into"});
    made.innerHTML = "<input name=act value=restart>";
    document.body.append(made);
    const done = new Promise(resolve => { frame.onload = resolve; });
    made.submit();
    await done;
    return "failed: see what the daemon was asked";
  });
  await tried("sandboxed form", async () => {
    const frame = document.createElement("iframe");
    frame.sandbox = "allow-forms allow-scripts";
    frame.srcdoc = `<form method=post action="${CONSOLE}/plugins/ID"><input name=act value=restart></form>
      <script>document.forms[0].submit()<${"/"}script>`;
    document.body.append(frame);
    await new Promise(resolve => setTimeout(resolve, 1500));
    return "failed: see what the daemon was asked";
  });
  const script = CONSOLE + "/static/live.js";
  await tried("service worker", () => navigator.serviceWorker.register(script).then(() => "registered"));
  return JSON.stringify(said);
})()"""


class _Page(http.server.BaseHTTPRequestHandler):
    """A plugin's own page, as its HTTP route might serve it; it plants cookies, too."""

    def do_GET(self) -> None:
        body = b"<!doctype html><title>a plugin's page</title><body>hello"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Set-Cookie", "latticed_ui=planted; Path=/")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def plugin_page() -> Iterator[str]:
    """The origin of a server on another port of 127.0.0.1."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class WayOut:
    """An interface with the default route, and who was sent packets by it."""

    def __init__(self) -> None:
        # Without ARP a packet is sent although nobody is there.
        lines = (
            *("link add out0 type veth peer name out1", "link set out0 arp off", "addr add 192.0.2.1/24 dev out0"),
            *("link set out1 up", "link set out0 up", "route add default dev out0"),
        )
        subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)
        # ETH_P_ALL, packet(7)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
        self._socket.bind(("out0", 3))
        self._socket.setblocking(False)
        self._seen: set[tuple[str, int]] = set()

    def sent_to(self) -> set[tuple[str, int]]:
        """Addresses and ports of all IPv4 packets so far; of questions to a name server the name instead."""
        with contextlib.suppress(BlockingIOError):
            while True:
                packet = self._socket.recv(65536)
                if packet[0] >> 4 == 4:
                    head = (packet[0] & 15) * 4
                    (port,) = struct.unpack("!H", packet[head + 2 : head + 4])
                    where = _question(packet[head + 8 :]) if port == 53 else socket.inet_ntoa(packet[16:20])
                    self._seen.add((where, port))
        return self._seen

    def close(self) -> None:
        self._socket.close()


def _question(message: bytes) -> str:
    """The first name that a DNS message asks for (RFC 1035, section 4.1)."""
    labels, rest = [], message[12:]
    while rest and rest[0]:
        labels.append(rest[1 : rest[0] + 1].decode("ascii", "replace"))
        rest = rest[rest[0] + 1 :]
    return ".".join(labels)


def fill(api: api_server.Api) -> None:
    """Hostile text in whatever a plugin, a publisher or a bundle's maker has a say in."""
    runtime = {"state": "failed", "health": "unhealthy", "message": HOSTILE + ENDLESS, "runner": "process"}
    runtime["last_error"] = {"code": "crashed", "message": HOSTILE + ENDLESS}
    api.add(ID, name=HOSTILE, version=HOSTILE, publisher=ENDLESS, status="active", runtime=runtime)
    api.add("acme.endless", name=ENDLESS, status="active", runtime={**runtime, "state": "armed", "message": ENDLESS})
    api.rejected = [{"name": text, "code": text, "reason": text, "hint": text} for text in (HOSTILE, ENDLESS)]
    lines = [
        {"seq": number, "at": HOSTILE, "stream": "stderr", "text": text}
        for number, text in enumerate((HOSTILE, ENDLESS, HOSTILE * 300), 1)
    ]
    api.override[f"GET plugins/by-id/{ID}/logs"] = (200, {"lines": lines, "next": 3})
    task = {"id": "5c0f", "state": "submitted", "script": f"{HOSTILE}\n{ENDLESS}", "plugin": ENDLESS, "reason": HOSTILE}
    api.override["GET tasks"] = (200, {"tasks": [task], "next": None})
    api.override["GET tasks/5c0f"] = (200, task)
    event = api_server.event(1, target=ENDLESS, actor=HOSTILE, reason=HOSTILE, code=ENDLESS)
    api.override["GET audit"] = (200, {"events": [event], "next": None})
    row = {"id": "n1", "title": HOSTILE, "body": ENDLESS, "state": "failed", "channel": ENDLESS, "error": HOSTILE}
    api.override["GET notifications"] = (200, {"notifications": [row], "channels": [], "next": None})


def test_the_console_among_hostile_text_and_pages(tmp_path):
    """One browser for all: starting it takes longer than what is looked at."""
    if reason := netns.why_not():
        pytest.skip(reason)

    async def scenario() -> None:
        way_out = WayOut()
        with contextlib.closing(way_out), consoles.simulated("--act") as (api, console), plugin_page() as beside:
            fill(api)
            async with browsers.opened(tmp_path) as browser:
                await browser.go(console.link)
                await hostile_text_is_text_and_no_wider_than_the_window(console, browser)
                asked_of = {urlsplit(one).netloc for one in browser.asked}
                assert asked_of == {urlsplit(console.link).netloc}
                await another_page_of_this_host_gets_and_does_nothing(api, console, browser, beside)
                await two_tabs_are_told_and_end_together(api, console, browser)
                # What Chromium asks for by itself, and gets no answer to, is told by name; a page's is in `asked`, too.
                assert {one for one in way_out.sent_to() if not one[0].endswith(MAKERS)} == set()
                # What would have been seen: the same browser, asked for an address elsewhere.
                await browser.go(beside)
                gone = (
                    f"fetch('http://{AWAY}/', {{mode: 'no-cors', signal: AbortSignal.timeout(200)}}).catch(() => true)"
                )
                async with asyncio.timeout(browsers.PATIENCE_S):
                    while (AWAY, 80) not in way_out.sent_to():
                        await browser.value(gone)

    netns.run((), scenario)


async def hostile_text_is_text_and_no_wider_than_the_window(console: consoles.RunningConsole, browser: Browser) -> None:
    """No element comes of it, nothing runs, and 64 KiB without a space are wrapped or cut."""
    for width in (360, 1440):
        await browser.size(width, 900)
        for path in PAGES:
            await browser.go(f"{console.origin}{console.base}{path}")
            assert (await browser.content_size())[0] == width, path
            made = "document.querySelectorAll('base, svg[onload], img[onerror], script:not([src])').length"
            assert await browser.value(f"[{made}, typeof window.hit, document.title.includes('hit')].join()") == (
                "0,undefined,false"
            ), path
            shown = await browser.value("document.querySelector('main').textContent")
            assert "<script>window.hit" in shown, path
            assert not {"\u202e", "\u2066", "\u200b", "\x1b"} & set(shown), path
    assert browser.said == [], "the policy had nothing to block"


async def another_page_of_this_host_gets_and_does_nothing(
    api: api_server.Api, console: consoles.RunningConsole, browser: Browser, beside: str
) -> None:
    """Same site, another port: the session's cookie goes with what it asks. It knows even the console's secret path."""
    here = f"{console.origin}{console.base}"
    await browser.go(beside)
    api.asked.clear()
    said = json.loads(await browser.value(TRIES.replace("CONSOLE", json.dumps(here)).replace("ID", ID)))
    assert len(said) == 13
    assert {name: what for name, what in said.items() if not str(what).startswith("failed")} == {}
    assert [one for one in api.asked if one.startswith(("POST", "PUT"))] == []
    assert [one for one in api.asked if one.startswith("GET /api/plugins")] == []
    # Another name for the same address and port: DNS rebinding.
    rebound = here.replace("127.0.0.1", "evil.localhost")
    await browser.go(f"{rebound}/")
    assert "foreign_host" in await browser.html()
    # The console's own page can do it, so that the above could have: the planted cookie did not hide the session.
    await browser.go(f"{here}/plugins/{ID}")
    form = "new URLSearchParams({act: 'restart'})"
    status = await browser.value(f"fetch(location.href, {{method: 'POST', body: {form}}}).then(one => one.status)")
    assert status == 200
    assert f"POST /api/plugins/by-id/{ID}/restart" in api.asked


async def two_tabs_are_told_and_end_together(
    api: api_server.Api, console: consoles.RunningConsole, browser: Browser
) -> None:
    """Each is live by itself, with a clock two hours behind or ahead; the end of the session ends both."""
    here = f"{console.origin}{console.base}"
    target = (await browser.call("Target.createTarget", url="about:blank", newWindow=True))["targetId"]
    session = (await browser.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
    other = dataclasses.replace(browser, session=session)
    other._numbers = browser._numbers
    for domain in ("Page", "Network", "Log", "DOM", "CSS"):
        await other.call(f"{domain}.enable")
    for tab, hours in ((browser, -2), (other, 2)):
        clock = f"const real = Date.now; Date.now = () => real() + {hours} * 3.6e6;"
        await tab.call("Page.addScriptToEvaluateOnNewDocument", source=clock)
    state = "document.getElementById('link-state').textContent"
    for tab in (browser, other):
        await tab.call("Page.bringToFront")
        await tab.go(f"{here}/")
        await tab.until(f"{state} === 'live'")
    before = [tab.loads for tab in (browser, other)]
    api.add("acme.newcomer")
    event = {"seq": 9, "target": "acme.newcomer"}
    api.streams = [(200, f"id: {n}\nevent: x\ndata: {json.dumps(event)}\n\n".encode()) for n in range(1, 100)]
    for tab in (browser, other):
        await tab.call("Page.bringToFront")
        await tab.until("document.getElementById('table').textContent.includes('acme.newcomer')")
    assert [tab.loads for tab in (browser, other)] == before, "neither was loaded anew"
    await other.value("document.querySelector('form[action$=leave] button').click()")
    await browser.until(f"{state} === 'the session is over'")
    assert console.process.poll() is None


def test_a_console_that_ended_and_came_back_takes_no_session_of_before():
    """The same port, another start: the old cookie and the old path are nothing there."""
    with consoles.simulated("--listen", f"127.0.0.1:{ports.free()}") as (_, first):
        first.enter()
    port = first.origin.rsplit(":", 1)[1]
    with consoles.simulated("--listen", f"127.0.0.1:{port}") as (_, second):
        second.enter()
        assert second.origin == first.origin
        second_cookie, second.cookie = second.cookie, first.cookie
        for path in (f"{first.base}/", f"{second.base}/"):
            seen = second.ask("GET", path, headers={"Cookie": first.cookie})
            assert (seen.status, "set-cookie" in seen.headers) == (401, False)
        second.cookie = second_cookie
        assert second.get("/").status == 200
