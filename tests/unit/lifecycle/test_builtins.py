"""Built-in plugins as operators see them: decided like any other, exchanged with latticed itself."""

from __future__ import annotations

import json

import pytest

from tests.house import builtins, bundles, in_process
from tests.house.system.registry import SETS

ID = "latticed.demo"
ONE = f"/api/plugins/by-id/{ID}"
BASE = ["kv:read", "log:write", "network:plan"]


@pytest.fixture
def root(tmp_path_factory):
    """Short: the path of a unix socket holds 107 bytes."""
    return tmp_path_factory.mktemp("h")


def latticed(root, *, version="1.0.0", brings=True, policy=None, **fields):
    """A latticed of `version` over the state in `root`, which brings latticed.demo with the manifest `fields`."""
    packages = root / "packages" / version
    made = (builtins.made(packages, **{"capabilities": BASE, **fields}),) if brings else ()
    return in_process.opened(root, real=True, builtins=made, version=version, policy=policy)


async def active(home, *, accept=()):
    for status in ("installed", "active"):
        answer = await home.decide(ID, status, **({"accept": list(accept)} if status == "installed" else {}))
        assert answer.status == 200, answer
    return answer


async def about(home):
    answer = await home.ask("GET", f"{ONE}?explain=1")
    assert answer.status == 200, answer
    return answer


def followed(home):
    """What latticed decided by itself, oldest first."""
    found = home.events(action="plugin.status", target=ID)
    return [event["detail"] for event in found if event["actor"] == "latticed"]


async def test_built_in_plugins_are_listed_as_verified_without_a_policy(root):
    """Their publisher is latticed, and their version that of latticed; the policy trusts nobody."""
    async with in_process.opened(root, policy=b"{}", builtins=SETS["eight"], version="3.2.1", real=True) as home:
        rows = (await home.ask("GET", "/api/plugins/lifecycle"))["rows"]
        assert len(rows) == 8
        for row in rows:
            assert row["id"].startswith("latticed.")
            assert (row["status"], row["available"], row["builtin"]) == ("verified", True, True)
            assert (row["publisher"], row["version"], row["type"]) == ("latticed", "3.2.1", "system")
            assert (row["runtime"]["state"], row["runtime"]["runner"]) == ("stopped", "builtin")
        assert (await home.ask("GET", "/api/plugins/rejected"))["rows"] == []


async def test_built_in_plugin_is_installed_granted_and_run_like_any_other(root):
    """Host-risk capabilities stay masked until granted by name; host calls are audited."""
    async with latticed(root) as home:
        answer = await active(home)
        assert (answer["granted"], answer["runtime"]["state"]) == (["kv:read", "log:write"], "armed")
        assert "candidate" not in answer
        reply = await home.ask("POST", f"{ONE}/invoke", {"action": "get", "payload": None})
        assert (reply["ok"], reply["result"]["ok"]) == (True, False)
        (call,) = home.events(action="host.call")
        assert (call["actor"], call["target"], call["decision"]) == (f"plugin:{ID}", "kv.get", "allow")
        assert (await home.ask("PUT", f"{ONE}/grants", {"grant": ["network:plan"], "trim": ["kv:read"]})).status == 200
        reply = await home.ask("POST", f"{ONE}/invoke", {"action": "get", "payload": None})
        assert "capability_not_granted" in reply["error"]
        assert (await home.plugin(ID))["granted"] == ["log:write", "network:plan"]
        assert (await home.decide(ID, "disabled"))["runtime"]["state"] == "stopped"
        assert not list((root / "state").glob("store/*")), "nothing of it is copied into the store"


async def test_restart_of_the_same_latticed_starts_built_in_plugin_again(root):
    """Recorded decisions hold; nothing is decided anew."""
    async with latticed(root) as home:
        await active(home, accept=["network:plan"])
        before = home.mark()
    async with latticed(root) as home:
        view = await home.until_plugin(ID, lambda view: view["runtime"]["state"] == "armed")
        assert (view["status"], view["granted"]) == ("active", BASE)
        assert home.events(after=before, action="plugin.status") == []


async def test_active_built_in_plugin_follows_a_newer_latticed(root):
    """There is no candidate, since the accepted code is gone. What it asks for besides is masked; the change is
    audited.
    """
    async with latticed(root) as home:
        await active(home, accept=["network:plan"])
    more = [*BASE, "kv:write", "network:apply"]
    async with latticed(root, version="1.1.0", capabilities=more) as home:
        view = await home.until_plugin(ID, lambda view: view["runtime"]["state"] == "armed")
        assert (view["version"], view["status"], view["available"]) == ("1.1.0", "active", True)
        assert "candidate" not in view
        assert (view["capabilities"], view["granted"]) == (more, BASE)
        await in_process.until(lambda: followed(home), "on record")
        (event,) = followed(home)
        assert (event["version"], event["from"], event["to"]) == ("1.1.0", "active", "active")
        assert event["granted"] == ",".join(BASE)
        assert (await home.ask("PUT", f"{ONE}/grants", {"grant": ["network:apply"]})).status == 200
    async with latticed(root, version="1.1.0", capabilities=more) as home:
        assert (await home.plugin(ID))["granted"] == [*BASE, "network:apply"], "held to the floors of its own version"
        assert len(followed(home)) == 1


@pytest.mark.parametrize("status", ["installed", "disabled"])
async def test_inactive_built_in_plugin_follows_a_newer_latticed(root, status):
    async with latticed(root) as home:
        await home.decide(ID, "installed")
        if status == "disabled":
            await home.decide(ID, "disabled")
    async with latticed(root, version="2.0.0") as home:
        view = await home.plugin(ID)
        assert (view["version"], view["status"], view["available"]) == ("2.0.0", status, True)
        assert "candidate" not in view


async def test_built_in_plugin_not_installed_follows_any_latticed(root):
    """Nothing was decided about it, so the record changes without an event."""
    async with latticed(root) as home:
        assert (await home.plugin(ID))["version"] == "1.0.0"
    for version in ("2.0.0", "1.5.0"):
        async with latticed(root, version=version) as home:
            view = await home.plugin(ID)
            assert (view["version"], view["status"], view["available"]) == (version, "verified", True)
            assert followed(home) == []


async def test_built_in_plugin_whose_configuration_no_longer_fits_is_needs_config(root):
    """The newer schema counts; the plugin is started once it is configured anew."""
    old, new = ({"type": "object", "properties": {"doors": {"type": kind}}} for kind in ("integer", "string"))
    async with latticed(root, config=old) as home:
        await active(home)
        assert (await home.ask("PUT", f"{ONE}/config", {"config": {"doors": 1}})).status == 200
    async with latticed(root, version="1.1.0", config=new) as home:
        view = await home.until_plugin(ID, lambda view: view["runtime"]["state"] == "failed")
        assert (view["version"], view["runtime"]["last_error"]["code"]) == ("1.1.0", "needs_config")
        assert (await home.ask("PUT", f"{ONE}/config", {"config": {"doors": "1"}})).status == 200
        await home.until_plugin(ID, lambda view: view["runtime"]["state"] == "armed")


async def test_widened_terms_of_a_built_in_plugin_are_withheld(root):
    """Hosts, routes and limits must be accepted by name, as in a bundle's upgrade (contracts §13)."""
    narrow = {"runtime": {"limits": {"host_calls_per_s": 5}}, "capabilities": [*BASE, "http:egress", "worker:route"]}
    wide = {
        "runtime": {"limits": {"host_calls_per_s": 50}},
        "routes": {"prefixes": ["/elsewhere/"]},
        "egress": {"hosts": ["api.example.org:443"]},
        "capabilities": narrow["capabilities"],
    }
    async with latticed(root, **narrow) as home:
        await active(home, accept=["http:egress"])
    async with latticed(root, version="1.1.0", **wide) as home:
        found = await about(home)
        assert found["grants"]["hosts"] == []
        assert found["grants"]["accepted"]["limits"] == {"host_calls_per_s": 5}
        assert found["grants"]["accepted"]["prefixes"] == []
        withheld = " ".join(found["grants"]["withheld"])
        assert "prefix=/elsewhere/" in withheld
        assert "limit=host_calls_per_s:50" in withheld
        await in_process.until(lambda: followed(home), "on record")
        assert "withheld" in followed(home)[0]


async def test_new_required_dependency_of_a_built_in_plugin_needs_consent(root):
    """The plugin cannot run without it, so it does not follow: the verdict says what to accept."""
    async with latticed(root) as home:
        await active(home)
    needs = {"dependencies": [{"id": "acme.base", "version": "*"}]}
    async with latticed(root, version="1.1.0", **needs) as home:
        found = await about(home)
        assert (found["plugin"]["available"], found["plugin"]["runtime"]["state"]) == (False, "failed")
        assert found["verdict"]["code"] == "needs_consent"
        assert "dependency=acme.base" in found["verdict"]["hint"]
        assert found["plugin"]["candidate"]["must_name"] == ["dependency=acme.base"]
        answer = await home.ask("POST", f"{ONE}/upgrade", {"accept": ["dependency=acme.base"]})
        assert (answer.status, answer["version"]) == (200, "1.1.0")
        await home.until_plugin(ID, lambda view: view["runtime"]["state"] == "armed")


async def test_older_latticed_runs_built_in_plugin_only_with_allow_downgrade(root):
    """Its version is below the floor; a newer latticed is followed without consent."""
    async with latticed(root, version="2.0.0") as home:
        await active(home)
    async with latticed(root, version="1.0.0") as home:
        found = await about(home)
        assert (found["plugin"]["available"], found["plugin"]["status"]) == (False, "active")
        assert found["plugin"]["runtime"]["state"] == "failed"
        assert found["verdict"]["code"] == "version_downgrade"
        assert f"latticectl upgrade {ID} --allow-downgrade" in found["verdict"]["hint"]
        assert "2.0.0" in found["verdict"]["reason"]
        assert "1.0.0" in found["verdict"]["reason"]
        assert found["plugin"]["candidate"]["needs_downgrade"] is True
        assert (await home.ask("POST", f"{ONE}/upgrade", {})).code == "version_downgrade"
    async with latticed(root, version="2.0.0") as home:
        view = await home.until_plugin(ID, lambda view: view["runtime"]["state"] == "armed")
        assert view["version"] == "2.0.0"
    async with latticed(root, version="1.0.0") as home:
        answer = await home.ask("POST", f"{ONE}/upgrade", {"allow_downgrade": True})
        assert (answer.status, answer["version"], answer["available"]) == (200, "1.0.0", True)
        await home.until_plugin(ID, lambda view: view["runtime"]["state"] == "armed")


async def test_built_in_plugin_that_latticed_no_longer_has_keeps_its_record(root):
    """It is stopped with a reason; an operator can forget it, or a latticed that has it runs it again."""
    async with latticed(root) as home:
        await active(home, accept=["network:plan"])
    async with latticed(root, version="1.1.0", brings=False) as home:
        found = await about(home)
        view = found["plugin"]
        assert (view["status"], view["available"], view["builtin"]) == ("active", False, True)
        assert (view["runtime"]["state"], view["runtime"]["last_error"]["code"]) == ("failed", "manifest_missing")
        assert "built-in plugins of this version" in found["verdict"]["reason"]
        assert f"latticectl disable {ID} && latticectl forget {ID}" in found["verdict"]["hint"]
        assert (await home.ask("POST", f"{ONE}/restart", {})).code == "not_available"
        assert (await home.ask("POST", f"{ONE}/upgrade", {})).code == "no_candidate"
    async with latticed(root, version="1.2.0") as home:
        view = await home.until_plugin(ID, lambda view: view["runtime"]["state"] == "armed")
        assert (view["version"], view["granted"]) == ("1.2.0", BASE)
    async with latticed(root, version="1.3.0", brings=False) as home:
        assert (await home.decide(ID, "disabled")).status == 200
        assert (await home.ask("POST", f"{ONE}/forget", {})).status == 200
        assert (await home.ask("GET", ONE)).status == 404
    async with latticed(root, version="1.4.0") as home:
        view = await home.plugin(ID)
        assert (view["status"], view["available"]) == ("verified", True)


async def test_undecided_built_in_plugin_cannot_be_forgotten(root):
    """It would come back at once; a disabled one is forgotten, and listed again with its masks."""
    async with latticed(root) as home:
        answer = await home.ask("POST", f"{ONE}/forget", {})
        assert (answer.code, "a part of latticed" in answer["detail"]) == ("invalid_transition", True)
        await active(home, accept=["network:plan"])
        await home.decide(ID, "disabled")
        assert (await home.ask("POST", f"{ONE}/forget", {})).status == 200
        view = await home.plugin(ID)
        assert (view["status"], view["granted"]) == ("verified", ["kv:read", "log:write"])


async def test_revocation_stops_built_in_plugin_until_it_is_lifted(root):
    """It is stopped at once, listed among the rejected, and still refused after a restart."""
    author = bundles.author()
    async with latticed(root) as home:
        await active(home)
        home.trust.write_bytes(bundles.policy_bytes(author, revoked={"plugins": [f"{ID}@1.0.0"]}))
        foreseen = await home.ask("POST", "/api/trust/foresee", {"policy": json.loads(home.trust.read_bytes())})
        assert (foreseen.status, [stop["id"] for stop in foreseen["stops"]]) == (200, [ID])
        await home.look()
        view = await home.until_plugin(ID, lambda view: view["runtime"]["state"] == "failed")
        assert (view["available"], view["runtime"]["last_error"]["code"]) == (False, "plugin_revoked")
        (row,) = (await home.ask("GET", "/api/plugins/rejected"))["rows"]
        assert (row["name"], row["id"], row["code"]) == ("demo", ID, "plugin_revoked")
        assert (await home.ask("POST", f"{ONE}/restart", {})).code == "not_available"
    async with latticed(root, policy=bundles.policy_bytes(author)) as home:
        assert (await home.plugin(ID))["runtime"]["last_error"]["code"] == "plugin_revoked"
        assert (await home.ask("POST", "/api/trust/lift", {"kind": "plugin", "value": f"{ID}@1.0.0"})).status == 200
        await home.until_plugin(ID, lambda view: view["runtime"]["state"] == "armed" and view["available"])


async def test_bundle_cannot_take_the_id_of_a_built_in_plugin(root):
    """A trusted publisher has signed it, and it is refused; the built-in plugin keeps running."""
    async with latticed(root) as home:
        await active(home)
        home.drop("demo", id=ID)
        home.drop("other", id="acme.other", publisher="latticed")
        await in_process.until(lambda: len(home.app.api.lifecycle.rejected()) == 2, "both refused")
        codes = {row["name"]: row["code"] for row in (await home.ask("GET", "/api/plugins/rejected"))["rows"]}
        assert codes == {"demo": "manifest_invalid", "other": "manifest_invalid"}
        answer = await home.ask("POST", f"{ONE}/upgrade", {"accept_publisher": "acme"})
        assert answer.code == "no_candidate"
        assert (await home.plugin(ID))["runtime"]["state"] == "armed"


async def test_built_in_plugin_is_not_executed_under_noop(root):
    """The setting is `runners.system = "noop"`: the plugin is armed, and no action can be invoked."""
    made = (builtins.made(root / "packages", capabilities=BASE),)
    toml = '[runners]\nsystem = "noop"\n'
    async with in_process.opened(root, real=True, builtins=made, version="1.0.0", toml=toml) as home:
        view = await active(home)
        assert (view["runtime"]["runner"], view["runtime"]["state"]) == ("noop", "armed")
        answer = await home.ask("POST", f"{ONE}/invoke", {"action": "echo", "payload": 1})
        assert answer.code == "service_unavailable"


async def test_built_in_plugin_with_a_bad_manifest_is_rejected_alone(root):
    """The daemon starts and serves requests."""
    async with latticed(root, capabilities=["no:such"]) as home:
        assert (await home.ask("GET", "/api/plugins"))["rows"] == []
        (row,) = (await home.ask("GET", "/api/plugins/rejected"))["rows"]
        assert (row["name"], row["code"]) == ("demo", "unknown_capability")
