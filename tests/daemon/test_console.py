"""latticectl ui against a real daemon: its link, its session, what it forwards, and what attackers get."""

from __future__ import annotations

import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from latticed.console import server, words
from tests.house import bundles, consoles, hosting, index_servers, market_sites, processes, programs

pytestmark = [pytest.mark.daemon, pytest.mark.slow]

ID = "acme.demo"
FOREIGN: list[dict[str, str]] = [
    {"Host": "evil.example"},
    {"Host": "evil.example:80"},
    {"Host": ""},
    {"Host": "127.0.0.1"},
    {"Origin": "https://evil.example"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]
ORIGINS = ["", "null", "https://evil.example", "http://127.0.0.1:8787"]
BEYOND = [
    "/api/secrets",
    "/api/plugins",
    "/plugins/..%2f..%2fsecrets",
    "/plugins/%2e%2e/logs",
    f"/plugins/{ID}/config",
    "/../../api/secrets",
    "/static/..%2fserver.py",
    "/static/%2e%2e/server.py",
    "/open/",
    "//",
]
FORMS = [
    ("act=disable&act=forget", "application/x-www-form-urlencoded"),
    ("act=nothing", "application/x-www-form-urlencoded"),
    ("act=disable", "text/plain"),
    ('{"act": "disable"}', "application/json"),
    ("act=%ff", "application/x-www-form-urlencoded"),
    ("act=disable&" + "&".join(f"f{n}=1" for n in range(300)), "application/x-www-form-urlencoded"),
    ("act=" + "x" * (300 << 10), "application/x-www-form-urlencoded"),
]
DIRECTIVES = {"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "script-src 'self'"}


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    with index_servers.serving(tmp_path_factory.mktemp("web")) as found:
        yield found


@pytest.fixture(scope="module")
def host(web):
    """One daemon for all: an armed plugin, one that was not decided about, one that is refused; and a market."""
    with market_sites.trading(web, ["shop"]) as place:
        # The source waits for what a test looks at meanwhile.
        place.set(
            market_sites.settings(web, ["shop"]).replace("fetch_s = 3", "fetch_s = 60")
            + "\n[plugin_limits]\nmax_invoke_timeout_s = 600\n"
        )
        with place.running() as daemon:
            host = hosting.Host(daemon=daemon, author=market_sites.ACME)
            host.up(
                ID, programs.GREETER, schedules=[{"name": "hourly", "every_s": 3600, "action": "text", "payload": "x"}]
            )
            host.drop("acme.later", programs.GREETER, capabilities=["kv:read", "http:egress"])
            place.drop("stranger", author=bundles.author("stranger"), id="stranger.demo")
            daemon.until_rejected("stranger", "publisher_untrusted")
            daemon.until(lambda: daemon.plugin("acme.later"), "acme.later to be seen")
            yield host


@pytest.fixture(scope="module")
def reading(host):
    with consoles.running(host.daemon) as console:
        assert console.enter().status == 303
        yield console


@pytest.fixture(scope="module")
def acting(host):
    with consoles.running(host.daemon, "--act") as console:
        assert console.enter().status == 303
        yield console


def test_a_link_opens_once_and_becomes_a_session(host):
    """The cookie is of this start's path alone, no script sees it, no other site sends it; the link is in no argv."""
    with consoles.running(host.daemon) as console:
        commands = [one.read_bytes() for one in Path("/proc").glob("[0-9]*/cmdline") if one.exists()]
        assert not [one for one in commands if console.link.rsplit("/", 1)[1].encode() in one]
        assert console.ask("HEAD", console.base + "/open/" + console.link.rsplit("/", 1)[1]).status in {401, 404}
        seen = console.enter()
        assert (seen.status, seen.headers["location"]) == (303, f"{console.base}/")
        cookie = seen.headers["set-cookie"]
        assert cookie.endswith(f"; Path={console.base}/; HttpOnly; SameSite=Strict")
        assert console.get("/").status == 200
        first = console.cookie
        # Another server of 127.0.0.1 can set cookies for all of its ports: they neither count nor hide ours.
        console.cookie = f"latticed_ui=planted; {first}; latticed_ui=planted"
        assert console.get("/").status == 200
        console.cookie = first
        again = console.ask("GET", console.link.removeprefix(console.origin))
        assert (again.status, "set-cookie" in again.headers) == (401, False)
        assert console.get("/").status == 200
        console.cookie = ""
        assert console.get("/").status == 401
        console.cookie = "latticed_ui=planted"
        assert (console.get("/").status, "set-cookie" in console.get("/").headers) == (401, False)
        console.cookie = first
        assert console.post("/leave").status == 200
        assert console.get("/").status == 401


def test_a_session_does_not_outlive_its_process(host, reading):
    with consoles.running(host.daemon) as console:
        console.cookie = reading.cookie
        assert console.get("/").status == 401
        assert console.base != reading.base


def test_it_prints_its_link_to_a_terminal_only(host):
    ran = host.daemon.ctl("ui")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "terminal" in ran.stderr


@pytest.mark.parametrize("address", ["0.0.0.0:0", "192.0.2.1:80", "[::]:0"])
def test_it_listens_on_loopback_alone(host, address: str):
    ran = host.daemon.ctl("ui", "--listen", address)
    assert (ran.returncode, "loopback" in ran.stderr) == (2, True)


@pytest.mark.parametrize(
    "page",
    [
        *"/ /rejected /market /plans /tasks /audit /health /notifications /static/console.css /static/live.js".split(),
        *(f"/plugins/{ID}", f"/plugins/{ID}/logs", "/nothing"),
    ],
)
def test_every_answer_forbids_framing_foreign_content_and_referrers(reading, page: str):
    seen = reading.get(page)
    assert seen.status == (404 if page == "/nothing" else 200), seen.text
    assert {one.strip() for one in seen.headers["content-security-policy"].split(";")} >= DIRECTIVES
    assert "unsafe" not in seen.headers["content-security-policy"]
    assert (seen.headers["x-frame-options"], seen.headers["referrer-policy"]) == ("DENY", "no-referrer")
    assert seen.headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in seen.headers


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_another_page_or_name_gets_nothing(reading, headers: dict[str, str]):
    """DNS rebinding, another site, a plugin's page on another port: refused with a session's cookie, too."""
    seen = reading.get("/", **headers)
    assert seen.status in {400, 403}, seen
    assert ID not in seen.text


@pytest.mark.parametrize("origin", ORIGINS)
def test_another_page_carries_out_nothing(host, acting, origin: str):
    seen = acting.post(f"/plugins/{ID}", {"act": "disable"}, Origin=origin)
    assert seen.status == 403
    assert host.runtime(ID)["state"] == "armed"


@pytest.mark.parametrize("path", BEYOND)
def test_what_is_not_in_the_table_is_not_there(acting, path: str):
    assert acting.get(path).status == 404
    assert acting.post(path).status == 404


def test_without_act_nothing_is_carried_out(host, reading):
    assert "<button>Disable</button>" not in reading.get(f"/plugins/{ID}").text
    assert reading.post(f"/plugins/{ID}", {"act": "disable"}).status == 303
    assert "console_reads" in reading.get(f"/plugins/{ID}").text
    assert host.runtime(ID)["state"] == "armed"


def test_what_is_decided_on_a_page_is_seen_in_the_api(host, acting):
    """Install, activate, invoke, restart, disable, forget; each is said on the page that follows."""
    daemon = host.daemon
    assert "<button>Install</button>" in acting.get("/plugins/acme.later").text
    for act, status in (("install", "installed"), ("activate", "active"), ("disable", "disabled")):
        assert acting.post("/plugins/acme.later", {"act": act}).status == 303
        assert daemon.plugin("acme.later")["status"] == status
        assert f"acme.later is {status}" in acting.get("/plugins/acme.later").text
    acting.post(f"/plugins/{ID}", {"act": "invoke", "action": "greet", "payload": '{"name": "Ada"}'})
    assert "Ada" in acting.get(f"/plugins/{ID}").text
    before = host.runtime(ID)["pid"]
    acting.post(f"/plugins/{ID}", {"act": "restart"})
    daemon.until(lambda: host.runtime(ID).get("pid") not in {None, before}, "another process")
    acting.post(f"/plugins/{ID}", {"act": "trim", "name": "kv:write"})
    assert "kv:write" not in daemon.plugin(ID)["granted"]
    acting.post(f"/plugins/{ID}", {"act": "grant", "name": "kv:write"})
    assert "kv:write" in daemon.plugin(ID)["granted"]


NOTE = re.compile(r'<p class="note (\w+)" role="status">([^<]+)</p>')
ENDS = b"#!/usr/bin/env python3\nraise SystemExit(3)\n"


def test_an_act_whose_plugin_does_not_run_is_no_success(host, acting):
    """A start that fails, an action that does, and a version that is given up at once."""
    host.drop("acme.broken", ENDS)
    host.daemon.until(lambda: host.daemon.plugin("acme.broken"), "acme.broken to be seen")
    host.up("acme.better", programs.GREETER, version="1.0.0", capabilities=["kv:read"])
    host.drop("acme.better", ENDS, version="1.1.0", capabilities=["kv:read"])
    host.daemon.until(lambda: host.daemon.plugin("acme.better").get("candidate"), "the candidate")

    def note(plugin_id: str, **fields: str) -> tuple[str, str]:
        acting.post(f"/plugins/{plugin_id}", fields)
        tone, said = NOTE.findall(acting.get(f"/plugins/{plugin_id}").text)[-1]
        return tone, said

    assert note("acme.broken", act="install") == ("good", "acme.broken is installed")
    tone, said = note("acme.broken", act="activate")
    assert (tone, said.partition(": ")[0]) == ("bad", "acme.broken could not be armed")
    assert note("acme.broken", act="disable") == ("good", "acme.broken is disabled")
    tone, said = note("acme.better", act="upgrade")
    assert (tone, said.partition(": ")[0]) == ("bad", "acme.better 1.1.0 was given up"), said
    assert note("acme.better", act="restart") == ("good", "restart of acme.better was carried out")
    tone, said = note("acme.better", act="invoke", action="dance")
    assert (tone, "no such action" in said) == ("bad", True)


SLOW = (
    programs.SDK
    + b"""
    def do_wait(self, payload):
        while self.kv.get("over") is None:
            time.sleep(0.05)

Test().run()
"""
)


def test_acts_that_take_long_keep_no_page_waiting(host, acting):
    """As many as there are threads for pages, of two plugins: one has eight invocations at once."""
    slow = [f"acme.slow{number}" for number in range(2)]
    for one in slow:
        limits = {"invoke_timeout_s": 600}
        host.up(one, SLOW, capabilities=["kv:read"], runtime={"limits": limits})
    with ThreadPoolExecutor(server.THREADS) as browsers:
        form = {"act": "invoke", "action": "wait"}
        posts = [f"/plugins/{slow[number % 2]}" for number in range(server.THREADS)]
        waiting = [browsers.submit(acting.post, path, form) for path in posts]

        def begun() -> bool:
            return sum(one["target"] in slow for one in host.daemon.events(action="plugin.invoke")) == len(waiting)

        host.daemon.until(begun, "all of them to be under way")
        assert acting.get(posts[0]).status == 200
        assert not any(one.done() for one in waiting)
        for one in slow:
            assert host.daemon.ask("PUT", f"/api/kv/plugin:{one}/over", b"1").status < 300
        assert {one.result().status for one in waiting} == {303}


def test_a_candidate_is_taken_by_name_and_given_up_by_a_page(host, acting):
    """What it adds is listed, each with a consent of its own; the version before is one to go back to."""
    grown, page = "acme.grown", "/plugins/acme.grown"
    host.up(grown, programs.GREETER, version="1.0.0", capabilities=["kv:read"])
    host.drop(grown, programs.GREETER, version="1.1.0", capabilities=["kv:read", "kv:write"])
    host.daemon.until(lambda: host.daemon.plugin(grown).get("candidate"), "the candidate")
    shown = acting.get(page).text
    assert "Version 1.1.0 waits" in shown
    assert 'name="accept" value="kv:write"' in shown
    acting.post(page, {"act": "upgrade", "accept": "kv:write"})
    record = host.daemon.plugin(grown)
    assert (record["version"], record["granted"]) == ("1.1.0", ["kv:read", "kv:write"])
    assert "Go back to 1.0.0" in acting.get(page).text
    acting.post(page, {"act": "rollback", "to": "1.0.0"})
    assert host.daemon.plugin(grown)["version"] == "1.0.0"


def test_a_page_takes_the_candidate_that_it_showed_and_no_later_one(host, acting):
    ident, page = "acme.swapped", "/plugins/acme.swapped"
    host.up(ident, programs.GREETER, version="1.0.0", capabilities=["kv:read"])

    def waits(version: str) -> dict[str, str]:
        host.drop(ident, programs.GREETER, version=version, capabilities=["kv:read"])
        host.daemon.until(lambda: (host.daemon.plugin(ident).get("candidate") or {}).get("version") == version, version)
        shown = re.search(r'"upgrade"><input type="hidden" name="identity" value="(\w+)"', acting.get(page).text)
        assert shown
        return {"act": "upgrade", "identity": shown[1]}

    before, now = waits("1.1.0"), waits("1.2.0")
    acting.post(page, before)
    assert "identity_mismatch" in acting.get(page).text
    assert host.daemon.plugin(ident)["version"] == "1.0.0"
    acting.post(page, now)
    assert host.daemon.plugin(ident)["version"] == "1.2.0"


def test_a_plugin_of_the_market_is_taken_step_by_step_and_held(host, acting, web, tmp_path):
    """Meanwhile the page says which step it is at; host risk takes the command."""
    site = market_sites.Site(daemon=host.daemon, web=web, name="shop", parent=tmp_path)
    mild = site.bundle("acme.mild", v2=True, capabilities=["kv:read"])
    bold = site.bundle("acme.bold", v2=True, capabilities=["http:egress"], egress={"hosts": ["api.example.org:443"]})
    site.publish(site.offer(mild, summary="Counts sheep"), site.offer(bold))
    assert acting.post("/market").status == 303
    assert "acme.mild" in acting.get("/market?q=sheep").text
    assert "latticectl market install acme.bold --accept http:egress" in acting.get("/market/acme.bold").text
    acting.post("/market/acme.bold", {"source": "shop", "accept": "http:egress"})
    assert "needs_command" in acting.get("/market/acme.bold").text

    seen: list[str] = []
    whole = site.web.files[site.path(mild)]
    site.web.answers[site.path(mild)] = index_servers.after(
        lambda: seen.append(acting.get("/market/acme.mild").text), whole
    )
    acting.post("/market/acme.mild", {"source": "shop", "version": "1.0.0"})
    steps = re.findall(r'<li class="(\w*)"(?: aria-current="step")?><strong>([^<]+)', seen[0])
    assert [tone for tone, name in steps if name in words.TAKING.values()] == ["good"] * 4 + ["warn", "", ""], steps
    host.daemon.until(lambda: host.daemon.plugin("acme.mild"), "acme.mild to be here")

    for act, held in (("hold", ["acme.mild"]), ("release", [])):
        acting.post("/market/acme.mild", {"act": act})
        assert host.daemon.get("/api/market").json()["held"] == held


def test_host_risk_is_never_granted_by_a_page(host, acting):
    """The daemon's own user might; the page shows the command, and forwards nothing."""
    page = acting.get("/plugins/acme.later").text
    assert "latticectl caps grant acme.later http:egress" in page
    acting.post("/plugins/acme.later", {"act": "grant", "name": "http:egress"})
    assert "needs_command" in acting.get("/plugins/acme.later").text
    acting.post("/plugins/acme.later", {"act": "activate", "accept": "http:egress"})
    assert "needs_command" in acting.get("/plugins/acme.later").text
    assert "http:egress" not in host.daemon.plugin("acme.later")["granted"]


@pytest.mark.parametrize(("body", "kind"), FORMS, ids=lambda one: one[:20])
def test_a_form_that_is_none_of_the_pages_does_nothing(host, acting, body: str, kind: str):
    headers = {"Cookie": acting.cookie, "Origin": acting.origin, "Content-Type": kind}
    seen = acting.ask("POST", f"{acting.base}/plugins/{ID}", body, headers)
    assert seen.status in {303, 400, 413}, seen
    assert host.runtime(ID)["state"] == "armed"


def test_pages_say_what_the_daemon_says(host, reading):
    assert "stranger" in reading.get("/rejected").text
    overview = reading.get("/").text
    assert ID in overview
    assert "acme.later" in overview
    assert "No plugin matches" in reading.get("/?q=nothing-of-that-name").text
    page = reading.get(f"/plugins/{ID}").text
    assert "Last 24 hours" in page
    assert re.search(r"waiting</span> <strong>hourly</strong> every_s:3600, next <time", page), page
    assert reading.get("/plugins/acme.nobody").status == 404
    assert "holds" in reading.get("/audit?within=hour&action=plugin.status").text
    assert "plugin.status" in reading.get("/audit?within=hour").text


def test_pages_say_what_doctor_says(host, reading):
    """With the rights of whoever started the console; what needs a look is on the overview, too."""
    told = json.loads(host.daemon.ctl("doctor", "--format", "json").stdout)
    page = reading.get("/health").text
    assert {one["check"] for one in told} == set(re.findall(r"<p><strong>([^<]+)</strong> <span class=\"word", page))
    looks = {one["check"] for one in told if one["state"] in {"look", "bad"}} - {"daemon"}
    processes.until(lambda: "still being looked at" not in reading.get("/").text, what="the findings")
    assert looks <= set(re.findall(r'/health">([^<]+)</a>', reading.get("/").text))


def test_a_unit_hands_out_links_by_its_socket(host):
    """Its socket has mode 0660 from its first moment, and goes with it; each link is another one."""
    place = host.daemon.place
    path = place.run / "ui-link.sock"
    command = host.daemon.ctl_command("ui", "--link-socket", str(path))
    log = place.home.parent / "unit.err"
    log.touch()
    quiet = subprocess.DEVNULL
    with processes.spawned(command, user=place.user, env=place.environment(), stdout=quiet, stderr=log) as unit:
        processes.until(path.exists, what="the socket of links")
        assert path.stat().st_mode & 0o777 == 0o660
        links = [host.daemon.ctl("ui", "link", "--link-socket", str(path)).stdout.strip() for _ in range(2)]
        assert len({one for one in links if "/open/" in one}) == 2, links
        assert "/open/" not in log.read_text()
        console = consoles.RunningConsole(unit, links[0])
        assert console.enter().status == 303
        assert console.get("/").status == 200
        unit.terminate()
        assert unit.wait(processes.PATIENCE_S) == 0
    assert not path.exists()
    gone = host.daemon.ctl("ui", "link", "--link-socket", str(path))
    assert (gone.returncode, "no console answers" in gone.stderr) == (7, True)


def test_pages_hear_that_something_changed(host, reading):
    """One event of the daemon: a page is told that it is about the plugin, not what."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", int(reading.origin.rsplit(":", 1)[1]), timeout=60)
    connection.request("GET", f"{reading.base}/live", headers={"Cookie": reading.cookie})
    stream = connection.getresponse()
    assert stream.getheader("Content-Type") == "text/event-stream"
    assert stream.readline().startswith(b"retry:")
    told: list[dict[str, object]] = []
    # The console's own stream of the daemon may begin a moment later.
    for _ in range(20):
        host.daemon.post(f"/api/plugins/by-id/{ID}/restart")
        while not (line := stream.readline()).startswith((b"data:", b":")):
            pass
        told += [json.loads(line[5:])] if line.startswith(b"data:") else []
        if any(ID in (one["targets"] or []) for one in told):
            break
    connection.close()
    assert any(ID in (one["targets"] or []) for one in told), told
    assert {tuple(one) for one in told} == {("targets", "daemon")}


def test_the_daemon_may_stop_and_come_back_under_an_open_console(place, acme):
    """Pages say so meanwhile, and the session stays."""
    place.drop("demo", author=acme)
    with place.running() as daemon, consoles.running(daemon) as console:
        console.enter()
        assert console.get("/").status == 200
        daemon.stop()
        processes.until(lambda: "the daemon is not running" in console.get("/").text, what="the page to say so")
        assert console.get("/plugins/acme.demo").status == 503
        with place.running() as again:
            again.until(lambda: "the daemon is not running" not in console.get("/").text, "the page to be back")
            assert "acme.demo" in console.get("/").text
