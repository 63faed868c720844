"""Notifications over the control API: list, retry, prune; each change is audited with its outcome."""

from __future__ import annotations

import pytest

from latticed.ledger.notifications import NotificationRow
from tests.house import in_process

ID = "acme.demo"


@pytest.fixture
async def home():
    async with in_process.opened() as found:
        found.drop(id=ID, capabilities=["notify:send"])
        found.drop("other", id="acme.other")
        await found.armed(ID)
        queue = found.app.api.notifications
        for number in range(3):
            await queue.accept(ID, NotificationRow(title=f"t{number}", body="b", severity="info", event="", dedupe=""))
        item = await queue.take()
        await queue.fail(item, code="refused", reason="nobody there")
        yield found


@pytest.fixture
async def failed(home):
    """The id of a failed notification."""
    (row,) = (await home.ask("GET", "/api/notifications?status=failed"))["notifications"]
    return row["id"]


async def recorded(home, action):
    answer = await home.ask("GET", f"/api/audit?action={action}")
    return [(event["decision"], event["code"]) for event in answer["events"]]


async def test_notifications_are_listed_newest_first(home, failed):
    """The page has counts of all, by status and by plugin, and never the body."""
    answer = await home.ask("GET", "/api/notifications")
    assert [row["title"] for row in answer["notifications"]] == ["t2", "t1", "t0"]
    assert answer["counts"] == {"queued": 2, "delivering": 0, "done": 0, "failed": 1}
    assert answer["next"] is None
    first = await home.ask("GET", "/api/notifications?limit=2")
    rest = await home.ask("GET", f"/api/notifications?limit=2&after={first['next']}")
    assert [row["title"] for row in (*first["notifications"], *rest["notifications"])] == ["t2", "t1", "t0"]
    assert await home.ask("GET", f"/api/notifications?before={first['next']}") == rest, "its name until 0.1"
    (row,) = (await home.ask("GET", "/api/notifications?status=failed&plugin=acme.demo"))["notifications"]
    assert (row["id"], row["code"], row["reason"], "body" in row) == (failed, "refused", "nobody there", False)
    assert (await home.ask("GET", "/api/notifications?plugin=acme.other"))["notifications"] == []
    assert (await home.ask("GET", "/api/notifications?status=lost")).status == 400


async def test_failed_notification_is_retried_once(home, failed):
    """Others, and unknown ids, are refused, and the refusal is audited."""
    answer = await home.ask("POST", f"/api/notifications/{failed}/retry", {})
    assert dict(answer) == {"id": failed, "queued": True}
    for item in (failed, "0" * 32):
        again = await home.ask("POST", f"/api/notifications/{item}/retry", {})
        assert (again.status, again.code) == (404, "not_found")
    decisions = await recorded(home, "notify.retry")
    assert sorted(decisions) == sorted([("allow", "")] * 3 + [("deny", "not_found")] * 2)


async def test_prune_removes_queued_notifications_only_if_named(home):
    """Done and failed ones unless queued ones are named."""
    assert dict(await home.ask("POST", "/api/notifications/prune", {})) == {"removed": 1}
    assert dict(await home.ask("POST", "/api/notifications/prune", {"statuses": ["queued"]})) == {"removed": 2}
    assert (await home.ask("POST", "/api/notifications/prune", {"statuses": ["delivering"]})).status == 400
    assert await recorded(home, "notify.prune") == [("allow", "")] * 2


async def test_plugin_that_nobody_knows_is_not_found(home):
    """As a filter, too; one that was forgotten is known, and so is one of which there are still rows."""
    for path in ("notifications", "tasks", "plans"):
        for plugin_id, status in (("acme.other", 200), ("acme.nobody", 404)):
            answer = await home.ask("GET", f"/api/{path}?plugin={plugin_id}")
            assert (answer.status, answer.code) == (status, "not_found" if status == 404 else ""), (path, answer)
    prune = "/api/notifications/prune"
    assert dict(await home.ask("POST", prune, {"plugin": "acme.other"})) == {"removed": 0}
    assert (await home.ask("POST", prune, {"plugin": "acme.nobody"})).code == "not_found"
    assert await recorded(home, "notify.prune") == [("allow", ""), ("allow", ""), ("deny", "not_found")]
    (home.plugin_dir / "demo" / "manifest.json").unlink()
    await home.until_plugin(ID, lambda view: not view["available"])
    assert (await home.decide(ID, "disabled")).status == 200
    assert (await home.ask("POST", f"/api/plugins/by-id/{ID}/forget", {})).status == 200
    assert len((await home.ask("GET", f"/api/notifications?plugin={ID}"))["notifications"]) == 3
    assert (await home.ask("GET", f"/api/tasks?plugin={ID}"))["tasks"] == []
