"""What `latticed.fleet.deployment` writes is taken by the real server, and means there what it should."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess

import pytest

from latticed.fleet import deployment, nkeys
from latticed.fleet.nats_engine import NatsControllerEngine
from latticed.fleet.signers import Identities
from latticed.model.errors import Problem
from tests.house import nats_servers

NOW_S = 1_790_000_000


def server(**changes):
    fields = {
        "name": "fleet-1",
        "listen": "127.0.0.1:4222",
        "directory": "/var/lib/nats",
        "certificate": "/etc/nats/server.pem",
        "private_key": "/etc/nats/server.key",
        "ca": "/etc/nats/ca.pem",
    }
    return deployment.ConfiguredServer(**{**fields, **changes})


@pytest.mark.parametrize("count", [1, 3])
def test_server_takes_the_configuration(tmp_path, count):
    fleet = nats_servers.configured(tmp_path / "nats", count)
    for one in fleet.servers:
        found = subprocess.run(
            [nats_servers.PROGRAM, "-t", "-c", one.configuration], capture_output=True, text=True, check=False
        )
        assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("count", [0, 2, 4])
def test_two_servers_are_refused(count):
    cluster = [server(name=f"fleet-{number}", route=f"127.0.0.1:{number}") for number in range(count)]
    one = cluster[0] if cluster else server()
    with pytest.raises(Problem, match="one server or three"):
        deployment.configuration(one, cluster, Identities.generate(), sizes=deployment.Sizes(), now_s=NOW_S)


def test_cluster_without_routes_is_refused():
    cluster = [server(name=f"fleet-{number}") for number in range(3)]
    with pytest.raises(Problem, match="a route"):
        deployment.configuration(cluster[0], cluster, Identities.generate(), sizes=deployment.Sizes(), now_s=NOW_S)


@pytest.mark.parametrize("text", ['a"b', "a\\b", "a\nb", "a\x00b", "", "ä"])
def test_path_that_would_end_its_string_is_refused(text):
    one = server(certificate=text)
    with pytest.raises(Problem, match="printable ASCII"):
        deployment.configuration(one, [one], Identities.generate(), sizes=deployment.Sizes(), now_s=NOW_S)


class TestIdentities:
    mine = Identities.generate()

    def test_survive_their_file(self):
        again = Identities.parse(self.mine.text())
        assert again.text() == self.mine.text()

    @pytest.mark.parametrize("change", ["missing", "more", "kind", "seed", "json"])
    def test_file_that_is_damaged_is_refused_without_a_seed_in_the_message(self, change):
        seeds = json.loads(self.mine.text())
        match change:
            case "missing":
                del seeds["nodes"]
            case "more":
                seeds["other"] = seeds["nodes"]
            case "kind":
                seeds["operator"] = seeds["nodes"]
            case "seed":
                seeds["nodes"] = seeds["nodes"][:-1]
        data = json.dumps(seeds).encode()[: -1 if change == "json" else None]
        with pytest.raises(Problem) as found:
            Identities.parse(data)
        assert found.value.code == "key_invalid"
        assert not any(seed in str(found.value) for seed in seeds.values())

    def test_no_text_of_them_shows_a_seed(self):
        seeds = json.loads(self.mine.text()).values()
        assert not any(seed in repr(self.mine) for seed in seeds)


class TestTokens:
    identities = Identities.generate()

    def test_accounts_are_signed_by_the_operator(self):
        operator = frozenset({self.identities.operator.public})
        tokens = deployment.account_tokens(self.identities, now_s=NOW_S)
        assert sorted(nkeys.verified(one, operator)["name"] for one in tokens.values()) == ["CTRL", "NODES", "SYS"]

    def test_nodes_have_no_streams_and_no_leaf_nodes(self):
        claims = self.nodes()
        assert "disk_storage" not in claims["limits"]
        assert claims["limits"]["leaf"] == 0

    def test_what_nodes_say_again_waits_for_no_disk_where_a_server_can_do_without(self):
        """Beside a flood of one node the statuses of 99 others took five seconds: the disk, for each of them."""
        for replicas, names in ((1, ["STATUS"]), (3, [])):
            streams = deployment.streams(deployment.SIZES, replicas=replicas)
            assert [one["name"] for one in streams if one.get("persist_mode") == "async"] == names

    def test_every_permission_of_a_node_is_its_own_by_name_or_a_bundle(self):
        template = self.nodes()["signing_keys"][0]["template"]
        allowed = template["pub"]["allow"] + template["sub"]["allow"]
        assert [one for one in allowed if "{{name()}}" not in one] == ["chunk.*.*"]

    def test_node_whose_name_names_others_gets_no_token(self):
        user = nkeys.Key.generate(nkeys.KeyKind.USER).public
        for name in ("", "*", ">", "a.b", "a b", "A", "-a", "a-", "a" * 64, "ä", "a\n", "{{name()}}"):
            with pytest.raises(Problem, match="a node's name"):
                deployment.node_token(self.identities.node_signer, "A", user, name, now_s=NOW_S)

    def test_key_that_is_no_users_gets_no_token(self):
        with pytest.raises(nkeys.BadKey):
            deployment.node_token(self.identities.node_signer, "A", self.identities.nodes.public, "web-1", now_s=NOW_S)

    def nodes(self):
        tokens = deployment.account_tokens(self.identities, now_s=NOW_S)
        return nkeys.unverified(tokens[self.identities.nodes.public])["nats"]


class TestRunningServer:
    async def test_syncs_before_it_acknowledges(self, fleet):
        async with asyncio.timeout(30), fleet.connected("system") as system:
            answer = await system.request("$SYS.REQ.SERVER.PING.JSZ", b"{}")
        assert json.loads(answer.data)["data"]["config"]["sync_always"] is True

    async def test_streams_are_as_wanted_and_can_be_provided_again(self, fleet, controller):
        wanted = deployment.streams(fleet.sizes, replicas=1)
        await controller.provide(wanted)
        found = await controller.streams([one["name"] for one in wanted])
        for one in wanted:
            assert {name: found[one["name"]].get(name) for name in one} == one

    async def test_stream_that_was_changed_by_hand_is_set_right(self, fleet, controller):
        wanted = {one["name"]: one for one in deployment.streams(fleet.sizes, replicas=1)}
        await controller.provide([{**wanted["EVENTS"], "max_msgs_per_subject": 7}])
        assert (await controller.streams(["EVENTS"]))["EVENTS"]["max_msgs_per_subject"] == 7
        await controller.provide([wanted["EVENTS"]])
        found = await controller.streams(["EVENTS"])
        assert found["EVENTS"]["max_msgs_per_subject"] == deployment.EVENTS_PER_NODE

    async def test_stream_that_is_not_there_is_none(self, controller: NatsControllerEngine):
        assert await controller.streams(["NONE"]) == {"NONE": None}


def test_space_is_that_of_all_nodes_at_their_quota():
    """One that floods fills its own share: the streams have room for each node's largest."""
    small, large = (deployment.Sizes(nodes=count, bundles_bytes=0).disk_bytes for count in (1, 1_001))
    assert large - small > 1_000 * deployment.EVENTS_PER_NODE * (16 << 10)
    assert dataclasses.replace(deployment.Sizes(), nodes=10).disk_bytes > deployment.Sizes().bundles_bytes
