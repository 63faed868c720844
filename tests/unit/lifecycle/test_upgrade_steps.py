"""What a kill at each step of an upgrade, its return, its commit and a rollback leaves: the old or the new version.

The state directory is copied before each write to the ledger and to the floors, which is what a kill at that moment
leaves; a daemon is then started on each copy.
"""

from __future__ import annotations

import contextlib

import pytest

from latticed.ledger import kv, versions
from tests.house import bundles, in_process, stepping

ID = "acme.demo"
ACME = bundles.author("acme")
URL = f"/api/plugins/by-id/{ID}"
TOML = "[upgrade]\ngate_s = {gate_s}\n"
CAPABILITIES = ["kv:read", "kv:write"]


@contextlib.contextmanager
def copies(home, monkeypatch, target):
    """The list of copies that are made before each write within the block, and one of its end."""
    ledger, made = home.app.api.ledger, []

    def copy():
        made.append(target / f"{len(made):02}")
        stepping.copy_as_killed(home.root, made[-1])

    def copying(write):
        async def before(*args, **named):
            copy()
            return await write(*args, **named)

        return before

    for name in ("write", "write_floors"):
        monkeypatch.setattr(ledger, name, copying(getattr(ledger, name)))
    yield made
    copy()


async def begun(home):
    """Version 1.0.0 with a value of its own, and 1.1.0 in the plugin directory."""
    home.drop(version="1.0.0", type="system", capabilities=CAPABILITIES)
    old = await home.armed(ID)
    await old.call("kv.put", key="a", value="1.0.0")
    home.drop(version="1.1.0", type="system", capabilities=CAPABILITIES, artifact=bundles.ARTIFACT + b"# newer\n")
    await home.until_plugin(ID, lambda view: "candidate" in view)
    return old


async def upgraded(home):
    assert (await home.ask("POST", f"{URL}/upgrade", {})).status == 200
    new = home.driven.of(ID)[-1]
    await new.call("kv.put", key="a", value="1.1.0")
    return new


async def checked(root, *, snapshot=True):
    """Start on a copy: each version that runs has the value that it wrote, or (a new one) found; what is left of an
    open gate can be given up, to the old values; the version.
    """
    async with in_process.opened(root, author=ACME, toml=TOML.format(gate_s=3600)) as home:
        view = await home.until_plugin(ID, lambda view: view["runtime"]["state"] == "armed")
        gating = view.get("upgrade", {}).get("state") == "gating"
        await in_process.until(lambda: home.driven.running[ID] == 1 + gating, "what is to run")
        rows = home.app.api.ledger.read(lambda db: (versions.load(db, ID), kv.of_plugin(db, ID)))
        assert len(rows[1]) == 1 + len(rows[0]), "a copy of values that belongs to no kept version"
        found = view["version"]
        if gating:
            assert found == "1.1.0"
            old = next(one for one in home.driven.of(ID) if one.plugin.manifest.version == "1.0.0")
            assert (await old.call("kv.get", key="a"))["value"] == "1.0.0"
            assert (await home.ask("POST", f"{URL}/rollback", {}))["version"] == "1.0.0"
        value = (await home.ask("GET", f"/api/kv/plugin:{ID}/a"))["raw"].decode()
        if gating or (found == "1.0.0" and snapshot):
            assert value == "1.0.0"
        store = home.root / "state" / "store"
        wanted = home.app.api.lifecycle.state.in_use()
        await in_process.until(lambda: {path.name for path in store.iterdir()} == wanted, "the store to be tidy")
        assert (await home.ask("GET", "/api/audit/verify"))["ok"] is True
        return found, "gating" if gating else view["status"]


async def test_upgrade_that_is_given_up(tmp_path, monkeypatch):
    async with in_process.opened(author=ACME, toml=TOML.format(gate_s=3600)) as home:
        await begun(home)
        with copies(home, monkeypatch, tmp_path) as made:
            new = await upgraded(home)
            new.crash()
            await home.until_plugin(ID, lambda view: view["upgrade"]["state"] == "rolled_back")
    found = [await checked(path) for path in made]
    assert {found[0], found[-1]} == {("1.0.0", "active")}
    assert ("1.1.0", "gating") in found


@pytest.mark.parametrize("snapshot", [False, True])
async def test_upgrade_that_stays_and_a_rollback(tmp_path, monkeypatch, snapshot):
    async with in_process.opened(author=ACME, toml=TOML.format(gate_s=0.2)) as home:
        await begun(home)
        await upgraded(home)
        with copies(home, monkeypatch, tmp_path) as made:
            await home.until_plugin(ID, lambda view: view["upgrade"]["state"] == "committed")
            answer = await home.ask("POST", f"{URL}/rollback", {"snapshot": snapshot})
            assert answer["version"] == "1.0.0"
    found = [await checked(path, snapshot=snapshot) for path in made]
    assert found[0] == ("1.1.0", "gating") or found[0] == ("1.1.0", "active")
    assert found[-1] == ("1.0.0", "active")


async def test_takeover_by_another_publisher(tmp_path, monkeypatch):
    """Values are never those of two: the old publisher has its own, or they are set aside and the new one has none."""
    rival = bundles.author("rival")
    trusted = {"author": ACME, "policy": bundles.policy_bytes(ACME, rival), "toml": TOML.format(gate_s=3600)}
    async with in_process.opened(**trusted) as home:
        home.drop(version="1.0.0", type="system", capabilities=CAPABILITIES)
        old = await home.armed(ID)
        await old.call("kv.put", key="a", value="of acme")
        home.drop("other", author=rival, id=ID, version="2.0.0", type="system", capabilities=CAPABILITIES)
        await in_process.until(lambda: "plugins/other" in home.app.api.lifecycle.rejected(), "the rival's bundle")
        with copies(home, monkeypatch, tmp_path) as made:
            answer = await home.ask("POST", f"{URL}/upgrade", {"accept_publisher": "rival", "accept": CAPABILITIES})
            assert (answer.status, answer["publisher"]) == (200, "rival"), answer
    found = []
    for path in made:
        async with in_process.opened(path, **trusted) as home:
            view = await home.until_plugin(ID, lambda view: view["runtime"]["state"] == "armed")
            assert home.driven.running[ID] == 1
            (runs,) = home.driven.of(ID)
            found.append(view["publisher"])
            assert runs.plugin.manifest.publisher == view["publisher"]
            mine, theirs = [f"plugin:{ID}"], [f"plugin:{ID}@acme"]
            kept = home.app.api.ledger.read(lambda db: kv.of_plugin(db, ID))
            assert kept == (mine if view["publisher"] == "acme" else theirs)
            assert (await runs.call("kv.list"))["keys"] == (["a"] if view["publisher"] == "acme" else [])
    assert (found[0], found[-1], found) == ("acme", "rival", sorted(found))
