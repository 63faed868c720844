"""Upgrades beside the version before, and the way back. The real App with plugins that the test drives."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import tarfile
import threading

import pytest

from latticed.host import declared
from latticed.host.call import HostError
from latticed.ledger import kv, monitors, routes, tasks
from latticed.model.errors import Problem
from latticed.model.runtime import Health
from latticed.runners.contract import Checkup
from tests.house import bundles, in_process, ports

ID = "acme.demo"
ACME = bundles.author("acme")
URL = f"/api/plugins/by-id/{ID}"
CAPABILITIES = ["kv:read", "kv:write", "monitor:admin", "monitor:read"]
LONG, SHORT = "[upgrade]\ngate_s = 3600\n", "[upgrade]\ngate_s = 0.3\n"


@pytest.fixture
async def home():
    """Gates of an hour: they stay open unless something happens."""
    async with in_process.opened(author=ACME, toml=LONG) as found:
        yield found


@pytest.fixture
async def brief():
    """Gates of a third of a second."""
    async with in_process.opened(author=ACME, toml=SHORT) as found:
        yield found


async def dropped(home, version, **fields):
    """Another version in the plugin directory, once it is the candidate."""
    fields = {"capabilities": CAPABILITIES, "artifact": bundles.ARTIFACT + version.encode(), **fields}
    home.drop(version=version, type="system", **fields)
    await home.until_plugin(ID, lambda view: view.get("candidate", {}).get("version") == version)


async def first(home):
    """Version 1.0.0, armed; its instance."""
    home.drop(version="1.0.0", type="system", capabilities=CAPABILITIES)
    return await home.armed(ID, accept=("monitor:admin",))


async def upgraded(home, version="1.1.0", **fields):
    """(instance before, instance after, answer) of an upgrade."""
    before = home.driven.of(ID)[-1] if home.driven.of(ID) else await first(home)
    await dropped(home, version, **fields)
    answer = await home.ask("POST", f"{URL}/upgrade", {})
    assert answer.status == 200, answer
    return before, home.driven.of(ID)[-1], answer


async def decided(home):
    return await home.until_plugin(ID, lambda view: view["upgrade"]["state"] != "gating")


def answering(asked, name, *, ok=True):
    """What an instance does with an invocation: `asked` gets its name."""

    async def invoking(action, payload):
        asked.append(name)
        return {"ok": ok, "message": action, "result": payload, "error": None if ok else "it failed"}

    return invoking


async def invoked(home):
    return await home.ask("POST", f"{URL}/invoke", {"action": "x", "payload": None})


async def value(home, key):
    return (await home.ask("GET", f"/api/kv/plugin:{ID}/{key}")).get("raw")


async def test_new_version_answers_while_the_old_one_stands_by(home):
    old, new, answer = await upgraded(home)
    assert (answer["version"], answer["runtime"]["state"]) == ("1.1.0", "armed")
    found = answer["upgrade"]
    assert (found["state"], found["version"], found["before"]) == ("gating", "1.1.0", "1.0.0")
    assert found["until"] > answer["runtime"]["started_at"]
    assert (old.alive, new.alive, home.driven.running[ID]) == (True, True, 2)
    asked = []
    for name, one in (("old", old), ("new", new)):
        one.invoking = answering(asked, name)
    assert (await invoked(home))["ok"] is True
    assert asked == ["new"]


async def test_each_version_has_values_of_its_own_and_the_old_one_declares_nothing(home):
    old = await first(home)
    await old.call("kv.put", key="shared", value="before")
    await old.call("monitor.put", name="up", kind="tcp", target="example.com:80")
    old, new, _ = await upgraded(home)
    await new.call("kv.put", key="shared", value="of the new")
    await old.call("kv.put", key="own", value="of the old")
    assert (await old.call("kv.get", key="shared"))["value"] == "before"
    assert (await new.call("kv.list"))["keys"] == ["shared"]
    with pytest.raises(HostError, match="service_unavailable"):
        await old.call("monitor.put", name="up", kind="tcp", target="example.com:81")
    assert [one["name"] for one in (await old.call("monitor.list"))["monitors"]] == ["up"]


async def test_version_that_ends_is_given_up_and_the_old_one_goes_on_without_a_start(home):
    """With its values, its monitors and what it has written meanwhile; what the new one wrote is gone."""
    old = await first(home)
    await old.call("kv.put", key="shared", value="before")
    await old.call("monitor.put", name="kept", kind="tcp", target="example.com:80")
    await old.call("monitor.put", name="changed", kind="tcp", target="example.com:80")
    old, new, _ = await upgraded(home)
    await old.call("kv.put", key="meanwhile", value="of the old")
    await new.call("kv.put", key="shared", value="of the new")
    await new.call("monitor.put", name="changed", kind="tcp", target="example.com:81")
    await new.call("monitor.put", name="added", kind="tcp", target="example.com:80")
    await new.call("monitor.delete", name="kept")
    new.crash("exited", "status 3")
    view = await decided(home)
    assert (view["version"], view["runtime"]["state"], view["status"]) == ("1.0.0", "armed", "active")
    found = view["upgrade"]
    assert (found["state"], found["code"], found["reason"]) == ("rolled_back", "exited", "status 3")
    assert (home.driven.only(ID), home.driven.attempts[ID]) == (old, 2)
    assert [await value(home, key) for key in ("shared", "meanwhile")] == [b"before", b"of the old"]
    found = (await old.call("monitor.list"))["monitors"]
    assert {one["name"]: one["target"] for one in found} == {
        "kept": "example.com:80",
        "changed": "example.com:80",
    }
    await old.call("monitor.put", name="again", kind="tcp", target="example.com:80")
    (event,) = home.events(action="plugin.upgrade")
    assert (event["decision"], event["code"], event["detail"]["result"]) == ("deny", "exited", "rolled_back")
    assert "plugin:acme.demo@~1" not in str(await home.ask("GET", "/api/kv/plugin:acme.demo@~1"))


async def test_given_up_version_is_not_offered_again_unless_asked_for(home):
    _, new, _ = await upgraded(home)
    new.crash()
    await decided(home)
    bad = (await home.plugin(ID))["candidate"]["bad"]
    assert bad["code"] == "exited"
    refused = await home.ask("POST", f"{URL}/upgrade", {})
    assert (refused.status, refused.code) == (409, "candidate_bad")
    assert refused["hint"] == f"latticectl upgrade {ID} --retry"
    again = await home.ask("POST", f"{URL}/upgrade", {"retry": True})
    assert (again["version"], again["upgrade"]["state"]) == ("1.1.0", "gating")
    assert (await home.ask("POST", f"{URL}/rollback", {}))["version"] == "1.0.0"


async def test_version_that_cannot_start_is_given_up_in_the_answer(home):
    """Meanwhile the old one answers."""
    await first(home)
    answers = []

    async def starting(instance):
        answers.append(await invoked(home))
        raise Problem("plugin_error", "cannot start")

    home.driven.starting = starting
    before, _, answer = await upgraded(home)
    assert (answer["version"], answer["upgrade"]["state"]) == ("1.0.0", "rolled_back")
    assert (answer["upgrade"]["code"], home.driven.only(ID)) == ("plugin_error", before)
    assert [one.get("ok") for one in answers] == [True], answers


async def test_version_whose_calls_are_denied_is_given_up(home):
    """It adds a capability that was not granted, and uses it."""
    old, new, _ = await upgraded(home, capabilities=[*CAPABILITIES, "http:egress"])
    for _ in range(2):
        await old.call("kv.list")
    for _ in range(3):
        with pytest.raises(HostError, match="capability_not_granted"):
            await new.call("http.do", method="GET", url="http://example.com/")
    view = await decided(home)
    assert (view["version"], view["upgrade"]["code"]) == ("1.0.0", "denials_jumped")
    assert view["upgrade"]["reason"] == "3 of 3 host calls were denied, 0 of 0 of the version before"


async def test_version_that_answers_with_errors_is_given_up(home):
    _, new, _ = await upgraded(home)
    new.invoking = answering([], "new", ok=False)
    for _ in range(3):
        await invoked(home)
    assert (await decided(home))["upgrade"]["code"] == "errors_jumped"


async def test_version_stays_after_the_gate_and_the_old_one_stops(brief):
    """Values are those of the new one; the old one is kept."""
    old = await first(brief)
    await old.call("kv.put", key="shared", value="before")
    old, new, _ = await upgraded(brief)
    await new.call("kv.put", key="shared", value="of the new")
    view = await decided(brief)
    assert (view["version"], view["upgrade"]["state"]) == ("1.1.0", "committed")
    assert new.checks
    await in_process.until(lambda: not old.alive, "the old one stopped")
    assert (brief.driven.only(ID), await value(brief, "shared")) == (new, b"of the new")
    (kept,) = (await brief.ask("GET", URL))["kept"]
    assert (kept["version"], kept["bad"]) == ("1.0.0", None)
    (event,) = brief.events(action="plugin.upgrade")
    assert (event["decision"], event["detail"]["result"]) == ("allow", "committed")


async def test_version_that_is_unwell_when_the_gate_ends_is_given_up(brief):
    """Its first check was good; that it hangs since shows at the check that ends the gate."""

    async def starting(instance):
        if instance.plugin.manifest.version == "1.1.0":
            instance.checking = unwell

    async def unwell():
        return Checkup(health=Health.UNHEALTHY, message="stuck")

    brief.driven.starting = starting
    await upgraded(brief)
    view = await decided(brief)
    assert (view["version"], view["upgrade"]["code"]) == ("1.0.0", "unhealthy")


async def test_failure_after_the_gate_is_an_ordinary_one_and_rollback_goes_back(brief):
    """Healthy until the gate ends: it was committed, so only an operator returns, with the old values if wanted."""
    old = await first(brief)
    await old.call("kv.put", key="shared", value="before")
    _, new, _ = await upgraded(brief)
    await new.call("kv.put", key="shared", value="migrated")
    await decided(brief)
    new.crash()
    await brief.until_plugin(ID, lambda view: view["runtime"]["state"] == "failed")
    told = await brief.ask("POST", f"{URL}/rollback", {"dry_run": True})
    assert (told["version"], (await brief.plugin(ID))["version"]) == ("1.0.0", "1.1.0")
    answer = await brief.ask("POST", f"{URL}/rollback", {})
    assert (answer["version"], answer["runtime"]["state"]) == ("1.0.0", "armed")
    assert await value(brief, "shared") == b"migrated"
    assert (await brief.plugin(ID))["candidate"]["bad"]["code"] == "rolled_back"
    forth = await brief.ask("POST", f"{URL}/rollback", {"to": "1.1.0"})
    assert forth["version"] == "1.1.0"
    back = await brief.ask("POST", f"{URL}/rollback", {"to": "1.0.0", "snapshot": True})
    assert (back["version"], await value(brief, "shared")) == ("1.0.0", b"migrated")


async def test_snapshot_brings_back_the_values_of_that_version(brief):
    old = await first(brief)
    await old.call("kv.put", key="shared", value="before")
    _, new, _ = await upgraded(brief)
    await new.call("kv.put", key="shared", value="migrated")
    await decided(brief)
    answer = await brief.ask("POST", f"{URL}/rollback", {"snapshot": True})
    assert (answer["version"], await value(brief, "shared")) == ("1.0.0", b"before")
    forth = await brief.ask("POST", f"{URL}/rollback", {"to": "1.1.0", "snapshot": True})
    assert (forth["version"], await value(brief, "shared")) == ("1.1.0", b"migrated")


async def test_three_earlier_identities_stay_in_store_and_rollback_needs_no_downgrade(home):
    """The fourth is gone; what was revoked, damaged or is gone is refused by its code."""
    await first(home)
    for number in range(1, 5):
        await upgraded(home, f"1.{number}.0")
    kept = (await home.ask("GET", URL))["kept"]
    assert [one["version"] for one in kept] == ["1.3.0", "1.2.0", "1.1.0"]
    store = home.root / "state" / "store"
    await in_process.until(lambda: len(list(store.iterdir())) == 4, "one was collected")
    backup = await home.ask("GET", "/api/backup")
    with tarfile.open(fileobj=io.BytesIO(backup["raw"])) as tar:
        pairs = {name.split("/")[1] for name in tar.getnames() if name.startswith("store/")}
    assert pairs == {one["identity"] for one in kept} | {path.name for path in store.iterdir()}
    unknown = await home.ask("POST", f"{URL}/rollback", {"to": "1.0.0"})
    assert (unknown.status, unknown.code) == (404, "not_found")
    assert "found 1.1.0, 1.2.0, 1.3.0" in unknown["detail"]
    damaged = store / kept[1]["identity"] / "artifact"
    damaged.chmod(0o600)
    damaged.write_bytes(b"other")
    refused = await home.ask("POST", f"{URL}/rollback", {"to": "1.2.0"})
    assert (refused.status, refused.code) == (409, "digest_mismatch"), refused
    shutil.rmtree(damaged.parent)  # by hand
    removed = await home.ask("POST", f"{URL}/rollback", {"to": "1.2.0"})
    assert (removed.status, removed.code) == (409, "manifest_missing"), removed
    home.trust.write_bytes(bundles.policy_bytes(ACME, revoked={"plugins": [f"{ID}@1.1.0"]}))
    await home.look()
    foreseen = await home.ask("POST", f"{URL}/rollback", {"to": "1.1.0", "dry_run": True})
    revoked = await home.ask("POST", f"{URL}/rollback", {"to": "1.1.0"})
    assert foreseen["code"] == revoked["code"]
    assert (revoked.status, revoked.code) == (409, "plugin_revoked"), revoked
    assert (await home.plugin(ID))["version"] == "1.4.0"
    answer = await home.ask("POST", f"{URL}/rollback", {})
    assert (answer["version"], answer["runtime"]["state"]) == ("1.3.0", "armed"), answer


async def test_what_was_taken_back_is_not_regained(home):
    """Neither by a rollback during the gate nor by one after it."""
    await upgraded(home)
    trim = await home.ask("PUT", f"{URL}/grants", {"trim": ["kv:write"]})
    assert trim.status == 200, trim
    answer = await home.ask("POST", f"{URL}/rollback", {})
    assert (answer["version"], sorted(answer["granted"])) == ("1.0.0", ["kv:read", "monitor:admin", "monitor:read"])


@pytest.mark.parametrize("by", ["operator", "gate"])
async def test_version_that_was_given_up_is_still_the_highest_on_record(home, by):
    """What lies between it and the one that came back is a downgrade."""
    _, new, _ = await upgraded(home, "2.0.0")
    if by == "operator":
        assert (await home.ask("POST", f"{URL}/rollback", {}))["version"] == "1.0.0"
    else:
        new.crash()
        assert (await decided(home))["version"] == "1.0.0"
    assert home.app.api.lifecycle.records[ID].floor == "2.0.0"
    await dropped(home, "1.5.0")
    assert (await home.ask("POST", f"{URL}/upgrade", {})).code == "version_downgrade"


@pytest.mark.parametrize("toml", [LONG, "[upgrade]\ngate_s = 0\n"])
async def test_hosts_of_a_pattern_that_were_taken_back_are_not_regained(toml):
    """By a rollback during the gate or without one."""
    fields = {"capabilities": ["http:egress"], "v2": True}
    async with in_process.opened(author=ACME, toml=toml) as home:
        home.drop(version="1.0.0", type="system", egress={"hosts": ["*.example.net:443"]}, **fields)
        await home.armed(ID, accept=("http:egress",))
        assert (await home.ask("PUT", f"{URL}/grants", {"hosts": ["*.example.net:443"]})).status == 200
        await dropped(home, "1.1.0", egress={"hosts": ["a.example.net:443"]}, **fields)
        assert (await home.ask("POST", f"{URL}/upgrade", {})).status == 200
        assert (await home.ask("GET", f"{URL}/grants"))["hosts"] == ["a.example.net:443"]
        assert (await home.ask("PUT", f"{URL}/grants", {"hosts": []})).status == 200
        assert (await home.ask("POST", f"{URL}/rollback", {}))["version"] == "1.0.0"
        assert (await home.ask("GET", f"{URL}/grants"))["hosts"] == []


BASE = "acme.base"


async def needing(home, version, wanted):
    """Have a version as the candidate that needs acme.base so; None: without dependencies."""
    needs = [{"id": BASE, "version": wanted}] if wanted else []
    await dropped(home, version, v2=True, dependencies=needs)


async def based(home, version="1.0.0"):
    """acme.base, active."""
    home.drop("base", id=BASE, version=version, artifact=bundles.ARTIFACT + version.encode())
    await home.armed(BASE)


@pytest.mark.parametrize("found", ["nothing", "too old"])
async def test_active_plugin_is_not_upgraded_to_what_it_lacks_something_for(home, found):
    """The range was raised, or the dependency is new: as at an activation, and the old one goes on."""
    if found == "too old":
        await based(home)
    home.drop(version="1.0.0", type="system", capabilities=CAPABILITIES, v2=True)
    old = await home.armed(ID, accept=("monitor:admin",))
    await needing(home, "1.1.0", "^2.0.0")
    named = {"accept": [f"dependency={BASE}"]}
    for more in ({"dry_run": True}, {}):
        answer = await home.ask("POST", f"{URL}/upgrade", named | more)
        assert (answer.status, answer.code) == (409, "dependency_unmet"), answer
    assert ((await home.plugin(ID))["version"], home.driven.only(ID)) == ("1.0.0", old)
    # One that does not run may be upgraded: it is judged when it is activated.
    await home.decide(ID, "disabled")
    assert (await home.ask("POST", f"{URL}/upgrade", named))["version"] == "1.1.0"
    assert (await home.decide(ID, "active")).code == "dependency_unmet"


async def test_going_back_needs_what_that_version_needs(tmp_path):
    """Once it was left it has to start anew; a plugin that is not active may go back to it."""
    async with in_process.opened(tmp_path, author=ACME, toml="[upgrade]\ngate_s = 0\n") as home:
        await based(home)
        home.drop(
            version="1.0.0",
            type="system",
            capabilities=CAPABILITIES,
            v2=True,
            dependencies=[{"id": BASE, "version": "*"}],
        )
        await home.armed(ID, accept=("monitor:admin",))
        await needing(home, "1.1.0", None)
        assert (await home.ask("POST", f"{URL}/upgrade", {})).status == 200
        await home.decide(BASE, "disabled")
        for body in ({"dry_run": True}, {}):
            answer = await home.ask("POST", f"{URL}/rollback", body)
            assert (answer.status, answer.code) == (409, "dependency_unmet"), answer
        assert (await home.plugin(ID))["version"] == "1.1.0"
        await home.decide(BASE, "active")
        assert (await home.ask("POST", f"{URL}/rollback", {}))["runtime"]["state"] == "armed"


@pytest.mark.parametrize("by", ["operator", "gate"])
async def test_version_that_stands_by_comes_back_though_what_it_needs_is_gone(home, by):
    """It has been running all the time: an active plugin is not stopped because of what it needs."""
    await based(home)
    home.drop(
        version="1.0.0", type="system", capabilities=CAPABILITIES, v2=True, dependencies=[{"id": BASE, "version": "*"}]
    )
    old = await home.armed(ID, accept=("monitor:admin",))
    await needing(home, "1.1.0", None)
    assert (await home.ask("POST", f"{URL}/upgrade", {})).status == 200
    await home.decide(BASE, "disabled")
    if by == "operator":
        foreseen = await home.ask("POST", f"{URL}/rollback", {"dry_run": True})
        assert (foreseen.status, foreseen["version"]) == (200, "1.0.0"), foreseen
        assert (await home.ask("POST", f"{URL}/rollback", {})).status == 200
    else:
        home.driven.of(ID)[-1].crash()
    view = await decided(home)
    assert (view["upgrade"]["state"], view["version"], view["runtime"]["state"]) == ("rolled_back", "1.0.0", "armed")
    assert home.driven.only(ID) is old


async def test_disabling_ends_the_gate_and_stops_both(home):
    old, new, _ = await upgraded(home)
    answer = await home.decide(ID, "disabled")
    assert (answer["status"], answer["version"], answer["upgrade"]["state"]) == ("disabled", "1.1.0", "committed")
    await in_process.until(lambda: not old.alive and not new.alive, "both stopped")
    assert (await home.ask("POST", f"{URL}/rollback", {}))["version"] == "1.0.0"
    assert (await home.decide(ID, "active"))["runtime"]["state"] == "armed"


@pytest.fixture
def putting_back(monkeypatch):
    """Holds up what a returning version gets back: (set once it has begun, to be set for it to go on)."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    put_back = declared.put_back

    async def held_up(*args, **named):
        begun.set()
        await go_on.wait()
        await put_back(*args, **named)

    monkeypatch.setattr(declared, "put_back", held_up)
    return begun, go_on


async def test_disabling_does_not_wait_for_what_is_put_back(home, putting_back):
    """Nor does it leave the version that failed, with what the old one gets back."""
    old, new, _ = await upgraded(home)
    begun, go_on = putting_back
    new.crash()
    await begun.wait()
    assert (await home.decide(ID, "disabled"))["status"] == "disabled"
    await in_process.until(lambda: not old.alive, "the old one stopped")
    go_on.set()
    view = await decided(home)
    assert (view["upgrade"]["state"], view["version"], view["status"]) == ("rolled_back", "1.0.0", "disabled")
    assert view["disabled_at"] > view["activated_at"]
    again = await home.decide(ID, "active")
    assert (again["version"], again["runtime"]["state"], home.driven.running[ID]) == ("1.0.0", "armed", 1)


@pytest.mark.parametrize("kind", ["routes", "monitors", "tasks"])
async def test_what_a_version_asked_for_on_a_slow_disk_goes_with_it(tmp_path, monkeypatch, putting_back, kind):
    """It is carried out whole, though its callers ended with the version that was given up."""
    capabilities = [*CAPABILITIES, "worker:route", "task:run"]
    toml = f'{LONG}[http]\nlisten = "127.0.0.1:{ports.free()}"\n'
    writing, disk = threading.Event(), threading.Event()
    rows, name = {"routes": (routes, "put"), "monitors": (monitors, "put"), "tasks": (tasks, "submit")}[kind]
    store = getattr(rows, name)

    def slowly(*args, **named):
        writing.set()
        disk.wait(60)
        return store(*args, **named)

    async with in_process.opened(tmp_path, author=ACME, toml=toml) as home:
        home.drop(version="1.0.0", type="system", capabilities=capabilities)
        await home.armed(ID, accept=("monitor:admin", "task:run"))
        _, new, _ = await upgraded(home, capabilities=capabilities)
        monkeypatch.setattr(rows, name, slowly)
        calls = {
            "routes": [("route.put", {"path": f"/{ID}/{one}/", "target": "template", "template": "x"}) for one in "ab"],
            "monitors": [("monitor.put", {"name": one, "kind": "tcp", "target": "example.com:80"}) for one in "ab"],
            "tasks": [("task.submit", {"interpreter": "sh", "script": "true"})],
        }[kind]
        asked = [asyncio.ensure_future(new.call(method, **params)) for method, params in calls]
        services = home.app.api.lifecycle.upgrades.services
        if kind != "tasks":
            changes = getattr(services, kind)._background._tasks
            await in_process.until(lambda: len(changes) == len(calls), "their turns")
        await in_process.until(writing.is_set, "the first to be written")
        begun, go_on = putting_back
        go_on.set()
        new.crash()
        await begun.wait()
        disk.set()
        assert (await decided(home))["version"] == "1.0.0"
        await asyncio.gather(*asked, return_exceptions=True)
        open_tasks = [one for one in await services.tasks.page(plugin_id=ID) if one.state != "cancelled"]
        assert (services.routes.stored(ID), services.monitors.of(ID), open_tasks) == ({}, [], [])


async def test_no_other_version_is_taken_while_one_is_given_up(home, putting_back):
    """Else what is put back for the old one would undo what the third declares. An operator's rollback joins in."""
    old, new, _ = await upgraded(home)
    await dropped(home, "1.2.0")
    begun, go_on = putting_back
    new.crash()
    await begun.wait()
    refused = await home.ask("POST", f"{URL}/upgrade", {})
    assert (refused.status, refused.code) == (409, "invalid_transition"), refused
    ending = home.app.api.lifecycle.upgrades._open[ID].ending
    rollback = asyncio.ensure_future(home.ask("POST", f"{URL}/rollback", {}))
    await in_process.until(lambda: ending._waiters, "the rollback to join in")
    go_on.set()
    assert (await rollback)["version"] == "1.0.0"
    assert [event["code"] for event in home.events(action="plugin.upgrade")] == ["exited"]
    assert home.driven.only(ID) is old
    answer = await home.ask("POST", f"{URL}/upgrade", {})
    assert (answer["version"], answer["upgrade"]["state"]) == ("1.2.0", "gating")


async def test_old_version_that_was_revoked_a_moment_ago_is_not_returned_to(home, monkeypatch):
    """Before the gate has heard of it."""
    _, new, _ = await upgraded(home)

    async def unheard():
        pass

    monkeypatch.setattr(home.app.api.lifecycle.upgrades, "policy_changed", unheard)
    home.trust.write_bytes(bundles.policy_bytes(ACME, revoked={"plugins": [f"{ID}@1.0.0"]}))
    await home.look()
    refused = await home.ask("POST", f"{URL}/rollback", {})
    assert (refused.status, refused.code) == (409, "plugin_revoked"), refused
    assert ((await home.plugin(ID))["version"], new.alive) == ("1.1.0", True)


async def test_what_was_taken_back_in_the_gate_is_kept_from_the_old_version_too(tmp_path):
    """A capability at once; what is fixed at a start by a start; both over a restart of the daemon."""
    async with in_process.opened(tmp_path, author=ACME, toml=LONG) as home:
        await first(home)
        answer = await home.ask("PUT", f"{URL}/grants", {"grant": [], "permits": ["sandbox=open"]})
        assert answer.status == 200, answer
        old, _, _ = await upgraded(home)
        answer = await home.ask("PUT", f"{URL}/grants", {"trim": ["kv:write"], "permits": []})
        assert answer.status == 200, answer
        await in_process.until(lambda: not old.alive and home.driven.running[ID] == 2, "the old one started anew")
        again = next(one for one in home.driven.of(ID)[2:] if one.plugin.manifest.version == "1.0.0")
        with pytest.raises(HostError, match="capability_not_granted"):
            await again.call("kv.put", key="a", value="b")
    async with in_process.opened(tmp_path, author=ACME, toml=LONG) as home:
        await home.until_plugin(ID, lambda view: view.get("upgrade", {}).get("until"))
        await in_process.until(lambda: home.driven.running[ID] == 2, "both run")
        old = next(one for one in home.driven.of(ID) if one.plugin.manifest.version == "1.0.0")
        with pytest.raises(HostError, match="capability_not_granted"):
            await old.call("kv.put", key="a", value="b")


async def test_bundle_that_goes_stops_both_and_the_gate_begins_anew_when_it_is_back(home):
    old, new, answer = await upgraded(home)
    bundle = home.dropped["demo"]
    away = home.root / "away"
    bundle.path.rename(away)
    await home.until_plugin(ID, lambda view: not view["available"])
    await in_process.until(lambda: not old.alive and not new.alive, "both stopped")
    await home.until_plugin(ID, lambda view: "until" not in view["upgrade"])
    away.rename(bundle.path)
    view = await home.until_plugin(ID, lambda view: view["upgrade"].get("until", "") > answer["upgrade"]["until"])
    assert (view["version"], view["upgrade"]["state"], home.driven.running[ID]) == ("1.1.0", "gating", 2)


async def test_old_version_that_is_revoked_stops_at_once_and_the_new_one_stays(home):
    old, new, _ = await upgraded(home)
    home.trust.write_bytes(bundles.policy_bytes(ACME, revoked={"plugins": [f"{ID}@1.0.0"]}))
    await home.look()
    await in_process.until(lambda: not old.alive, "the revoked one stopped")
    view = await decided(home)
    assert (view["version"], view["upgrade"]["state"], home.driven.only(ID)) == ("1.1.0", "committed", new)


async def test_new_version_that_is_revoked_is_given_up_and_the_old_one_runs(home):
    """Both were stopped at once; that the bundle on disk is revoked says nothing of the old one, which starts again."""
    _, new, _ = await upgraded(home)
    home.trust.write_bytes(bundles.policy_bytes(ACME, revoked={"plugins": [f"{ID}@1.1.0"]}))
    await home.look()
    await in_process.until(lambda: not new.alive, "the revoked one stopped")
    view = await home.until_plugin(ID, lambda view: view["version"] == "1.0.0" and view["runtime"]["state"] == "armed")
    assert (view["upgrade"]["state"], view["upgrade"]["code"]) == ("rolled_back", "plugin_revoked")
    assert (view["available"], "candidate" in view) == (True, False)


async def test_gate_that_a_takeover_ends_counts_as_neither(home):
    """What was on trial is another publisher's by then, and gone."""
    rival = bundles.author("rival")
    old, new, _ = await upgraded(home)
    home.trust.write_bytes(bundles.policy_bytes(ACME, rival))
    home.drop(author=rival, version="9.0.0", type="system", capabilities=CAPABILITIES)
    await home.look()
    await in_process.until(lambda: home.app.api.lifecycle.claimant(ID, "rival"), "the rival's bundle")
    answer = await home.ask("POST", f"{URL}/upgrade", {"accept_publisher": "rival"})
    assert (answer.status, answer["publisher"]) == (200, "rival"), answer
    assert (old.alive, new.alive, "upgrade" in answer) == (False, False, False)
    assert home.app.api.lifecycle.upgrades.results == {"committed": 0, "rolled_back": 0}


async def test_routes_that_a_revoked_version_changed_are_the_old_ones_again(tmp_path):
    """Of files too, which may not be served while no version is available."""
    declared_here = [*CAPABILITIES, "static:write", "worker:route"]
    toml = f'{LONG}[http]\nlisten = "127.0.0.1:{ports.free()}"\n'
    async with in_process.opened(tmp_path, author=ACME, toml=toml) as home:
        home.drop(version="1.0.0", type="system", capabilities=declared_here)
        old = await home.armed(ID, accept=("monitor:admin", "static:write"))
        await old.call("static.put", path="old/a.txt", content="old")
        await old.call("route.put", path=f"/{ID}/kept/", target="static", folder="old")
        await old.call("route.put", path=f"/{ID}/gone/", target="static", folder="old")
        await dropped(home, "1.1.0", capabilities=declared_here)
        assert (await home.ask("POST", f"{URL}/upgrade", {})).status == 200
        new = home.driven.of(ID)[-1]
        await new.call("route.put", path=f"/{ID}/kept/", target="static", folder="new")
        await new.call("route.delete", path=f"/{ID}/gone/")
        await new.call("route.put", path=f"/{ID}/new/", target="static", folder="new")
        home.trust.write_bytes(bundles.policy_bytes(ACME, revoked={"plugins": [f"{ID}@1.1.0"]}))
        await home.look()
        await home.until_plugin(ID, lambda view: view["version"] == "1.0.0" and view["runtime"]["state"] == "armed")

        async def routes():
            listed = (await home.ask("GET", "/api/routes"))["routes"]
            return sorted((one["path"], one["folder"], one["state"]) for one in listed)

        kept = [(f"/{ID}/gone/", "old/", "served"), (f"/{ID}/kept/", "old/", "served")]
        assert await routes() == kept
    async with in_process.opened(tmp_path, author=ACME, toml=toml) as home:  # also in the ledger
        await home.until_plugin(ID, lambda view: view["runtime"]["state"] == "armed")
        listed = (await home.ask("GET", "/api/routes"))["routes"]
        assert sorted((one["path"], one["folder"], one["state"]) for one in listed) == kept


async def test_rollback_leaves_a_version_that_was_revoked_later(brief):
    await upgraded(brief)
    await decided(brief)
    brief.trust.write_bytes(bundles.policy_bytes(ACME, revoked={"plugins": [f"{ID}@1.1.0"]}))
    await brief.look()
    await brief.until_plugin(ID, lambda view: not view["available"] and view["runtime"]["state"] == "failed")
    answer = await brief.ask("POST", f"{URL}/rollback", {})
    assert (answer["version"], answer["runtime"]["state"], answer["available"]) == ("1.0.0", "armed", True), answer
    brief.trust.write_bytes(bundles.policy_bytes(ACME, revoked={"plugins": [f"{ID}@*"]}))
    await brief.look()
    await brief.until_plugin(ID, lambda view: not view["available"] and view["runtime"]["state"] == "failed")


async def test_bundle_that_was_left_stops_the_plugin_for_everything_but_its_revocation(brief):
    """1.0.0 was returned to, 1.1.0 is on disk: each way in which that can be refused, and what becomes of 1.0.0."""
    await upgraded(brief)
    await decided(brief)
    assert (await brief.ask("POST", f"{URL}/rollback", {}))["version"] == "1.0.0"
    bundle = brief.dropped["demo"]
    manifest, artifact = bundle.manifest_path.read_bytes(), bundle.artifact_path.read_bytes()

    async def stopped(code):
        await brief.look()
        view = await brief.until_plugin(ID, lambda view: view["runtime"].get("last_error", {}).get("code") == code)
        assert (view["available"], view["runtime"]["state"], view["status"]) == (False, "failed", "active")
        assert not brief.driven.running[ID]
        bundles.write(bundle.path, manifest, artifact)
        brief.trust.write_bytes(bundles.policy_bytes(ACME))
        await brief.look()
        await brief.until_plugin(ID, lambda view: view["available"] and view["runtime"]["state"] == "armed")

    damages = {
        "digest_mismatch": lambda: bundle.artifact_path.write_bytes(b"other"),
        "signature_invalid": lambda: bundles.write(bundle.path, {**bundle.raw, "name": "Other"}),
        "manifest_invalid_json": lambda: bundle.manifest_path.write_bytes(b"{"),
        "artifact_missing": bundle.artifact_path.unlink,
        "manifest_missing": bundle.manifest_path.unlink,
        "publisher_untrusted": lambda: brief.trust.write_bytes(bundles.policy_bytes()),
    }
    for code, damage in damages.items():
        damage()
        await stopped(code)
    # What is revoked, too, when it is not the very version that was left: here by the version that it claims alone.
    brief.trust.write_bytes(bundles.policy_bytes(ACME, revoked={"plugins": [f"{ID}@1.2.0", f"{ID}@1.1.0"]}))
    await brief.look()
    await in_process.until(lambda: "plugins/demo" in brief.app.api.lifecycle.rejected(), "the left one revoked")
    before = brief.driven.of(ID)[-1]
    assert (await brief.plugin(ID))["available"]
    assert brief.driven.only(ID) is before
    bundles.write(bundle.path, {**bundle.raw, "version": "1.2.0"})
    view = await brief.until_plugin(ID, lambda view: view["runtime"]["state"] == "failed")
    assert (view["available"], view["runtime"]["last_error"]["code"]) == (False, "plugin_revoked")
    bundles.write(bundle.path, manifest)
    await brief.until_plugin(ID, lambda view: view["runtime"]["state"] == "armed")


async def test_candidate_that_is_revoked_stops_the_plugin_whose_bundle_it_replaced(home):
    """Nobody accepted or left it, so its bundle is a refused one like any other."""
    await first(home)
    await dropped(home, "1.1.0")
    home.trust.write_bytes(bundles.policy_bytes(ACME, revoked={"plugins": [f"{ID}@1.1.0"]}))
    await home.look()
    view = await home.until_plugin(ID, lambda view: view["runtime"]["state"] == "failed")
    assert (view["available"], view["runtime"]["last_error"]["code"]) == (False, "plugin_revoked")


async def test_another_upgrade_ends_the_gate_of_the_first(home):
    first_, second, _ = await upgraded(home)
    _, third, answer = await upgraded(home, "1.2.0")
    assert (answer["upgrade"]["before"], answer["upgrade"]["version"]) == ("1.1.0", "1.2.0")
    await in_process.until(lambda: not first_.alive, "the first stopped")
    third.crash()
    assert (await decided(home))["version"] == "1.1.0"
    assert home.driven.only(ID) is second


async def test_restart_of_the_daemon_watches_anew_and_what_it_wrote_stays_apart(tmp_path):
    """Both run again, each with its own values; a failure then still leads back."""
    async with in_process.opened(tmp_path, author=ACME, toml=LONG) as home:
        old, new, _ = await upgraded(home)
        await old.call("kv.put", key="a", value="old")
        await new.call("kv.put", key="a", value="new")
    async with in_process.opened(tmp_path, author=ACME, toml=LONG) as home:
        view = await home.until_plugin(ID, lambda view: view.get("upgrade", {}).get("until"))
        assert (view["version"], view["upgrade"]["state"]) == ("1.1.0", "gating")
        await in_process.until(lambda: home.driven.running[ID] == 2, "both run")
        by_version = {one.plugin.manifest.version: one for one in home.driven.of(ID)}
        for version, wanted in (("1.0.0", "old"), ("1.1.0", "new")):
            assert (await by_version[version].call("kv.get", key="a"))["value"] == wanted
        by_version["1.1.0"].crash()
        assert (await decided(home))["version"] == "1.0.0"
        assert (home.driven.only(ID), await value(home, "a")) == (by_version["1.0.0"], b"old")


async def test_version_that_stands_by_starts_with_its_own_configuration(tmp_path):
    """Not with the one that was set for the new version, which its schema may refuse."""

    def takes(*names):
        schema = {"type": "object", "properties": {name: {} for name in names}, "additionalProperties": False}
        return {"v2": True, "config": schema, "runtime": {"protocol": "latticed-stdio-1"}}

    async with in_process.opened(tmp_path, author=ACME, toml=LONG) as home:
        home.drop(version="1.0.0", type="system", capabilities=CAPABILITIES, **takes("a"))
        await home.armed(ID, accept=("monitor:admin",))
        assert (await home.ask("PUT", f"{URL}/config", {"config": {"a": 1}})).status == 200
        await upgraded(home, **takes("a", "b"))
        assert (await home.ask("PUT", f"{URL}/config", {"config": {"b": 2}})).status == 200
    async with in_process.opened(tmp_path, author=ACME, toml=LONG) as home:
        await home.until_plugin(ID, lambda view: view.get("upgrade", {}).get("until"))
        await in_process.until(lambda: home.driven.running[ID] == 2, "both run")
        by_version = {one.plugin.manifest.version: one for one in home.driven.of(ID)}
        found = {version: json.loads(one.plugin.config) for version, one in by_version.items()}
        assert found == {"1.0.0": {"a": 1}, "1.1.0": {"b": 2}}
        by_version["1.1.0"].crash()
        assert (await decided(home))["version"] == "1.0.0"
        assert home.driven.only(ID) is by_version["1.0.0"]
        assert (await home.ask("GET", f"{URL}/config"))["config"] == {"a": 1}


async def test_takeover_in_a_gate_leaves_neither_version_nor_copies_of_values_to_the_new_publisher():
    rival = bundles.author("rival")
    async with in_process.opened(author=ACME, policy=bundles.policy_bytes(ACME, rival), toml=LONG) as home:
        old = await first(home)
        await old.call("kv.put", key="a", value="of acme")
        old, new, _ = await upgraded(home)
        home.drop("other", author=rival, version="2.0.0", type="system", capabilities=CAPABILITIES)
        await in_process.until(lambda: "plugins/other" in home.app.api.lifecycle.rejected(), "the rival's bundle")
        answer = await home.ask(
            "POST", f"{URL}/upgrade", {"accept_publisher": "rival", "accept": ["kv:read", "kv:write"]}
        )
        assert (answer.status, answer["publisher"], answer["runtime"]["state"]) == (200, "rival", "armed"), answer
        await in_process.until(lambda: not old.alive and not new.alive, "both of acme stopped")
        taker = home.driven.only(ID)
        assert (taker.plugin.manifest.publisher, (await taker.call("kv.list"))["keys"]) == ("rival", [])
        assert home.app.api.ledger.read(lambda db: kv.of_plugin(db, ID)) == [f"plugin:{ID}@acme"]
        assert (await home.ask("GET", URL))["kept"] == []
        assert (await home.ask("POST", f"{URL}/rollback", {})).code == "not_found"


async def test_inactive_plugin_is_upgraded_without_a_gate_and_can_go_back(home):
    await first(home)
    await home.decide(ID, "disabled")
    await dropped(home, "1.1.0")
    answer = await home.ask("POST", f"{URL}/upgrade", {})
    assert (answer["version"], answer["upgrade"]["state"]) == ("1.1.0", "committed")
    assert (await home.ask("POST", f"{URL}/rollback", {}))["version"] == "1.0.0"


async def test_full_ledger_keeps_the_old_version_answering_until_it_can_be_recorded(home, monkeypatch):
    """The new one is dead at once; what is on disk stays one of both."""
    old, new, _ = await upgraded(home)
    write, full = home.app.api.ledger.write, True

    async def refused(*args, **named):
        if full:
            raise Problem("ledger_unavailable", "the disk is full")
        return await write(*args, **named)

    monkeypatch.setattr(home.app.api.ledger, "write", refused)
    new.crash()
    await in_process.until(lambda: not new.alive, "the new one ended")
    asked = []
    old.invoking = answering(asked, "old")
    assert (await invoked(home))["ok"] is True
    assert (asked, (await home.plugin(ID))["upgrade"]["state"]) == (["old"], "gating")
    full = False
    assert (await decided(home))["version"] == "1.0.0"
