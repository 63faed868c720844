"""Changed verdicts on plugins and other bundles are in the audit chain and in the event stream."""

from __future__ import annotations

import asyncio
import json
import os

from latticed.ledger.coalesce import QUOTA, Denials
from latticed.model.audit import Event
from tests.house import bundles, in_process, processes

ID = "acme.demo"
ACME = bundles.author("acme")


def told(home, action="plugin.verdict", **wanted):
    rows = home.events(action=action)
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


async def until_told(home, code, *, target=ID, action="plugin.verdict"):
    """Wait until the newest verdict of `target` has this code; that verdict."""

    def newest():
        rows = told(home, action, target=target)
        return rows and rows[-1]["code"] == code

    await in_process.until(newest, f"{code or 'verified'} on record, found {told(home, action)}")
    return told(home, action, target=target)[-1]


async def trusting(home, *authors):
    """Put another policy in force."""
    home.trust.write_bytes(bundles.policy_bytes(*authors))
    await asyncio.to_thread(home.app.api.policy.look, always=True)
    await home.app.api.lifecycle.policy_changed()


async def test_changed_verdicts_on_disabled_plugin_are_recorded():
    """The bundle is tampered with, restored, removed and put back: each once, with the code and the previous one."""
    async with in_process.opened(author=ACME) as home:
        bundle = home.drop("demo", id=ID)
        await home.armed(ID)
        await home.decide(ID, "disabled")
        assert told(home) == []
        kept = bundle.artifact_path.read_bytes()
        bundles.tamper(bundle.artifact_path)
        row = await until_told(home, "digest_mismatch")
        assert (row["actor"], row["decision"], row["detail"]) == (
            "latticed",
            "deny",
            {"before": "", "status": "disabled"},
        )
        assert "expected the artifact's SHA-256" in row["reason"]
        bundle.artifact_path.write_bytes(kept)
        row = await until_told(home, "")
        assert (row["decision"], row["detail"]["before"]) == ("allow", "digest_mismatch")
        os.rename(bundle.path, home.root / "elsewhere")
        assert "gone" in (await until_told(home, "manifest_missing"))["reason"]
        os.rename(home.root / "elsewhere", bundle.path)
        assert (await until_told(home, ""))["detail"]["before"] == "manifest_missing"
        assert len(told(home)) == 4


async def test_event_stream_has_changed_verdicts():
    async with in_process.opened(author=ACME) as home:
        home.drop("demo", id=ID)
        await home.seen(ID)
        bundles.tamper(home.dropped["demo"].artifact_path)
        row = await until_told(home, "digest_mismatch")
        async with (
            asyncio.timeout(processes.PATIENCE_S),
            home.session.get(f"http://latticed/api/events?after={row['seq'] - 1}") as answer,
        ):
            while not (line := await answer.content.readline()).startswith(b"data: "):
                assert line, "the stream ended without an event"
        assert json.loads(line[6:])["action"] == "plugin.verdict"


async def test_policy_change_records_the_changed_verdicts(tmp_path):
    """A disabled plugin of a revoked publisher is refused and recorded, and verified again once that is lifted."""
    async with in_process.opened(author=ACME) as home:
        home.drop("demo", id=ID)
        await home.armed(ID)
        await home.decide(ID, "disabled")
        await trusting(home)
        await until_told(home, "publisher_untrusted")
        await trusting(home, ACME)
        await until_told(home, "")


async def test_refusals_at_start_are_recorded(tmp_path):
    """Plugins and other bundles have events; a bundle that verifies as before has none."""
    async with in_process.opened(tmp_path, author=ACME) as home:
        for plugin_id in (ID, "acme.well"):
            home.drop(plugin_id, id=plugin_id)
            await home.armed(plugin_id)
        mark = home.mark()
        bundle = home.dropped[ID]
    bundles.tamper(bundle.artifact_path)
    bundles.drop(tmp_path / "plugins", "stranger", author=bundles.author("stranger"), id="stranger.demo")
    async with in_process.opened(tmp_path, author=ACME) as home:
        await until_told(home, "digest_mismatch")
        row = await until_told(home, "publisher_untrusted", target="stranger", action="bundle.verdict")
        assert row["detail"] == {"before": "", "copies": 1}
        since = [row for row in home.events(after=mark) if row["action"].endswith(".verdict")]
        assert sorted(row["target"] for row in since) == [ID, "stranger"]


async def test_bundle_that_verifies_after_refusal_is_recorded():
    """It is refused, then trusted: an event of the bundle records that."""
    async with in_process.opened(author=ACME) as home:
        other = bundles.author("other")
        home.drop("theirs", author=other, id="other.demo")
        await until_told(home, "publisher_untrusted", target="theirs", action="bundle.verdict")
        await trusting(home, ACME, other)
        await until_told(home, "", target="theirs", action="bundle.verdict")


async def test_rejected_bundle_is_shown_as_it_is_now_and_recorded_once(capsys):
    """In the log, too. An author mends one error after the other, and changes the id; the code stays the same."""
    async with in_process.opened(author=ACME) as home:
        place, rejected = home.plugin_dir / "demo", home.app.api.lifecycle.rejected

        async def put(reason, **fields):
            raw = json.dumps({**bundles.manifest_v1(publisher="acme"), **fields}).encode()
            if place.exists():
                (place / "fresh").write_bytes(raw)
                (place / "fresh").rename(place / "manifest.json")
            else:
                bundles.write(home.plugin_dir / ".demo", raw).rename(place)
            await in_process.until(lambda: any(reason in found.reason for found in rejected().values()), reason)
            return rejected()["plugins/demo"]

        assert (await put("'naem'", naem="Demo")).code == "manifest_invalid"
        assert (await put("at least one", capabilities=[])).code == "manifest_invalid"
        assert len(told(home, "bundle.verdict", target="demo")) == 1
        for plugin_id, capability in (("acme.one", "kv:raed"), ("acme.two", "kv:wirte")):
            found = await put(capability, id=plugin_id, capabilities=[capability])
            assert (found.code, found.manifest.id) == ("unknown_capability", plugin_id)
        assert len(told(home, "bundle.verdict", target="demo")) == 2
    logged = [line for line in capsys.readouterr().out.splitlines() if "verdict_refused" in line]
    assert ["manifest_invalid" in line for line in logged] == [True, False]


async def test_renaming_thousands_of_bundles_does_not_flood_audit():
    """Events up to the quota, then counts; events of a plugin in that time are still recorded singly."""
    async with in_process.opened(author=ACME) as home:
        home.drop("demo", id=ID)
        await home.armed(ID)
        stranger, lifecycle = bundles.author("stranger"), home.app.api.lifecycle
        home.drop("theirs", author=stranger, id="stranger.demo")
        await in_process.until(lifecycle.rejected, "the stranger's bundle")
        seen = 0
        for number in range(8):  # each round renames all, which changes all verdicts
            for copy in range(40):
                path = home.plugin_dir / f"theirs-{number}-{copy}"
                if number:
                    os.rename(home.plugin_dir / f"theirs-{number - 1}-{copy}", path)
                else:
                    bundles.write(path, home.dropped["theirs"].raw)
            seen += 40
            prefix = f"plugins/theirs-{number}-"
            await in_process.until(lambda p=prefix: sum(n.startswith(p) for n in lifecycle.rejected()) == 40, prefix)
        bundles.tamper(home.dropped["demo"].artifact_path)
        await until_told(home, "digest_mismatch")
        strangers = told(home, "bundle.verdict")
        assert QUOTA <= len(strangers) <= QUOTA + 20  # and one per second that counts the rest
        await home.app.api.ledger._record_owed(home.app.api.ledger._denials.rest(1e9))
        counted = sum(row["detail"].get("count", 1) for row in told(home, "bundle.verdict"))
        assert counted == seen + 1


def test_each_group_of_events_has_its_own_quota():
    denials = Denials(quota=1)
    event = Event(actor="latticed", action="plugin.verdict", target="a", decision="deny", code="x")
    assert denials.take(event, 0.0, group="a") is event
    assert denials.take(event, 0.0, group="b") is event
    assert denials.take(event, 0.0, group="a") is None
