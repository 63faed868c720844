"""A plugin's data: kept and counted after forget, removed completely by purge."""

from __future__ import annotations

import pytest

from latticed.ledger import contacts, kv
from latticed.ledger.kv import KvQuota
from tests.house import hostcalls, in_process
from tests.house.hostcalls import caller

ID = "acme.demo"
URL = f"/api/plugins/by-id/{ID}"
LEFT = {"values": 2, "files": 2, "notifications": 1, "services": 0}
NOTHING = {"values": 0, "files": 0, "notifications": 0, "services": 0}
SECRET = b"correct horse battery staple"
OF_ITS_RECORD = {"records"}
"""Tables that still name it then: the tombstone, with pin and floor."""


@pytest.fixture
async def home():
    """A disabled plugin with data in every store, and another plugin whose data must stay."""
    async with in_process.opened() as found:
        for plugin_id, name in ((ID, "demo"), ("acme.demo-2", "other")):
            plugin = await caller(
                found, *hostcalls.EVERYTHING, accept=hostcalls.HOST_RISK, plugin_id=plugin_id, name=name
            )
            await plugin.call("kv.put", key="a", value="1")
            await plugin.call("static.put", path="a/b.txt", content="file")
            await plugin.call("notify.send", title="hello", body="there")
            await plugin.call("monitor.put", name="site", kind="tcp", target="192.0.2.1:9")
            await plugin.call("task.submit", interpreter="sh", script="true")
        await found.ask("PUT", "/api/secrets/TOKEN", SECRET)
        await found.ask("PUT", f"/api/secrets/TOKEN/plugins/{ID}", {})
        static = found.root / "state" / "static"
        (static / "old" / ID).mkdir(parents=True)
        (static / "old" / ID / "theirs.txt").write_text("of the publisher before")

        def more(tx):
            contacts.note(tx, ID, "example.org:443", now_us=1)
            kv.put(tx, f"plugin:{ID}@old", "b", b"2", KvQuota(value_bytes=9, keys=9, total_bytes=99))
            row = tx.execute("SELECT owner, name, mac FROM secret_bindings").fetchone()
            tx.execute("INSERT INTO secret_bindings VALUES (?, ?, ?, ?)", (*row[:2], f"{ID}@old", row[2]))

        await found.app.api.ledger.write(more)
        yield found


def traces(home):
    """(table, number of rows) that name the plugin by id or bucket, and its files."""

    def look(db):
        found = []
        for (table,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"):
            columns = {row[1] for row in db.execute(f"PRAGMA table_info({table})")}
            for column, prefix in (("plugin_id", ""), ("bucket", "plugin:"), ("id", "")):
                if column in columns:
                    query = f"SELECT {column} FROM {table}"  # noqa: S608 - names of our own schema
                    rows = [str(value) for (value,) in db.execute(query)]
                    own = [one for one in rows if one.partition("@")[0] == prefix + ID]
                    found += [(table, len(own))] if own else []
        return found

    files = [path.name for path in (home.root / "state").rglob("*") if path.name.partition("@")[0] == ID]
    return home.app.api.ledger.read(look), files


async def test_forget_reports_kept_data_and_purge_removes_it(home):
    """So it does with data set aside from an earlier publisher, and after an earlier forget."""
    assert (await home.ask("POST", f"{URL}/forget", {"purge": True})).code == "invalid_transition"  # it is active
    home_traces = dict(traces(home)[0])
    assert {"kv", "notifications", "monitors", "tasks", "contacts", "secret_bindings"} <= set(home_traces)
    await home.decide(ID, "disabled")
    (home.plugin_dir / "demo").rename(home.root / "away")
    await home.until_plugin(ID, lambda view: not view["available"])
    said = await home.ask("POST", f"{URL}/forget", {})
    assert dict(said) == {"id": ID, "forgotten": True, "purged": False, "data": LEFT}
    assert (home.root / "state" / "static" / "acme" / ID / "a" / "b.txt").read_text() == "file"
    said = await home.ask("POST", f"{URL}/forget", {"purge": True})
    assert dict(said) == {"id": ID, "forgotten": True, "purged": True, "data": LEFT}
    rows, files = traces(home)
    assert ({table for table, _ in rows}, files) == (OF_ITS_RECORD, [])
    again = await home.ask("POST", f"{URL}/forget", {"purge": True})
    assert (again.status, again["data"]) == (200, NOTHING)
    detail = [event["detail"] for event in home.events(action="plugin.forget")]
    assert [one["purged"] for one in detail] == [False, True, True]
    assert {name: detail[1][name] for name in LEFT} == LEFT
    other = home.app.api.ledger.read(lambda db: kv.get(db, "plugin:acme.demo-2", "a"))
    assert other == b"1"
    assert (home.root / "state" / "static" / "acme" / "acme.demo-2" / "a" / "b.txt").exists()


async def test_purge_removes_old_data_while_the_bundle_is_present(home):
    """After forget the bundle is found again, without a decision: only its data can be forgotten."""
    await home.decide(ID, "disabled")
    await home.ask("POST", f"{URL}/forget", {})
    await home.until_plugin(ID, lambda view: view["status"] == "verified")
    assert (await home.ask("POST", f"{URL}/forget", {})).code == "invalid_transition"
    said = await home.ask("POST", f"{URL}/forget", {"purge": True})
    assert dict(said) == {"id": ID, "forgotten": False, "purged": True, "data": LEFT}
    assert (await home.plugin(ID))["status"] == "verified"


async def test_deleting_a_bound_secret_requires_unbind(home):
    """The refusal and the answer name the plugins that have it bound."""
    refused = await home.ask("DELETE", "/api/secrets/TOKEN")
    assert (refused.status, refused.code) == (409, "secret_bound")
    assert refused["detail"] == f"TOKEN is bound to {ID}, {ID}@old"
    assert "latticectl secret delete --unbind TOKEN" in refused["hint"]
    assert [row["name"] for row in (await home.ask("GET", "/api/secrets"))["secrets"]] == ["TOKEN"]
    assert (await home.ask("DELETE", "/api/secrets/TOKEN?unbind=perhaps")).code == "bad_request"
    done = await home.ask("DELETE", "/api/secrets/TOKEN?unbind=true")
    assert dict(done) == {"name": "TOKEN", "plugins": [ID, f"{ID}@old"], "deleted": True}
    assert (await home.ask("DELETE", "/api/secrets/TOKEN?unbind=true")).code == "not_found"
