"""The console in a real Chromium, alone with loopback: each page on a phone and on a screen, each act, what is live.

With LATTICED_PICTURES set it writes the pictures of the docs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.house import (
    apply_helpers,
    axes,
    browsers,
    bundles,
    consoles,
    fanouts,
    hosting,
    index_servers,
    market_sites,
    netns,
    pages,
    ports,
    programs,
    push_services,
)
from tests.house.browsers import Browser
from tests.house.daemons import Daemon
from tests.house.push_services import PushServices

pytestmark = [pytest.mark.root, pytest.mark.daemon, pytest.mark.slow, browsers.needed]

ID = "acme.demo"
WORKER = (
    programs.SDK
    + b"""
    def do_task(self, payload):
        return self.task.submit("echo tidy\\n", name="tidy")["id"]

    def do_plan(self, payload):
        return self.network.plan("file", {"allow": ["admin", "ada"]})["sha256"]

Test().run()
"""
)
KEEPER_ID = "acme.keeper"
KEEPER = (
    programs.SDK
    + b"""
    def do_put(self, payload):
        return [self.call(name, **params) for name, params in payload]

Test().run()
"""
)
RECORD = "home.example.org"
STATES = {
    "monitors": {"open": "up", "shut": "down"},
    "services": {"nap": "running", "over": "failed"},
    "routes": {f"/{KEEPER_ID}/x/": "served"},
    "records": {RECORD: "retrying"},
}
"""How what the plugin keeps going stands, once everything was tried."""
TONES = {"up": "good", "running": "good", "served": "good", "retrying": "warn", "down": "bad", "failed": "bad"}
SETTINGS = """
[monitor]
min_interval_s = 1
[http]
listen = "127.0.0.1:0"
[service.programs]
sh = "/bin/sh"
[ddns]
backoff_base_s = 3600
"""
"""Of a record that failed there is no second try by itself while the test runs."""
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
MORE = ("/audit", "/notifications", "/health", "/market/acme.mild", "/plugins/acme.grown", f"/plugins/{KEEPER_ID}")
WIDTHS = (360, 1440)
PICTURES = {"/": "console-overview", f"/plugins/{ID}": "console-plugin"}
AXE = """JSON.stringify((await axe.run(document, {resultTypes: ["violations"]})).violations.map(
    one => [one.impact, one.id, one.nodes.map(node => node.html).slice(0, 3)]))"""

SHOWN = "document.getElementById('table').querySelector('tbody').textContent"
LISTED = """[...document.querySelectorAll('#keeps li')].filter(one => one.querySelector('strong')).map(
    one => [one.querySelector('strong').textContent, one.querySelector('.word').textContent,
            one.querySelector('.word').classList[1], one.textContent])"""
# A browser measures a request once it has ended.
ENDED_STREAMS = "performance.getEntriesByType('resource').filter(one => one.name.endsWith('/live')).length"
PRESS = "[...document.querySelectorAll('{within} button')].find(one => one.textContent === '{label}').click()"


def in_a_network(scenario) -> None:
    if reason := netns.why_not():
        pytest.skip(reason)
    netns.run((), scenario)


@dataclass(frozen=True)
class Open:
    """What one browser looks at."""

    host: hosting.Host
    console: consoles.RunningConsole
    browser: Browser
    services: PushServices
    task: str
    plan: str

    @property
    def here(self) -> str:
        return f"{self.console.origin}{self.console.base}"

    async def press(self, path: str, label: str, *before: str, within: str = "body") -> str:
        """The text of the page that follows a click on a button of another one, `before` which scripts fill it in;
        `within` (CSS) says which of several that read alike.
        """
        await self.browser.go(self.here + path)
        for script in before:
            await ran(self.browser, script)
        loads = self.browser.loads
        await ran(self.browser, PRESS.format(label=label, within=within))
        async with asyncio.timeout(browsers.PATIENCE_S):
            while self.browser.loads == loads:
                await self.browser.call("Page.getLayoutMetrics")
        return str(await ran(self.browser, "(document.querySelector('main') ?? document.body).textContent"))


@contextlib.contextmanager
def serving(tmp_path: Path) -> Iterator[tuple[hosting.Host, market_sites.Site]]:
    """A daemon beside a root helper and a source of a market."""
    with (
        index_servers.serving(tmp_path) as web,
        apply_helpers.place() as helper,
        market_sites.trading(web, ["shop"]) as place,
    ):
        place.set(
            f'{market_sites.settings(web, ["shop"])}\n[apply]\nsocket = "{helper.settings["socket"]}"\n{SETTINGS}'
        )
        place.builtins = ("notify", "")
        helper.settings |= {"daemon_user": str(place.uid)}
        (helper.home / "live").mkdir(exist_ok=True)
        with helper.running(), place.running() as daemon:
            site = market_sites.Site(daemon=daemon, web=web, name="shop", parent=tmp_path)
            yield hosting.Host(daemon=daemon, author=market_sites.ACME), site


@contextlib.asynccontextmanager
async def opened(tmp_path: Path, *options: str) -> AsyncIterator[Open]:
    """A daemon with something of each kind; its console, opened in a browser."""
    with contextlib.ExitStack() as stack:
        host, site = stack.enter_context(serving(tmp_path))
        host.up(ID, programs.GREETER)
        host.result(ID, "greet", {"name": "Ada"})
        host.drop("acme.later", programs.GREETER, capabilities=["kv:read", "http:egress"])
        host.up("acme.grown", programs.GREETER, version="1.0.0", capabilities=["kv:read"])
        host.drop("acme.grown", programs.GREETER, version="1.1.0", capabilities=["kv:read", "kv:write"])
        risky = ["network:plan", "task:run"]
        host.drop("acme.worker", WORKER, capabilities=risky)
        host.daemon.activate("acme.worker", accept=risky)
        task, plan = (host.result("acme.worker", one) for one in ("task", "plan"))
        host.daemon.place.drop("stranger", author=bundles.author("stranger"), id="stranger.demo")
        host.daemon.until_rejected("stranger", "publisher_untrusted")
        host.daemon.until(lambda: host.daemon.plugin("acme.later"), "acme.later to be seen")
        host.daemon.until(lambda: host.daemon.plugin("acme.grown").get("candidate"), "the candidate")
        site.publish(site.offer(site.bundle("acme.mild", v2=True, capabilities=["kv:read"]), summary="Counts sheep"))
        assert site.refresh().status == 200
        services = stack.enter_context(push_services.serving())
        a_channel_that_refuses(host.daemon, services)
        what_a_plugin_keeps_going(host, services.port)
        console = stack.enter_context(consoles.running(host.daemon, *options))
        async with browsers.opened(tmp_path) as browser:
            await browser.go(console.link)
            assert await browser.address() == f"{console.origin}{console.base}/"
            yield Open(host, console, browser, services, task, plan)


def a_channel_that_refuses(daemon: Daemon, services: PushServices) -> None:
    """Have notifications sent where the token is not the right one."""
    channel = services.channels()["gotify"]
    answers = [
        daemon.ask("PUT", "/api/secrets/GOTIFY", b"a token of before"),
        daemon.ask("PUT", f"/api/secrets/GOTIFY/plugins/{fanouts.ID}", {}),
        daemon.set_status("installed", fanouts.ID, accept=["http:egress"]),
        daemon.ask("PUT", f"/api/plugins/by-id/{fanouts.ID}/grants", {"permits": [f"origin={services.origin}"]}),
        daemon.ask(
            "PUT",
            f"/api/plugins/by-id/{fanouts.ID}/config",
            {"config": {"channels": {"phone": channel}, "default": ["phone"]}},
        ),
        daemon.set_status("active", fanouts.ID),
    ]
    assert {one.status for one in answers} == {200}, answers


def what_a_plugin_keeps_going(host: hosting.Host, port: int) -> None:
    """Monitors, services, a route and a DNS record, some of which cannot go well; something listens at `port`."""
    shut = ports.free()
    risky = ["ddns:admin", "monitor:admin", "task:run"]
    host.drop(KEEPER_ID, KEEPER, capabilities=[*risky, "worker:route"])
    host.daemon.activate(KEEPER_ID, accept=risky)
    permits = [f"origin=tcp://127.0.0.1:{port}", *(f"origin={kind}://127.0.0.1:{shut}" for kind in ("tcp", "dns"))]
    for path, body in (
        (f"/api/plugins/by-id/{KEEPER_ID}/grants", {"permits": permits}),
        ("/api/secrets/UPDATE", b"a2V5IG9mIHRoZSB0ZXN0cywgMzIgYnl0ZXMgbG9uZyE="),
        (f"/api/secrets/UPDATE/plugins/{KEEPER_ID}", {}),
    ):
        answer = host.daemon.ask("PUT", path, body)
        assert answer.status == 200, answer
    watched = {"kind": "tcp", "interval_s": 1, "timeout_s": 1}
    record = {"name": RECORD, "type": "A", "provider": "rfc2136", "address": "93.184.215.14", "key": "update"}
    host.result(
        KEEPER_ID,
        "put",
        [
            ("monitor.put", {"name": "open", "target": f"127.0.0.1:{port}", "failures": 10, **watched}),
            ("monitor.put", {"name": "shut", "target": f"127.0.0.1:{shut}", "failures": 1, **watched}),
            ("route.put", {"path": f"/{KEEPER_ID}/x", "target": "template", "template": "hello"}),
            ("service.put", {"name": "nap", "program": "sh", "args": ["-c", "sleep 100000"]}),
            ("service.put", {"name": "over", "program": "sh", "args": ["-c", "exit 3"], "restart": "never"}),
            ("ddns.put", {**record, "server": f"127.0.0.1:{shut}", "secret": "${secret:UPDATE}"}),
        ],
    )


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
        async with opened(tmp_path, "--act") as seen:
            await every_page_on_a_phone_and_a_screen(seen, axe, tmp_path)
            await a_failed_notification_is_sent_again(seen)
            await what_is_clicked_is_carried_out(seen)
            await what_a_plugin_keeps_going_is_shown_as_it_is(seen)
            await pages_follow_without_a_reload(seen)
            await it_is_read_with_the_keyboard_and_without_scripts(seen)
            await a_session_ends_in_all_its_tabs(seen)
            assert {urlsplit(one).netloc for one in seen.browser.asked} == {urlsplit(seen.console.link).netloc}

    in_a_network(scenario)


async def every_page_on_a_phone_and_a_screen(seen: Open, axe: str, place: Path) -> None:
    """It is as wide as the window, serious barriers there are none, nothing is blocked, and nothing leaves loopback."""
    browser, every = seen.browser, (*PAGES, *MORE, f"/tasks/{seen.task}", f"/plans/{seen.plan}")
    barriers, grounds = [], {}
    for width, dark, paths in (
        (360, False, every),
        (360, True, PAGES[:2]),
        (1440, False, every),
        (1440, True, PAGES[:1]),
        (2560, False, PAGES[:1]),
    ):
        await browser.size(width, 900)
        await browser.dark(wanted=dark)
        for path in paths:
            await browser.go(seen.here + path)
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


async def what_is_clicked_is_carried_out(seen: Open) -> None:
    """Each button does in the daemon what it says."""
    daemon = seen.host.daemon
    for label, status in (("Install", "installed"), ("Activate", "active"), ("Disable", "disabled")):
        said = await seen.press("/plugins/acme.later", label)
        assert daemon.plugin("acme.later")["status"] == status
        assert f"acme.later is {status}" in said
    assert "forget of acme.later was carried out" in await seen.press("/plugins/acme.later", "Forget")
    daemon.until(lambda: (daemon.plugin("acme.later") or {}).get("status") == "verified", "it to be as new")
    before = seen.host.runtime(ID)["pid"]
    await seen.press(f"/plugins/{ID}", "Restart")
    daemon.until(lambda: seen.host.runtime(ID).get("pid") not in {None, before}, "another process")
    for label, granted in (("Withdraw kv:write", False), ("Grant kv:write", True)):
        await seen.press(f"/plugins/{ID}", label)
        assert ("kv:write" in daemon.plugin(ID)["granted"]) is granted
    daemon.until(lambda: seen.host.runtime(ID)["state"] == "armed", "the plugin to be armed")
    fields = {"action": "greet", "payload": '{"name": "Lin"}'}
    filled = [f"document.getElementById('{name}').value = '{value}'" for name, value in fields.items()]
    assert "said hello" in await seen.press(f"/plugins/{ID}", "Invoke", *filled)

    consent = "document.querySelector('#candidate input[type=checkbox]').click()"
    await seen.press("/plugins/acme.grown", "Take version 1.1.0", consent)
    record = daemon.plugin("acme.grown")
    assert (record["version"], record["granted"]) == ("1.1.0", ["kv:read", "kv:write"])
    await seen.press("/plugins/acme.grown", "Go back to 1.0.0")
    assert daemon.plugin("acme.grown")["version"] == "1.0.0"

    assert "as new as can be" in await seen.press("/market", "Fetch the indexes")
    await seen.press("/market/acme.mild", "Take version 1.0.0")
    daemon.until(lambda: daemon.plugin("acme.mild"), "acme.mild to be here")
    for label, held in (("Hold the version that is here", ["acme.mild"]), ("Hold it no more", [])):
        await seen.press("/market/acme.mild", label)
        assert daemon.get("/api/market").json()["held"] == held
    await seen.press(f"/tasks/{seen.task}", "Cancel the task")
    assert daemon.get(f"/api/tasks/{seen.task}").json()["state"] == "cancelled"


async def what_a_plugin_keeps_going_is_shown_as_it_is(seen: Open) -> None:
    """Each monitor, service, route and DNS record with its state; a record that failed is tried when somebody asks."""
    daemon, path = seen.host.daemon, f"/plugins/{KEEPER_ID}"

    def rows(kind: str) -> list[dict[str, Any]]:
        found = daemon.get(f"/api/{'ddns' if kind == 'records' else kind}?plugin={KEEPER_ID}").json()[kind]
        return list(found)

    def states() -> dict[str, dict[str, str]]:
        return {kind: {one.get("name") or one["path"]: one["state"] for one in rows(kind)} for kind in STATES}

    daemon.until(lambda: states() == STATES, "everything to have been tried")
    await seen.browser.go(seen.here + path)
    shown = await ran(seen.browser, LISTED)
    every = {name: state for kind in STATES.values() for name, state in kind.items()}
    assert sorted(one[:3] for one in shown) == sorted([name, state, TONES[state]] for name, state in every.items())
    (record,) = rows("records")
    faults = {one[0]: one[3] for one in shown}
    assert record["last_error"]["message"] in faults[RECORD]
    assert "exited 3" in faults["over"]
    assert "refused" in faults["shut"]

    before = record["last_error"]["at"]
    assert f"the records of {RECORD} are tried again" in await seen.press(path, f"Try {RECORD} now")
    daemon.until(lambda: rows("records")[0]["last_error"]["at"] > before, "another try")
    (event,) = daemon.events(action="ddns.retry", target=KEEPER_ID)
    assert (event["decision"], event["detail"]["name"]) == ("allow", RECORD)


async def a_failed_notification_is_sent_again(seen: Open) -> None:
    """The alert of the monitor whose target is down, once the channel has the right token."""
    daemon = seen.host.daemon

    def row(*statuses: str) -> dict[str, Any] | None:
        found = daemon.get("/api/notifications").json()["notifications"]
        return next((one for one in found if one["plugin"] == KEEPER_ID and one["status"] in statuses), None)

    failed = daemon.until(lambda: row("failed"), "the channel to refuse the alert")
    await seen.browser.go(f"{seen.here}/notifications")
    assert await ran(seen.browser, "document.querySelector('#channels .bad').textContent.includes('http_401')")
    assert daemon.ask("PUT", "/api/secrets/GOTIFY", push_services.GOTIFY_TOKEN.encode()).status == 200
    form = f'form[action$="/notifications/{failed["id"]}"]'
    assert "the notification is queued again" in await seen.press("/notifications", "Send again", within=form)
    assert daemon.until(lambda: row("done"), "it to be sent")["id"] == failed["id"]
    assert f"[{failed['severity']}] {failed['title']}" in [one.title for one in seen.services.of("gotify")]


async def a_session_ends_in_all_its_tabs(seen: Open) -> None:
    """One tab ends it: the stream of another ends, no page is shown any more, and what gives a new link is said."""
    browser = seen.browser
    await browser.call("Emulation.setScriptExecutionDisabled", value=False)
    other = await browser.tab(f"{seen.here}/")
    await until(other, "document.getElementById('link-state').textContent === 'live'")
    assert await ran(other, ENDED_STREAMS) == 0
    assert "The session is over." in await seen.press("/", "End session")
    await until(other, "document.getElementById('link-state').textContent === 'the session is over'")
    assert await ran(other, ENDED_STREAMS) > 0
    for path in ("/", f"/plugins/{ID}"):
        await browser.go(seen.here + path)
        said = await ran(browser, "document.body.textContent")
        assert "no_session" in said
        assert "latticectl ui prints a link to open" in said
        assert ID not in said


async def pages_follow_without_a_reload(seen: Open) -> None:
    """The overview and the log follow the daemon, and a command can be copied."""
    host, browser, here = seen.host, seen.browser, seen.here
    await browser.go(f"{here}/plugins/acme.later")
    assert "latticectl caps grant acme.later http:egress" in await browser.html()
    await until(browser, "document.querySelector('.command .copy') !== null")

    await browser.go(f"{here}/")
    loads = browser.loads
    for status in ("active", "disabled"):
        await asyncio.to_thread(host.daemon.set_status, status, "acme.grown")
    await until(browser, f"{SHOWN}.includes('disabled')")
    assert browser.loads == loads, "the page was not loaded anew"

    # What comes after a page was made, and before it listens, is told to others alone.
    other = await browser.tab(f"{here}/")
    await asyncio.to_thread(host.daemon.set_status, "active", "acme.grown")
    await until(other, f"!{SHOWN}.includes('disabled')")
    async with browser.holding("*/live") as wanted:
        await browser.go(f"{here}/")
        await wanted()
        assert "disabled" not in await ran(browser, SHOWN)
        await asyncio.to_thread(host.daemon.set_status, "disabled", "acme.grown")
        await until(other, f"{SHOWN}.includes('disabled')")
    await until(browser, f"{SHOWN}.includes('disabled')")
    await other.call("Page.close")

    await browser.go(f"{here}/plugins/{ID}/logs")
    await until(browser, "document.getElementById('log').textContent.includes('greeting Ada')")
    await asyncio.to_thread(host.result, ID, "greet", {"name": "Grace"})
    await until(browser, "document.getElementById('log').textContent.includes('greeting Grace')")
    assert await ran(browser, "document.getElementById('log').textContent.split('greeting Ada').length") == 2

    # What there is no more goes, and what is new comes.
    host.drop(ID, programs.GREETER, version="1.1.0")
    await asyncio.to_thread(host.daemon.until, lambda: host.daemon.plugin(ID).get("candidate"), "a candidate")
    await browser.go(f"{here}/plugins/{ID}")
    here_now = "['candidate', 'kept'].map(one => document.getElementById(one) !== null).join()"
    assert await ran(browser, here_now) == "true,false"
    answer = await asyncio.to_thread(host.daemon.post, f"/api/plugins/by-id/{ID}/upgrade", {})
    assert answer.status == 200, answer
    await until(browser, f"{here_now} === 'false,true'")

    # The page of a plugin that is forgotten says that there is none, until it comes again.
    host.drop("acme.brief", programs.GREETER)
    await asyncio.to_thread(host.daemon.until, lambda: host.daemon.plugin("acme.brief"), "acme.brief to be seen")
    await browser.go(f"{here}/plugins/acme.brief")
    main = "document.getElementById('main').textContent"
    assert "What it may do" in await ran(browser, main)
    shutil.rmtree(host.daemon.place.plugins / "acme.brief")
    missed = "its bundle to be missed"
    await asyncio.to_thread(host.daemon.until, lambda: not host.daemon.plugin("acme.brief")["available"], missed)
    answer = await asyncio.to_thread(host.daemon.post, "/api/plugins/by-id/acme.brief/forget", {})
    assert answer.status == 200, answer
    await until(browser, f"{main}.includes('not_found')")
    await asyncio.to_thread(host.up, "acme.brief", programs.GREETER)
    await until(browser, f"{main}.includes('What it may do')")


async def it_is_read_with_the_keyboard_and_without_scripts(seen: Open) -> None:
    """Tab leads to the skip link first; without JavaScript each page has the same words."""
    browser, here = seen.browser, seen.here
    await browser.go(f"{here}/")
    for kind in ("keyDown", "keyUp"):
        await browser.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert await ran(browser, "document.activeElement.className") == "skip"
    await browser.call("Emulation.setScriptExecutionDisabled", value=True)
    for path, words in (("/", ID), (f"/plugins/{ID}", "What it may do"), (f"/plugins/{ID}/logs", "greeting Ada")):
        await browser.go(here + path)
        assert words in await browser.html()


def _keep(png: bytes, path: str, width: int, dark: bool, place: Path) -> None:  # noqa: FBT001 - a row of a table
    """Write a picture to look at; those of the docs only when that is asked for."""
    name = f"{path.strip('/').replace('/', '-') or 'overview'}-{width}{'-dark' if dark else ''}.png"
    (place / name).write_bytes(png)
    wanted = PICTURES.get(path) if width in WIDTHS else None
    if os.environ.get("LATTICED_PICTURES") and wanted and not dark:
        shutil.copy(place / name, pages.CHECKOUT / "docs" / "images" / f"{wanted}-{width}.png")
