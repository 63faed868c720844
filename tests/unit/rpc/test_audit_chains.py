"""Both audit chains over the API: pages, streams, resumable verification; long walks do not block other requests."""

from __future__ import annotations

import asyncio
import contextlib
import json

import apsw
import pytest

from latticed.ledger.connection import OWN
from latticed.ledger.retention import Retention
from latticed.model.audit import Event
from latticed.rpc import chain_checks
from latticed.rpc import events as streams
from tests.house import bundles, hostcalls, in_process

CALL = Event(actor="plugin:acme.demo", action="host.call", target="kv.get", decision="allow")
ACT = Event(actor="uid:0", action="plugin.status", target="acme.demo", decision="allow")


@pytest.fixture
async def home():
    async with in_process.opened() as found:
        yield found


async def fill(home, *, decisions=0, calls=0, older_calls=0):
    """Insert rows; `older_calls` are host calls among the decisions, as older versions recorded them."""

    def change(tx):
        for _ in range(older_calls):
            tx.chains.decisions.append(CALL)
        for _ in range(decisions):
            tx.append_audit(ACT)
        for _ in range(calls):
            tx.append_audit(CALL)

    await home.app.api.ledger.write(change)
    await home.app.api.ledger.sign_head()


def ids(events):
    return [f"{event.get('chain', 'decisions')[0]}{event['seq']}" for event in events]


async def test_audit_cursor_selects_decisions_calls_or_both(home):
    """No `after`: both chains. A bare number: decisions only. `calls=1`: host calls only."""
    await fill(home, decisions=3, calls=2)
    both = await home.ask("GET", "/api/audit?limit=4")
    assert (ids(both["events"]), both["next"]) == (["d1", "d2", "d3", "c1"], "3.1")
    rest = await home.ask("GET", f"/api/audit?limit=4&after={both['next']}")
    assert (ids(rest["events"]), rest["next"]) == (["c2"], None)
    alone = await home.ask("GET", "/api/audit?limit=2&after=0")
    assert (ids(alone["events"]), alone["next"]) == (["d1", "d2"], 2)
    for after in ("1", "0.1", "3.1"):
        assert ids((await home.ask("GET", f"/api/audit?calls=1&after={after}"))["events"]) == ["c2"]
    newest = await home.ask("GET", "/api/audit?newest=1&limit=2")
    assert ids(newest["events"]) == ["c2", "c1"]
    for bad in ("x", "1.", ".1", "1.2.3", "-1", str(2**64), f"1.{2**64}"):
        assert (await home.ask("GET", f"/api/audit?after={bad}")).status == 400, bad


async def test_older_events_follow_the_newest_page_by_page(home):
    """Both chains to their beginning, each event once, and none that is recorded meanwhile."""
    await fill(home, decisions=4, calls=3)
    seen, page = [], await home.ask("GET", "/api/audit?newest=1&limit=2")
    await fill(home, decisions=1, calls=2)
    while True:
        assert page["next"] is None
        seen += ids(page["events"])
        if page["older"] is None:
            break
        page = await home.ask("GET", f"/api/audit?newest=1&limit=2&after={page['older']}")
    assert [one for one in seen if one[0] == "d"] == ["d4", "d3", "d2", "d1"]
    assert [one for one in seen if one[0] == "c"] == ["c3", "c2", "c1"]
    assert "older" not in await home.ask("GET", "/api/audit?limit=2")
    calls = await home.ask("GET", "/api/audit?newest=1&limit=4&calls=1")
    assert ids(calls["events"]) == ["c5", "c4", "c3", "c2"]
    rest = await home.ask("GET", f"/api/audit?newest=1&limit=4&calls=1&after={calls['older']}")
    assert (ids(rest["events"]), rest["older"]) == (["c1"], None)


async def test_audit_answer_has_heads_of_both_chains_beside_their_events(home):
    await fill(home, decisions=3, calls=2)
    page = await home.ask("GET", "/api/audit?heads=1")
    assert [(head["seq"], head.get("chain")) for head in page["heads"]] == [(3, None), (2, "calls")]
    assert (page["checkpoint"], page["calls_checkpoint"]) == (None, None)


async def streamed(home, query, until, **options):
    """(id, event) up to the id `until`."""
    found, at = [], ""
    address = f"http://latticed/api/events?{query}"
    async with asyncio.timeout(in_process.DEADLINE_S), home.session.get(address, **options) as answer:
        async for line in answer.content:
            if line.startswith(b"id: "):
                at = line[4:].decode().strip()
            if line.startswith(b"data: "):
                found.append((at, json.loads(line[6:])))
            if at == until and line == b"\n":
                return found
    return found


async def test_stream_ids_name_both_chains_when_host_calls_are_included(home):
    """A stream can be resumed by either form; a bare id stands for the calls made since that decision."""
    await fill(home, decisions=2, calls=2)
    assert [at for at, _ in await streamed(home, "after=0", "2")] == ["1", "2"]
    assert [at for at, _ in await streamed(home, "since=0&host_calls=1", "2.2")] == ["1.0", "2.0", "2.1", "2.2"]
    again = {"headers": {"Last-Event-ID": "2.1"}}
    assert [at for at, _ in await streamed(home, "host_calls=1", "2.2", **again)] == ["2.2"]
    assert [at for at, _ in await streamed(home, "since=1&host_calls=1", "2.2")] == ["2.0", "2.1", "2.2"]
    assert (await home.ask("GET", "/api/events", headers={"Last-Event-ID": "x"})).status == 400


@pytest.mark.parametrize(("given", "missing"), [("500", []), ("500.500", []), ("1.500", ["2.2"])])
async def test_stream_after_an_id_that_is_not_there_yet_begins_at_the_end(home, given, missing):
    """The record may have lost what that id was of: a reader that waited for it would be told nothing."""
    await fill(home, decisions=2, calls=2)
    again = {"headers": {"Last-Event-ID": given}}
    assert [at for at, _ in await streamed(home, f"after={given}&host_calls=1", "2.2")] == missing
    assert [at for at, _ in await streamed(home, "host_calls=1", "2.2", **again)] == missing
    assert [at for at, _ in await streamed(home, f"after={given}", "2")] == [one[0] for one in missing]


@pytest.mark.parametrize("action", ["ledger.restored", "ledger.recovered", "ledger.rollback_accepted"])
async def test_stream_after_an_id_of_the_record_before_begins_where_it_was_replaced(home, action):
    await fill(home, decisions=2, calls=1)
    for name in ("ledger.restored", action):
        await home.app.api.ledger.record(Event(actor="daemon", action=name, target="ledger", decision="allow"))
    await fill(home, decisions=1, calls=1)
    found = await streamed(home, "after=500", "5")
    assert [(at, event["action"]) for at, event in found] == [("4", action), ("5", found[1][1]["action"])]
    assert [at for at, _ in await streamed(home, "after=500.1&host_calls=1", "5.2")] == ["4.1", "5.1", "5.2"]


async def test_all_streams_together_read_one_page_per_turn(home, monkeypatch):
    """Eight streams over rows that none of them shows; other tasks run after each page."""
    await fill(home, older_calls=30_000, decisions=1)
    real, pages, most = streams._page, 0, 0

    def counted(*args, **options):
        nonlocal pages
        pages += 1
        return real(*args, **options)

    async def turns():
        nonlocal most
        while True:
            before = pages
            await asyncio.sleep(0)
            most = max(most, pages - before)

    monkeypatch.setattr(streams, "_page", counted)
    watch = asyncio.create_task(turns())
    found = await asyncio.gather(*(streamed(home, "since=0", "30001") for _ in range(8)))
    watch.cancel()
    assert [len(one) for one in found] == [1] * 8
    assert pages >= 8 * 30_000 // streams.SPAN
    assert most <= 1


async def test_audit_page_is_bounded_in_rows_read_and_shown(home):
    await fill(home, older_calls=5_000, decisions=1_000, calls=1_000)
    ledger = home.app.api.ledger
    page = ledger.read(lambda db: streams._page(db, streams.Position(), calls=False))
    assert (page.events, page.upto.decisions, page.more) == ([], streams.SPAN, True)
    page = ledger.read(lambda db: streams._page(db, streams.Position(5_000, 0), calls=True))
    assert (len(page.events), page.more) == (streams.PAGE, True)


async def test_host_calls_do_not_wake_streams_of_decisions(home, monkeypatch):
    real, pages = streams._page, []
    monkeypatch.setattr(streams, "_page", lambda *args, **options: pages.append(1) or real(*args, **options))
    await fill(home, decisions=1)
    reading = asyncio.create_task(streamed(home, "after=0", "2"))
    await in_process.until(lambda: pages)
    for _ in range(50):
        await home.app.api.ledger.record(CALL)
    seen = len(pages)
    await home.app.api.ledger.record(ACT)
    assert [at for at, _ in await reading] == ["1", "2"]
    assert seen <= 2
    assert len(pages) <= seen + 2


@pytest.mark.parametrize("name", ["after", "since"])
async def test_stream_resumes_after_a_seq(home, name):
    """`since` is the name of `after` until 0.1."""
    await fill(home, decisions=3)
    assert [at for at, _ in await streamed(home, f"{name}=1", "3")] == ["2", "3"]


async def verified(home, query=""):
    answer = await home.ask("GET", f"/api/audit/verify{query}")
    assert answer.status == 200, answer
    return answer


async def test_verification_resumes_at_the_last_verified_head(home, monkeypatch):
    """Verified events are not read again; the report still covers the whole chain."""
    monkeypatch.setattr(chain_checks, "BATCH", 100)
    walked = []
    real = chain_checks.rows.export_lines

    def counted(db, name, **options):
        walked.append((name, options["after"]))
        return real(db, name, **options)

    monkeypatch.setattr(chain_checks.rows, "export_lines", counted)
    await fill(home, decisions=250, calls=350)
    first = await verified(home)
    assert (first["ok"], first["events"], first["calls"]["events"]) == (True, 250, 350)
    assert (first["signed_seq"], first["calls"]["chain"]) == (250, "calls")
    assert [after for name, after in walked if name == "calls"] == [0, 100, 200, 300, 350]
    walked.clear()
    await fill(home, decisions=10, calls=10)
    second = await verified(home)
    assert (second["ok"], second["events"], second["calls"]["events"]) == (True, 260, 360)
    assert [after for name, after in walked if name == "calls"] == [350, 360]
    walked.clear()
    assert (await verified(home, "?whole=1&calls=1"))["events"] == 360
    assert walked[0] == ("calls", 0)


async def test_cancelled_verification_is_resumed(home, monkeypatch):
    """Events verified before the client disconnected are not read again."""
    monkeypatch.setattr(chain_checks, "BATCH", 10)
    for _ in range(5):
        await fill(home, calls=30)
    ledger, kept = home.app.api.ledger, home.app.api.verifying
    real, walked, wanted = ledger.read_slow, [], chain_checks.VerifyRequest(chains=("calls",))

    async def read_slow(question):
        walked.append(kept.progress.seq)
        if len(walked) == 10:
            raise asyncio.CancelledError
        return await real(question)

    monkeypatch.setattr(ledger, "read_slow", read_slow)
    with pytest.raises(asyncio.CancelledError):
        await kept.verify(wanted, closing=asyncio.Event())
    assert walked[-1] == 80
    report = (await kept.verify(wanted, closing=asyncio.Event()))["calls"]
    assert (report.ok, report.events, walked[11]) == (True, 150, 60)


def harm_it(home, statement):
    """Run `statement` on another connection of this process: other processes find the database locked."""
    with contextlib.closing(apsw.Connection(str(home.root / "state" / "ledger.sqlite3"), vfs=OWN)) as other:
        other.execute(statement)


@pytest.mark.parametrize(
    ("harm", "chain"),
    [
        ("UPDATE audit SET target = 'x' WHERE seq = 3", None),
        ("UPDATE calls SET target = 'x' WHERE seq = 3", "calls"),
    ],
)
async def test_ledger_change_after_verification_is_found(home, harm, chain):
    """A write by another connection makes the daemon drop the heads that it has verified."""
    await fill(home, decisions=20, calls=20)
    assert (await verified(home))["ok"]
    harm_it(home, harm)
    report = await verified(home)
    assert (report["ok"], report["first_bad_seq"], report.get("chain")) == (False, 3, chain)
    assert "event 3 was changed" in report["reason"]
    assert (await verified(home, "?calls=1"))["ok"] == (chain is None)


@pytest.mark.parametrize("harm", ["DELETE FROM calls WHERE seq > 15", "DELETE FROM calls WHERE seq BETWEEN 5 AND 9"])
async def test_truncated_or_incomplete_chain_is_found(home, harm, monkeypatch):
    monkeypatch.setattr(chain_checks, "BATCH", 4)
    await fill(home, decisions=1, calls=20)
    harm_it(home, harm)
    assert (await verified(home, "?calls=1"))["first_bad_seq"] in {5, 16}


async def test_retention_during_verification_is_not_an_error(home, monkeypatch):
    """If events ahead of the walk are removed, it starts over at the checkpoint."""
    monkeypatch.setattr(chain_checks, "BATCH", 10)
    ledger = home.app.api.ledger
    for _ in range(10):
        await fill(home, calls=30)
    real, removed = ledger.read_slow, []

    async def read_slow(question):
        found = await real(question)
        if not removed and home.app.api.verifying.progress.seq >= 20:
            ledger.calls_retention = Retention(max_bytes=20_000)
            removed.append(await ledger.remove_old(by_age=False))
        return found

    monkeypatch.setattr(ledger, "read_slow", read_slow)
    report = await verified(home, "?calls=1")
    assert removed
    assert removed[0] > 100
    assert (report["ok"], report["removed_seq"]) == (True, removed[0]), report
    assert report["events"] == report["head"]["seq"] - removed[0]
    assert (await verified(home, "?calls=1"))["ok"]


async def test_verification_reports_progress_without_blocking_other_requests(home, monkeypatch):
    """Lines of JSON until the report; the ledger answers other slow reads in between."""
    monkeypatch.setattr(chain_checks, "BATCH", 10)
    monkeypatch.setattr("latticed.rpc.audit.TELL_S", 0.0)
    await fill(home, calls=200)
    gate, real = asyncio.Event(), home.app.api.ledger.read_slow

    async def read_slow(question):
        if home.app.api.verifying.progress.seq == 100:
            await gate.wait()
        return await real(question)

    monkeypatch.setattr(home.app.api.ledger, "read_slow", read_slow)
    lines = []
    async with (
        asyncio.timeout(in_process.DEADLINE_S),
        home.session.get("http://latticed/api/audit/verify?progress=1&calls=1") as answer,
    ):
        assert answer.content_type == "application/x-ndjson"
        async for line in answer.content:
            lines.append(json.loads(line))
            if lines[-1].get("verifying", {}).get("seq") == 100 and not gate.is_set():
                assert await real(lambda db: 1) == 1
                gate.set()
    assert gate.is_set(), "it was asked in between"
    assert lines[-2]["verifying"]["of"] == 200
    assert (lines[-1]["ok"], lines[-1]["events"]) == (True, 200)


async def test_stopping_daemon_ends_a_running_verification(home):
    await fill(home, calls=10)
    home.app.api.closing.set()
    answer = await home.ask("GET", "/api/audit/verify")
    assert (answer.status, answer.code) == (503, "stopping")


async def test_decision_that_there_is_not_is_refused_and_not_answered_with_no_events(home):
    """`denied` for `deny`: an empty answer would say that nothing was denied."""
    assert (await home.ask("GET", "/api/audit?decision=denied")).status == 400
    assert (await home.ask("GET", "/api/audit?decision=deny")).status == 200
    plugin = await hostcalls.caller(home, "audit:read")
    assert await plugin.denied("audit.query", decision="denied") == "bad_params"
    assert (await plugin.call("audit.query", decision="deny"))["events"]


async def test_metrics_and_status_count_both_chains(home):
    await fill(home, decisions=3, calls=5)
    text = (await home.ask("GET", "/metrics"))["raw"].decode()
    assert "\nlatticed_audit_events_total 3\n" in text
    assert "\nlatticed_audit_calls_total 5\n" in text
    status = await home.ask("GET", "/api/status")
    assert (status["audit"]["seq"], status["calls"]["seq"]) == (3, 5)


async def test_health_notes_that_host_calls_were_removed(home):
    """Removal by the limit (2 GiB by default) is a note and does not degrade health."""
    assert home.app.api.ledger.calls_retention == Retention(max_bytes=2 << 30)
    assert home.app.api.ledger.retention == Retention()
    assert (await home.ask("GET", "/api/health"))["notes"] == []
    for _ in range(3):
        await fill(home, calls=30)
    home.app.api.ledger.calls_retention = Retention(max_bytes=10_000)
    removed = await home.app.api.ledger.remove_old(by_age=False)
    health = await home.ask("GET", "/api/health")
    assert health.status == 200
    (note,) = health["notes"]
    assert note["code"] == "audit_calls_removed"
    assert f"host calls up to {removed} were removed" in note["detail"]


async def test_new_publisher_cannot_read_the_old_ones_events():
    """The plugin id is the same; a return of the first publisher does not give access to older events either."""
    rival = bundles.author("rival")
    author = bundles.author()
    async with in_process.opened(author=author, policy=bundles.policy_bytes(author, rival)) as home:
        plugin = await hostcalls.caller(home, "audit:read", "kv:read")
        await plugin.call("kv.get", key="of-acme")
        assert len((await plugin.call("audit.query"))["events"]) == 2
        home.drop("other", author=rival, id="acme.demo", capabilities=["audit:read", "kv:read"])
        await in_process.until(lambda: "plugins/other" in home.app.api.lifecycle.rejected())
        url = "/api/plugins/by-id/acme.demo"
        answer = await home.ask(
            "POST", f"{url}/upgrade", {"accept_publisher": "rival", "accept": ["audit:read", "kv:read"]}
        )
        assert (answer.status, answer["publisher"]) == (200, "rival"), answer
        await home.ask("PUT", f"{url}/grants", {"grant": ["audit:read", "kv:read"]})
        heir = home.driven.of("acme.demo")[-1]
        for after in ({}, {"after": 0}, {"after": "0.0"}):
            events = (await heir.call("audit.query", **after))["events"]
            assert {event["target"] for event in events} <= {"audit.query"}, events
