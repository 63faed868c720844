"""What of a plugin's rows another publisher of its id gets, after a loss too. The real App, real backups."""

from __future__ import annotations

import io
import json

import pytest

from latticed.bundle.read import ReadLimits
from latticed.kit.clock import SystemClock
from latticed.lifecycle import restore
from latticed.lifecycle.recovery import RecoveryPlace
from tests.house import bundles, in_process

ID = "acme.demo"
URL = f"/api/plugins/by-id/{ID}"
SECRET = "/api/secrets/TOKEN"
ACME, RIVAL = bundles.author("acme"), bundles.author("rival")
CAPABILITIES = ["kv:read", "kv:write", "monitor:admin", "monitor:read", "notify:send"]
FIELDS = {
    "id": ID,
    "type": "system",
    "capabilities": CAPABILITIES,
    "v2": True,
    "config": {"type": "object", "properties": {"whose": {"type": "string"}}},
}
HOW = {"author": ACME, "policy": bundles.policy_bytes(ACME, RIVAL)}


async def takes_over(home, author, version):
    """Another publisher's bundle, accepted by name; its instance."""
    home.drop(author.publisher, author=author, version=version, **FIELDS)

    def seen():
        found = home.app.api.lifecycle.claimant(ID, author.publisher)
        return found is not None and found.verdict.manifest.version == version

    await in_process.until(seen, "its bundle")
    wanted = {"accept_publisher": author.publisher, "accept": CAPABILITIES}
    answer = await home.ask("POST", f"{URL}/upgrade", wanted)
    assert (answer.status, answer["publisher"], answer["status"]) == (200, author.publisher, "active"), answer
    return home.driven.of(ID)[-1]


async def reached(home, instance):
    """What a publisher's plugin gets of what is kept under its id."""
    return {
        "values": [
            (await instance.call("kv.get", key=one))["value"] for one in (await instance.call("kv.list"))["keys"]
        ],
        "monitors": [one["name"] for one in (await instance.call("monitor.list"))["monitors"]],
        "config": json.loads(instance.plugin.config),
        "secrets": (await home.ask("GET", "/api/secrets"))["secrets"][0]["plugins"],
    }


def restored(root, backup):
    place = RecoveryPlace(
        state_dir=root / "state",
        plugin_dir=root / "plugins",
        trust=root / "trust.json",
        limits=ReadLimits(),
        version="",
    )
    restore.restore(place, io.BytesIO(backup), SystemClock())


def put_back(root, ledger):
    """The ledger's files as they were."""
    for path in (root / "state").glob("ledger.sqlite3*"):
        path.unlink()
    for name, data in ledger.items():
        (root / "state" / name).write_bytes(data)


@pytest.mark.parametrize("way", ["restore", "accept_rollback"])
async def test_loss_of_a_takeover_leaves_to_each_publisher_its_own(tmp_path, way):
    """Values, configuration, secrets and ongoing work, as the takeover that was lost did."""
    async with in_process.opened(tmp_path, **HOW) as home:
        home.drop("rival", author=RIVAL, version="1.0.0", **FIELDS)
        rivals = await home.armed(ID, accept=("monitor:admin",))
        await rivals.call("kv.put", key="a", value="of rival")
        acmes = await takes_over(home, ACME, "2.0.0")
        await acmes.call("kv.put", key="a", value="of acme")
        await acmes.call("monitor.put", name="web", kind="tcp", target="127.0.0.1:1", interval_s=3600)
        assert (await home.ask("PUT", SECRET, b"of acme")).status == 200
        assert (await home.ask("PUT", f"{SECRET}/plugins/{ID}")).status == 200
        assert (await home.ask("PUT", f"{URL}/config", {"config": {"whose": "acme"}})).status == 200
        acmes = home.driven.of(ID)[-1]
        of_acme = await reached(home, acmes)
        backup = (await home.ask("GET", "/api/backup"))["raw"]
    ledger = {path.name: path.read_bytes() for path in (tmp_path / "state").glob("ledger.sqlite3*")}
    async with in_process.opened(tmp_path, **HOW) as home:
        of_rival = await reached(home, await takes_over(home, RIVAL, "3.0.0"))
        assert of_rival == {"values": ["of rival"], "monitors": [], "config": {}, "secrets": [f"{ID}@acme"]}
    # The takeover is lost, but for what the floors say.
    restored(tmp_path, backup) if way == "restore" else put_back(tmp_path, ledger)
    async with in_process.opened(tmp_path, **HOW, accept_rollback=way == "accept_rollback") as home:
        rivals = await home.armed(ID, accept=tuple(CAPABILITIES))
        assert rivals.plugin.manifest.publisher == "rival"
        assert await reached(home, rivals) == of_rival
        back = await reached(home, await takes_over(home, ACME, "4.0.0"))
        assert back == {**of_acme, "monitors": []}


async def test_words_of_a_publishers_notifications_make_none_of_the_next_ones_a_repeat(tmp_path):
    """It would not be sent, and tell what the one before had sent."""
    async with in_process.opened(tmp_path, **HOW) as home:
        home.drop("rival", author=RIVAL, version="1.0.0", **FIELDS)
        rivals = await home.armed(ID, accept=("monitor:admin",))
        said = {"title": "of rival", "dedupe": "login-1"}
        first = await rivals.call("notify.send", **said)
        queue = home.app.api.notifications
        await queue.done((await queue.take()).id)
        assert (await rivals.call("notify.send", **said))["duplicate"]
        acmes = await takes_over(home, ACME, "2.0.0")
        second = await acmes.call("notify.send", title="of acme", dedupe="login-1")
        assert (second["duplicate"], second["id"] == first["id"]) == (False, False)
        assert (await queue.take()).title == "of acme"
        assert {one.title for one in await queue.page()} == {"of rival", "of acme"}, "the operator still sees both"
