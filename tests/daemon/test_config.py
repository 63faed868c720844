"""Configurations of plugins in a running daemon: set, checked, given to the plugin, kept, restored, forgotten."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time

import apsw
import pytest
import wasmtime

from tests.house import bundles, hosting, programs, wasms

pytestmark = pytest.mark.daemon

ID = "acme.configured"
CONFIG = f"/api/plugins/by-id/{ID}/config"
SPEAKING = {"protocol": "latticed-stdio-1"}
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "city": {"type": "string", "minLength": 2},
        "token": {"type": "string"},
        "rules": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["port"],
                "properties": {
                    "port": {"type": "integer", "minimum": 1, "maximum": 65535},
                    "proto": {"enum": ["tcp", "udp"]},
                },
            },
        },
    },
}
NEEDY = {**SCHEMA, "required": ["city"]}
ECHO = (
    programs.SDK
    + b"""
    def do_config(self, payload):
        return {"config": self.config, "instance": INSTANCE}

INSTANCE = os.urandom(8).hex()
Test().run()
"""
)


@pytest.fixture(scope="module")
def host():
    with hosting.hosting() as host:
        yield host


@pytest.fixture
def plugin(host):
    """acme.configured, armed without a configuration; purged after the test."""
    host.up(ID, ECHO, runtime=SPEAKING, config=SCHEMA)
    yield host
    gone(host)


@pytest.fixture
def alone():
    """The plugin as in `plugin`, in a daemon of its own: accepted versions stay a floor for later ones."""
    with hosting.hosting() as host:
        host.up(ID, ECHO, runtime=SPEAKING, config=SCHEMA)
        yield host


def gone(host, plugin_id=ID):
    daemon = host.daemon
    if daemon.plugin(plugin_id)["status"] == "active":
        assert daemon.set_status("disabled", plugin_id).status == 200
    daemon.place.plugins.joinpath(plugin_id, "manifest.json").unlink()
    daemon.until(lambda: not daemon.plugin(plugin_id)["available"], "its bundle to be gone")
    assert daemon.post(f"/api/plugins/by-id/{plugin_id}/forget", {"purge": True}).status == 200


def put(host, config, **more):
    return host.daemon.ask("PUT", CONFIG, {"config": config, **more})


def given(host):
    """The configuration that the running plugin was given."""
    return host.result(ID, "config")["config"]


def test_plugin_is_given_the_configuration_that_the_operator_sets(plugin):
    """Before that it is given an empty object; setting a configuration restarts it."""
    before = plugin.result(ID, "config")
    assert before["config"] == {}
    wanted = {"city": "Bern", "rules": [{"port": 22, "proto": "tcp"}]}
    answer = put(plugin, wanted)
    assert answer.status == 200, answer
    said = answer.json()
    assert (said["changed"], said["restarted"], said["state"]) == (True, True, "armed")
    after = plugin.result(ID, "config")
    assert after["config"] == wanted
    assert after["instance"] != before["instance"]
    shown = plugin.daemon.get(CONFIG).json()
    compact = json.dumps(wanted, separators=(",", ":"), sort_keys=True).encode()
    assert shown["config"] == wanted
    assert (shown["is_set"], shown["fits"], shown["problem"], shown["schema"]) == (True, True, None, SCHEMA)
    assert (shown["bytes"], shown["sha256"]) == (len(compact), hashlib.sha256(compact).hexdigest())


def test_unchanged_configuration_restarts_no_plugin(plugin):
    """The order of keys does not matter; no event is audited."""
    assert put(plugin, {"city": "Bern", "token": "x"}).status == 200
    instance = plugin.result(ID, "config")["instance"]
    events = len(plugin.daemon.events(action="plugin.config", target=ID))
    again = put(plugin, {"token": "x", "city": "Bern"}).json()
    assert (again["changed"], again["restarted"]) == (False, False)
    assert plugin.result(ID, "config")["instance"] == instance
    assert len(plugin.daemon.events(action="plugin.config", target=ID)) == events


def test_invalid_configuration_is_422_with_every_fault_and_its_path(plugin):
    """Each fault has what was expected and found; nothing is stored, and no plugin is restarted."""
    instance = plugin.result(ID, "config")["instance"]
    answer = put(plugin, {"rules": [{"port": 70000}, {"proto": "tpc"}, {"port": "22"}], "citty": "Bern"})
    assert (answer.status, answer.code) == (422, "config_invalid")
    problem = answer.json()
    assert problem["more"] is False
    assert {f"{one['path']}: expected {one['expected']}, found {one['found']}" for one in problem["errors"]} == {
        "rules[0].port: expected a number of at most 65535, found 70000",
        'rules[1]: expected the key "port", found none',
        'rules[1].proto: expected one of "tcp", "udp", found "tpc"',
        'rules[2].port: expected an integer, found "22"',
        ': expected only known keys, found "citty"',
    }
    assert plugin.result(ID, "config") == {"config": {}, "instance": instance}
    assert plugin.daemon.get(CONFIG).json()["is_set"] is False


def test_audit_events_of_configurations_have_size_and_hash_never_a_value(plugin):
    """Events of refused configurations have none either."""
    assert put(plugin, {"city": "sesame-open"}).status == 200
    assert put(plugin, {"city": 1, "token": "sesame-closed"}).code == "config_invalid"
    allowed, refused = plugin.daemon.events(action="plugin.config", target=ID)[-2:]
    compact = b'{"city":"sesame-open"}'
    assert allowed["detail"] == {"bytes": len(compact), "sha256": hashlib.sha256(compact).hexdigest()}
    assert (refused["decision"], refused["code"]) == ("deny", "config_invalid")
    assert "sesame" not in json.dumps(plugin.daemon.events(target=ID))
    assert "sesame" not in plugin.daemon.log_file.read_text()


def test_answer_to_a_configuration_with_many_faults_says_that_there_are_more(plugin):
    """It lists twenty of forty-five thousand."""
    answer = put(plugin, {"rules": [0] * 45_000})
    assert (answer.status, answer.code) == (422, "config_invalid")
    assert (len(answer.json()["errors"]), answer.json()["more"]) == (20, True)


@pytest.mark.parametrize(
    ("body", "status", "code", "word"),
    [
        (b'{"config": {}, "dry": true}', 400, "bad_request", "dry"),
        (b'{"config": {}, "config": {}}', 400, "bad_request", "twice"),
        (b'{"config": {"city": "a", "city": "b"}}', 400, "bad_request", "twice"),
        (b'{"config": []}', 400, "bad_request", "object"),
        (b"{}", 400, "bad_request", "config"),
        (b'{"config": {"city": NaN}}', 400, "bad_request", "NaN"),
        (b'{"config": {"city": 1e400}}', 400, "bad_request", "double"),
        (rb'{"config": {"city": "\ud800"}}', 400, "bad_request", "surrogate"),
        (b'{"config": {"rules": ' + b"[" * 64 + b"]" * 64 + b"}}", 400, "bad_request", "nesting"),
        (b'{"config": {"token": "' + b"x" * (256 << 10) + b'"}}', 413, "too_large", "262144"),
        (b'{"config": {"token": "' + b"x" * (1 << 20) + b'"}}', 413, "too_large", "1048576"),
        (b'{"config": {"rules": [' + b"0," * 60_000 + b"0]}}", 400, "bad_request", "values"),
        (b'{"config": {"city": 9007199254740993}}', 422, "config_invalid", "fits"),
        (b'{"config": {"token": "${secret:lower}"}}', 422, "config_invalid", "fits"),
        (b'{"config": {"token": "${secret:OPEN"}}', 422, "config_invalid", "fits"),
    ],
)
def test_malformed_configuration_document_is_refused_with_a_code(plugin, body, status, code, word):
    """The answer has a reason, too; the plugin keeps running."""
    instance = plugin.result(ID, "config")["instance"]
    answer = plugin.daemon.ask("PUT", CONFIG, body)
    assert (answer.status, answer.code) == (status, code)
    assert word in answer.json()["detail"]
    assert plugin.result(ID, "config")["instance"] == instance


def test_dry_run_of_a_configuration_stores_nothing(plugin):
    """It answers with the same faults, and restarts no plugin if there are none."""
    instance = plugin.result(ID, "config")["instance"]
    said = put(plugin, {"city": "Bern"}, dry_run=True).json()
    assert (said["dry_run"], said["changed"], said["restarted"]) == (True, False, False)
    assert put(plugin, {"city": 1}, dry_run=True).code == "config_invalid"
    assert plugin.result(ID, "config") == {"config": {}, "instance": instance}
    assert plugin.daemon.get(CONFIG).json()["is_set"] is False


def test_secret_references_in_a_configuration_stay_unexpanded(plugin):
    """The stored, the shown and the given document have the reference; an unbound secret is pointed out."""
    daemon = plugin.daemon
    assert daemon.ask("PUT", "/api/secrets/CITY_TOKEN", b"the-value-of-it").status == 200
    said = put(plugin, {"token": "Bearer ${secret:CITY_TOKEN}"}).json()
    assert said["secrets"] == [{"name": "CITY_TOKEN", "bound": False}]
    assert daemon.ask("PUT", f"/api/secrets/CITY_TOKEN/plugins/{ID}", {}).status == 200
    shown = daemon.get(CONFIG)
    assert shown.json()["secrets"] == [{"name": "CITY_TOKEN", "bound": True}]
    assert given(plugin) == {"token": "Bearer ${secret:CITY_TOKEN}"}
    assert b"the-value-of-it" not in shown.body
    assert daemon.ask("DELETE", "/api/secrets/CITY_TOKEN?unbind=true").status == 200


def test_plugin_with_required_configuration_is_needs_config_until_it_is_set(host):
    """Activation is 409 with the command to run, status unchanged, no value in it. Once it is set, the plugin can be
    activated.
    """
    answer = host.activated(ID, ECHO, runtime=SPEAKING, config=NEEDY)
    assert (answer.status, answer.code) == (409, "needs_config")
    assert 'the key "city"' in answer.json()["detail"]
    assert answer.json()["hint"] == f"latticectl config set {ID} -f FILE"
    assert host.daemon.plugin(ID)["status"] == "installed"
    assert host.daemon.get(CONFIG).json()["fits"] is False
    assert put(host, {"city": "Bern"}).json()["restarted"] is False
    assert host.daemon.set_status("active", ID).json()["runtime"]["state"] == "armed"
    assert given(host) == {"city": "Bern"}
    gone(host)


def test_upgrade_to_a_schema_that_the_configuration_does_not_fit_is_refused(alone):
    """The old version keeps running; once disabled, it can be upgraded, configured and activated."""
    daemon = alone.daemon
    assert put(alone, {"city": "Bern"}).status == 200
    narrower = {**SCHEMA, "required": ["token"]}
    alone.drop(ID, ECHO, runtime=SPEAKING, config=narrower, version="1.1.0")
    daemon.until(lambda: "candidate" in daemon.plugin(ID), "the candidate")
    upgrade = f"/api/plugins/by-id/{ID}/upgrade"
    assert daemon.post(upgrade, {"dry_run": True}).code == "needs_config"
    refused = daemon.post(upgrade)
    assert (refused.status, refused.code) == (409, "needs_config")
    assert 'the key "token"' in refused.json()["detail"]
    assert "Bern" not in refused.json()["detail"]
    assert (daemon.plugin(ID)["version"], given(alone)) == ("1.0.0", {"city": "Bern"})
    assert refused.json()["hint"].startswith(f"latticectl disable {ID}")
    assert daemon.get(f"/api/plugins/by-id/{ID}?explain=1").json()["causes"]["upgrade"]["code"] == "needs_config"
    assert daemon.set_status("disabled", ID).status == 200
    assert daemon.post(upgrade).status == 200
    assert daemon.set_status("active", ID).code == "needs_config"
    assert put(alone, {"city": "Bern", "token": "x"}).status == 200
    assert daemon.set_status("active", ID).status == 200
    assert given(alone) == {"city": "Bern", "token": "x"}


def test_upgrade_to_a_schema_that_the_configuration_fits_keeps_it(alone):
    """It is checked against the new schema."""
    daemon = alone.daemon
    assert put(alone, {"city": "Bern"}).status == 200
    alone.drop(ID, ECHO, runtime=SPEAKING, config=NEEDY, version="1.1.0")
    daemon.until(lambda: "candidate" in daemon.plugin(ID), "the candidate")
    assert daemon.post(f"/api/plugins/by-id/{ID}/upgrade").json()["runtime"]["state"] == "armed"
    assert given(alone) == {"city": "Bern"}
    daemon.stop()
    with contextlib.closing(apsw.Connection(str(daemon.place.state / "ledger.sqlite3"))) as ledger:
        (noted,) = ledger.execute("SELECT schema_sha256 FROM configs").fetchone()
    assert noted == hashlib.sha256(json.dumps(NEEDY, separators=(",", ":"), sort_keys=True).encode()).hexdigest()


def test_forget_keeps_the_configuration_and_purge_removes_it(plugin):
    """The same holds for kv values."""
    daemon = plugin.daemon
    assert put(plugin, {"city": "Bern"}).status == 200
    for purge, left in ((False, {"city": "Bern"}), (True, {})):
        assert daemon.set_status("disabled", ID).status == 200
        manifest = daemon.place.plugins / ID / "manifest.json"
        data = manifest.read_bytes()
        manifest.unlink()
        daemon.until(lambda: not daemon.plugin(ID)["available"], "its bundle to be gone")
        assert daemon.post(f"/api/plugins/by-id/{ID}/forget", {"purge": purge}).status == 200
        daemon.place.write(manifest, data)
        daemon.until(lambda: (one := daemon.plugin(ID)) and one["available"], "the bundle to be back")
        daemon.activate(ID)
        assert given(plugin) == left


def test_only_an_installed_plugin_can_be_configured(host):
    """Before that another publisher may take the id: checking works, setting does not."""
    host.drop(ID, ECHO, runtime=SPEAKING, config=SCHEMA)
    host.daemon.until(lambda: host.daemon.plugin(ID), "it to be seen")
    assert put(host, {"city": "Bern"}, dry_run=True).status == 200
    refused = put(host, {"city": "Bern"})
    assert (refused.status, refused.code) == (409, "invalid_transition")
    assert refused.json()["hint"] == f"latticectl install {ID}"
    assert host.daemon.ask("PUT", "/api/plugins/by-id/acme.nobody/config", {"config": {}}).status == 404
    assert host.daemon.get("/api/plugins/by-id/acme.nobody/config").status == 404
    gone(host)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"v2": True, "runtime": SPEAKING}, "none"),
        ({"v2": False}, "none"),
        ({"v2": True, "runtime": {"protocol": "stdio-json-v1"}, "config": SCHEMA}, "stdio-json-v1"),
    ],
)
def test_configuration_of_a_plugin_that_takes_none_is_400(host, fields, word):
    """It has no schema in its manifest, or a protocol without configuration."""
    host.drop(ID, ECHO, **fields)
    host.daemon.until(lambda: host.daemon.plugin(ID), "it to be seen")
    refused = put(host, {})
    assert (refused.status, refused.code) in {(400, "bad_request"), (409, "invalid_transition")}
    assert host.daemon.set_status("installed", ID).status == 200
    refused = put(host, {})
    assert (refused.status, refused.code) == (400, "bad_request")
    assert word in refused.json()["detail"]
    assert host.daemon.get(CONFIG).json()["schema"] is None
    gone(host)


def test_wasm_plugin_gets_its_configuration_with_each_invocation(host):
    """Its request to `invoke` has `config` beside action and payload."""
    head = '{"ok":true,"result":'
    echo = wasms.module(
        f"""(memory.copy (i32.const {64 + len(head)}) (local.get $at) (local.get $length))
        (i32.store8 (i32.add (i32.const {64 + len(head)}) (local.get $length)) (i32.const {ord("}")}))
        (i64.or (i64.const {64 << 32}) (i64.extend_i32_u (i32.add (local.get $length) (i32.const {len(head) + 1}))))""",
        more=wasms.says(64, head),
    )
    host.drop(ID, bytes(wasmtime.wat2wasm(echo)), type="wasm", capabilities=["log:write"], config=SCHEMA)
    host.daemon.activate(ID)
    assert put(host, {"city": "Bern"}).json()["state"] == "armed"
    assert host.invoke(ID, "echo").json()["result"]["config"] == {"city": "Bern"}
    gone(host)


# The schema is untrusted as well.


@pytest.mark.slow
def test_schema_that_takes_too_long_to_check_does_not_block_the_daemon(host):
    """Its references double the work 2^40 times: the check is deadline_exceeded, and the daemon answers meanwhile."""
    steps = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n - 1}"}] * 2} for n in range(1, 41)}
    bomb = {"$defs": {"a0": {"type": "integer"}, **steps}, "properties": {"x": {"$ref": "#/$defs/a40"}}}
    host.drop(ID, ECHO, runtime=SPEAKING, config=bomb)
    host.daemon.until(lambda: host.daemon.plugin(ID), "it to be seen")
    began = time.monotonic()
    with host.answering():
        answer = put(host, {"x": 1}, dry_run=True)
    assert (answer.status, answer.code) == (503, "deadline_exceeded")
    assert time.monotonic() - began < 9
    host.until_only()
    gone(host)


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"properties": {"a": {"type": "strin"}}}, "config.properties.a.type"),
        ({"properties": {"a": {"pattern": "(?=a)"}}}, "config.properties.a.pattern"),
        ({"properties": {"a": {"pattern": r"(a)\1"}}}, "config.properties.a.pattern"),
        ({"items": {"$ref": "https://example.org/schema.json"}}, "config.items.$ref"),
        ({"$ref": "file:///etc/passwd"}, "config.$ref"),
        ({"$schema": "http://127.0.0.1:9/schema"}, "config.$schema"),
        ({"$id": "https://example.org/", "type": "object"}, "config"),
        ({"$ref": "#/$defs/none"}, "config.$ref"),
    ],
)
def test_manifest_with_a_bad_schema_does_not_verify(host, schema, word):
    """`manifest_invalid`, and the reason names the place."""
    host.drop(ID, ECHO, runtime=SPEAKING, config=schema)
    host.daemon.until_rejected(ID, "manifest_invalid")
    found = next(one for one in host.daemon.get("/api/plugins/rejected").json() if one["name"] == ID)
    assert f"`{word}`" in found["reason"]
    host.daemon.place.plugins.joinpath(ID, "manifest.json").unlink()
    host.daemon.until(lambda: host.daemon.rejected().get(ID) != "manifest_invalid", "it to be gone")


# Where it stays.


def test_configuration_survives_kill_9(place, acme):
    """It is on disk before the answer; the plugin is started with it again, without another check."""
    place.drop(author=acme, v2=True, artifact=ECHO, runtime=SPEAKING, config=NEEDY)
    url = "/api/plugins/by-id/acme.demo/config"
    with place.running() as daemon:
        daemon.until(daemon.plugin, "it to be seen")
        assert daemon.set_status("installed").status == 200
        assert daemon.ask("PUT", url, {"config": {"city": "Bern"}}).status == 200
        assert daemon.set_status("active").status == 200
        daemon.kill()
    with place.running() as daemon:
        daemon.until_state("armed")
        asked = {"action": "config", "payload": None}
        answer = daemon.post("/api/plugins/by-id/acme.demo/invoke", asked).json()
        assert answer["result"]["config"] == {"city": "Bern"}


def test_other_publisher_of_an_id_does_not_inherit_the_configuration(place, acme):
    """It does not count for activation either; if the first publisher returns, it is there again."""
    other = bundles.author("other")
    place.trust_us(acme, other)
    url = "/api/plugins/by-id/acme.demo/config"
    fields = {"v2": True, "artifact": ECHO, "runtime": SPEAKING}
    place.drop("one", author=acme, config=NEEDY, **fields)
    with place.running() as daemon:
        daemon.until(daemon.plugin, "it to be seen")
        assert daemon.set_status("installed").status == 200
        assert daemon.ask("PUT", url, {"config": {"city": "Bern"}}).status == 200
        assert daemon.set_status("active").status == 200
        place.drop("two", author=other, config=NEEDY, publisher="other", version="2.0.0", **fields)
        daemon.until_rejected("two", "publisher_changed")
        upgrade = "/api/plugins/by-id/acme.demo/upgrade"
        refused = daemon.post(upgrade, {"accept_publisher": "other"})
        assert (refused.status, refused.code) == (409, "needs_config")
        assert daemon.set_status("disabled").status == 200
        assert daemon.post(upgrade, {"accept_publisher": "other"}).status == 200
        assert daemon.get(url).json()["config"] == {}
        assert daemon.set_status("active").code == "needs_config"
        back = {"accept_publisher": "acme", "allow_downgrade": True}
        assert daemon.post(upgrade, back).status == 200
        assert daemon.get(url).json()["config"] == {"city": "Bern"}


def test_backup_has_the_configuration(place, acme):
    """A plugin restored on another machine starts with it."""
    place.drop(author=acme, v2=True, artifact=ECHO, runtime=SPEAKING, config=NEEDY)
    url = "/api/plugins/by-id/acme.demo/config"
    with place.running() as daemon:
        daemon.until(daemon.plugin, "it to be seen")
        assert daemon.set_status("installed").status == 200
        assert daemon.ask("PUT", url, {"config": {"city": "Bern"}}).status == 200
        assert daemon.set_status("active").status == 200
        backup = place.home / "backup.tar"
        done = daemon.ctl("backup", str(backup))
        assert done.returncode == 0, done.stderr
        daemon.kill()
    os.rename(place.state, place.home / "lost")
    done = place.once("--restore", str(backup))
    assert done.returncode == 0, done.stderr
    with place.running() as daemon:
        daemon.until_state("armed")
        assert daemon.get(url).json()["config"] == {"city": "Bern"}


def test_active_plugin_whose_configuration_is_lost_is_not_started(place, acme):
    """Its row is deleted from the ledger: it fails with needs_config."""
    place.drop(author=acme, v2=True, artifact=ECHO, runtime=SPEAKING, config=NEEDY)
    url = "/api/plugins/by-id/acme.demo/config"
    with place.running() as daemon:
        daemon.until(daemon.plugin, "it to be seen")
        assert daemon.set_status("installed").status == 200
        assert daemon.ask("PUT", url, {"config": {"city": "Bern"}}).status == 200
        assert daemon.set_status("active").status == 200
        daemon.stop()
    connection = apsw.Connection(str(place.state / "ledger.sqlite3"))
    connection.execute("DELETE FROM configs")
    connection.close()
    with place.running() as daemon:
        record = daemon.until_state("failed", code="needs_config")
        assert record["status"] == "active"
        assert "latticectl config set acme.demo -f FILE" in daemon.ctl("explain", "acme.demo").stdout
        assert daemon.ask("PUT", url, {"config": {"city": "Chur"}}).json()["state"] == "armed"
