"""The console in front of a daemon that answers with too much, too little, or something else: each page still says so.

The daemon is `tests.house.api_server`: a real one of this version cannot answer so.
"""

from __future__ import annotations

import html
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from latticed.console import live
from tests.house import api_server, consoles, long, processes

pytestmark = [pytest.mark.daemon, pytest.mark.slow]

ID = "acme.demo"
PAGES = (
    *("/", f"/plugins/{ID}", f"/plugins/{ID}/logs", "/rejected", "/market", f"/market/{ID}", "/plans"),
    *("/plans/" + "ab" * 32, "/tasks", "/tasks/5c0f", "/audit", "/notifications", "/health"),
)
EVENTS = long.times(100_000, 1_000_000)


@pytest.fixture(scope="module")
def served():
    with consoles.simulated("--act") as (api, console):
        assert console.enter().status == 303
        yield api, console


@pytest.fixture
def api(served):
    """The daemon, as it was."""
    api, _ = served
    kept = {name: getattr(api, name) for name in ("plugins", "rejected", "override", "streams")}
    for name, value in kept.items():
        setattr(api, name, type(value)())
    yield api
    vars(api).pop("answer", None)
    for name, value in kept.items():
        setattr(api, name, value)


@pytest.fixture
def console(served):
    return served[1]


def resident_kib(console: consoles.RunningConsole) -> int:
    status = Path(f"/proc/{console.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def shows(console: consoles.RunningConsole, path: str, words: str) -> str:
    """The page once it shows the words: a long list is kept for a second."""
    return processes.until(lambda: words in (text := console.get(path).text) and text, what=f"{words} on {path}")


def test_ten_thousand_plugins_are_one_short_page(api, console):
    for number in range(10_000):
        runtime = {"state": "failed", "health": "unknown", "last_error": {"code": "crashed", "message": "x" * 200}}
        api.add(f"acme.p{number:05}", status="active", runtime=runtime)
    page = shows(console, "/", "10000 of 10000, page 1 of 200")
    assert len(page) < 100_000
    assert "acme.p00049" in page
    assert "acme.p00050" not in page
    assert "acme.p09999" in console.get("/?page=200").text
    assert "1 of 10000" in console.get("/?q=p07777").text


def test_a_hundred_thousand_rejected_bundles_are_one_short_page(api, console):
    """A plugin's own page asks for those about it alone."""
    about = {"code": "digest_mismatch", "reason": "expected 7f3a, found 91c0 " * 5, "hint": "copy it again " * 3}
    api.rejected = [{"name": f"bundle-{number:06}", **about} for number in range(100_000)]
    api.rejected[77_777]["id"] = ID
    api.add(ID)
    page = shows(console, "/rejected", "5000 of 5000, page 1 of 100")
    assert "There are more" in page
    assert len(page) < 100_000
    assert "bundle-000777" in console.get("/rejected?q=bundle-000777").text
    api.asked.clear()
    assert "digest_mismatch" in console.get(f"/plugins/{ID}").text
    assert f"GET /api/plugins/rejected?about={ID}" in api.asked
    assert "GET /api/plugins/rejected" not in api.asked


def test_an_answer_longer_than_a_client_takes_is_said(api, console):
    """It is refused by the length that it announces, and the other pages go on."""
    api.override["GET plugins/rejected"] = (200, b" " * (65 << 20) + b"[]")
    before = resident_kib(console)
    assert "longer than any of the daemon" in shows(console, "/rejected", 'role="alert"')
    assert resident_kib(console) < before + (32 << 10)
    assert console.get("/health").status == 200


STRANGE: dict[str, api_server.Answer] = {
    "no such route": api_server.problem(404, "not_found", "no such route"),
    "an empty object": (200, {}),
    "an empty list": (200, []),
    "null": (200, None),
    "a text": (200, "<b>\u202e"),
    "a number": (200, 1e300),
    "lists in lists": (200, [[[]], {"id": [1], "runtime": [], "granted": {"a": 1}}, None]),
    "other members": (200, {name: {"later": [1]} for name in ("plugin", "plugins", "tasks", "events", "id", "lines")}),
    "null members": (200, dict.fromkeys(("plugin", "verdict", "plugins", "causes", "grants", "next", "lines"))),
    "no JSON": (200, b"<html>"),
    "broken JSON": (200, b'{"a": '),
    "no UTF-8": (200, b'["\xff"]'),
    "so deep": (200, b"[" * 200_000),
    "a surrogate": (200, b'[{"id": "\\ud800", "name": "\\udfff", "code": "\\ud800"}]'),
    "NaN": (200, b'[{"id": NaN, "version": Infinity, "left_s": -Infinity}]'),
    "nothing": (200, b""),
    "a failure": (500, b"<h1>it works</h1>"),
    "a problem of many words": api_server.problem(503, "x" * 9_000, "<script>alert(1)</script>" * 999, "\x1b[2J" * 999),
    "a teapot": (418, {"code": ["x"], "detail": {"a": 1}, "hint": None}),
}


@pytest.mark.parametrize("answer", STRANGE.values(), ids=STRANGE)
def test_a_daemon_of_another_version_breaks_no_page(api, console, answer: api_server.Answer):
    """Each page is one of ours, with what is wrong in words; nothing of the console ends by it."""
    api.answer = lambda *_: answer
    for page in PAGES:
        seen = console.get(page)
        assert seen.status in {200, 404, 418, 500, 503}, (page, seen)
        assert "<main" in seen.text, page
        assert "the console failed to answer" not in seen.text
        assert "<script>alert" not in seen.text
        assert "Traceback" not in seen.text
        assert len(seen.text) < 200_000
    assert console.post(f"/plugins/{ID}", {"act": "restart"}).status == 303
    assert console.process.poll() is None


def test_a_page_says_that_the_daemon_is_of_another_version(api, console):
    """With both versions, and where to look; one that is the same is not mentioned."""
    assert "the daemon is version 9.8.7, this console is" in html.unescape(shows(console, "/", "9.8.7"))
    assert "latticectl version" in console.get("/").text
    import latticed

    status = {**api.answer("GET", "status", {}, b"")[1], "version": latticed.__version__}
    api.override["GET status"] = (200, status)
    assert "this console is" not in console.get("/").text


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_clock_two_hours_off_is_seen_in_times_only(api, console, hours: int):
    """Times are those of the daemon's clock, and told from this host's; a session knows no clock time."""
    moment = (datetime.now(UTC) + timedelta(hours=hours)).isoformat(timespec="seconds").replace("+00:00", "Z")
    api.add(
        ID, status="active", updated_at=moment, runtime={"state": "armed", "health": "healthy", "started_at": moment}
    )
    task = {"id": "5c0f", "state": "submitted", "submitted_at": moment, "plugin": ID}
    api.override["GET tasks"] = (200, {"tasks": [task], "next": None})
    api.override["GET audit"] = (200, {"events": [api_server.event(1, ts=moment)], "next": None})
    for page in ("/", f"/plugins/{ID}", "/tasks", "/audit"):
        seen = console.get(page)
        assert seen.status == 200
        assert not re.search(r">\s*-\d+", seen.text), "no time is negative"
    assert f'datetime="{moment}"' in console.get("/audit").text
    assert re.search(r">\s*(2h ago|in 2h|in 1h|1h ago)", console.get("/audit").text), console.get("/audit").text


def _rows(count: int) -> bytes:
    """So many events as a daemon sends them, of ever other plugins."""
    one = b'id: %d\nevent: plugin.runtime\ndata: {"seq": %d, "target": "acme.p%d", "detail": {}}\n\n'
    return b": latticed events\n\n" + b"".join(one % (number, number, number) for number in range(1, count + 1))


def test_so_many_events_cost_a_page_one_line(api, console):
    """They are told as one change of anything; neither the console nor the page's stream grows with them."""
    api.streams = [(200, _rows(1_000))]
    with consoles.listening(console) as stream:
        while b'"targets": null' not in stream.readline():
            pass
        before = resident_kib(console)
        # The next stream is asked for when the first was read to its end.
        last = b'id: 1\ndata: {"target": "acme.last"}\n\n'
        api.streams = [(200, _rows(EVENTS)), (200, last)]
        said = [b""]
        while b"acme.last" not in said[-1]:
            said.append(stream.readline())
        assert sum(map(len, said)) < 100_000
    assert resident_kib(console) < before + (16 << 10)


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"id: 1\ndata: {",
        b"id: 1\ndata: [\n\n",
        b"id: 1\ndata: \xff\xfe\n\n",
        b"id: 1\ndata: " + b"[" * 100_000 + b"\n\n",
        b'id: 1\ndata: {"target": {"a": 1}}\n\n',
        b"data: " + b"x" * (2 << 20),
        b'id: 1\ndata: {"target": "a\\nevent: evil\\ndata: \\u2028\\r\\n\\r\\n"}\n\n',
    ],
    ids=lambda one: repr(one[:40]),
)
def test_a_stream_that_is_cut_or_broken_is_asked_for_again(api, console, stream: bytes):
    """A page hears of what comes after it, and gets only lines of ours."""
    api.streams = [(200, stream), (200, _rows(1))]
    lines = []
    with consoles.listening(console) as heard:
        while b"acme.p1" not in (line := heard.readline()):
            lines.append(line)
    assert {line.partition(b":")[0].strip() for line in [*lines, line]} <= {b"data", b"retry", b""}
    for one in lines:
        if one.startswith(b"data:"):
            assert json.loads(one[5:]).keys() == {"targets", "daemon"}


def test_pages_that_were_left_are_not_counted_among_the_open_ones(console):
    """Whoever goes from page to page leaves a stream each time, and none hears of that before its next line."""
    for _ in range(2 * live.MOST_LISTENERS):
        with consoles.listening(console):
            pass


def test_a_stream_ends_with_its_session(console):
    """Another tab leaves: this one is told no more of what happens here."""
    other = consoles.RunningConsole(console.process, console.link, console.cookie)
    with consoles.listening(other) as stream:
        assert console.post("/leave").status == 200
        while stream.readline():
            pass
    assert console.get("/").status == 401
