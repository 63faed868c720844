"""System plugins under both protocols, through latticectl: invoke, logs, health, host calls, audit."""

from __future__ import annotations

import hashlib
import json

import pytest

from tests.house import hosting, programs

pytestmark = pytest.mark.daemon

SPEAKING = {"protocol": "latticed-stdio-1", "health": {"interval_s": 1}}
ONE_SHOT = {"protocol": "stdio-json-v1", "health": {"interval_s": 1}}
GREETERS = ("acme.speaking", "acme.one-shot", "acme.v1")


@pytest.fixture(scope="module")
def host():
    with hosting.hosting() as host:
        host.up("acme.speaking", programs.GREETER, runtime=SPEAKING)
        host.up("acme.one-shot", programs.GREETER, runtime=ONE_SHOT)
        host.up("acme.v1", programs.GREETER, v2=False)
        host.up("acme.sh", programs.SPEAKING_SH, runtime=SPEAKING | {"sandbox": {"features": ["processes"]}})
        host.up("acme.foreign-py", programs.FOREIGN_PYTHON, v2=False, capabilities=["kv:read", "kv:write"])
        host.up("acme.foreign-sh", programs.FOREIGN_SH, v2=False, capabilities=["kv:read", "kv:write"])
        yield host


@pytest.mark.parametrize("plugin_id", GREETERS)
def test_invoke_prints_the_result(host, plugin_id):
    """It is JSON on stdout; the plugin's message is on stderr, the exit status 0."""
    done = host.daemon.ctl("invoke", plugin_id, "greet", '{"name": "world"}')
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (0, {"hello": "world"}, "said hello\n")


@pytest.mark.parametrize("plugin_id", GREETERS)
def test_invoke_reads_the_payload_from_stdin(host, plugin_id):
    """The argument is `-`. A result that is text is printed as it is."""
    done = host.daemon.ctl("invoke", plugin_id, "text", "-", stdin='"\\u00e4 words"')
    assert (done.returncode, done.stdout) == (0, "plain ä words\n")


@pytest.mark.parametrize("plugin_id", GREETERS)
def test_invoke_json_prints_the_whole_reply(host, plugin_id):
    """Scripts use it, also for a refusal by the plugin; the exit status says the same."""
    done = host.daemon.ctl("--format", "json", "invoke", plugin_id, "greet", '{"name": 1}')
    whole = {"ok": True, "message": "said hello", "result": {"hello": 1}, "error": None}
    assert (done.returncode, json.loads(done.stdout)) == (0, whole)
    refused = host.daemon.ctl("--format", "json", "invoke", plugin_id, "refuse")
    assert (refused.returncode, json.loads(refused.stdout)["ok"]) == (1, False)


@pytest.mark.parametrize("plugin_id", GREETERS)
def test_refusal_by_the_plugin_exits_1_with_its_message(host, plugin_id):
    """There is a hint as well, and nothing on stdout."""
    done = host.daemon.ctl("invoke", plugin_id, "refuse")
    assert (done.returncode, done.stdout) == (1, "")
    assert "not today" in done.stderr
    assert done.stderr.startswith("error: ")
    assert f"hint: latticectl logs {plugin_id}" in done.stderr


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("invoke", "acme.nobody", "greet"), 4, "acme.nobody"),
        (("invoke", "acme.v1", "greet", "{"), 2, "expected JSON"),
        (("invoke", "acme.v1", "x" * 129), 1, "128"),
        (("invoke", "acme.v1"), 2, "ACTION"),
        (("logs", "acme.nobody"), 4, "acme.nobody"),
        (("logs", "acme.v1", "--last", "0"), 2, "1 to 1000"),
    ],
)
def test_mistakes_in_invoke_have_an_exit_status_and_a_message(host, words, status, said):
    """Each says what was expected."""
    done = host.daemon.ctl(*words)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr


def test_plugin_that_is_not_armed_cannot_be_invoked(host):
    """409 with a code, and no invocation is audited."""
    host.drop("acme.idle", programs.GREETER)
    host.daemon.until(lambda: host.daemon.plugin("acme.idle"), "the bundle")
    answer = host.invoke("acme.idle", "greet")
    assert (answer.status, answer.code) == (409, "not_armed")
    assert "hint: latticectl explain acme.idle" in host.daemon.ctl("invoke", "acme.idle", "greet").stderr
    assert host.daemon.events(action="plugin.invoke", target="acme.idle") == []


@pytest.mark.parametrize("plugin_id", GREETERS)
def test_output_of_plugin_is_in_its_logs(host, plugin_id):
    """stderr and log.write, in order, each named; `--last` prints the newest; json for scripts."""
    host.result(plugin_id, "greet", {"name": "one\x1b[31m"})
    host.result(plugin_id, "log", "careful")
    host.until_said(plugin_id, "greeting one\\x1b[31m")
    shown = host.daemon.ctl("logs", plugin_id).stdout.splitlines()
    assert any(line.endswith("stderr greeting one\\x1b[31m") for line in shown)
    assert any(line.endswith("log    warning: careful") for line in shown)
    (last,) = host.daemon.ctl("logs", plugin_id, "--last", "1").stdout.splitlines()
    assert last == shown[-1]
    rows = json.loads(host.daemon.ctl("--format", "json", "logs", plugin_id).stdout)
    assert {"seq", "at", "stream", "text"} == set(rows[-1])
    told = [entry for entry in host.daemon.log() if entry.get("plugin_id") == plugin_id and entry.get("line")]
    assert "greeting one\\x1b[31m" in [entry["line"] for entry in told]


@pytest.mark.parametrize(
    ("plugin_id", "health", "message"),
    [
        ("acme.speaking", "degraded", "a little tired"),
        ("acme.one-shot", "degraded", "a little tired"),
        ("acme.sh", "healthy", "from sh"),
    ],
)
def test_health_is_what_the_plugin_reports(host, plugin_id, health, message):
    """It is asked by the plugin's protocol; latticectl info shows it, and the sandbox level."""
    host.daemon.until(lambda: host.runtime(plugin_id)["health"] == health, f"{plugin_id} to be {health}")
    assert host.runtime(plugin_id)["message"] == message
    shown = host.daemon.ctl("info", plugin_id).stdout
    level = host.daemon.get("/api/health").json()["sandbox"]["level"]
    assert host.runtime(plugin_id)["sandbox"].split("+")[0] == level
    assert f"sandbox      {level}" in shown.replace("  sandbox    ", "sandbox      ")
    assert message in shown


def test_health_shows_the_sandbox_support_of_the_host(host):
    """Level, features, and for each missing one the step that failed and what helps."""
    shown = host.daemon.ctl("health")
    given = host.daemon.get("/api/health").json()["sandbox"]
    assert shown.returncode == 0
    assert f"{given['level']}, {', '.join(given['features'])}" in shown.stdout
    assert all(one["token"] in shown.stdout and one["step"] in shown.stdout for one in given["missing"])


@pytest.mark.parametrize("plugin_id", GREETERS)
def test_host_calls_are_allowed_or_denied_and_audited(host, plugin_id):
    """What is not declared, or was trimmed, is denied with a code."""
    assert host.result(plugin_id, "keep", "value") == "value"
    never = {"call": "node.facts", "params": {}}
    assert host.result(plugin_id, "try", never) == {"code": "capability_denied"}
    grants = f"/api/plugins/by-id/{plugin_id}/grants"
    listing = {"call": "kv.list", "params": {}}
    assert host.daemon.ask("PUT", grants, {"trim": ["kv:read"]}).status == 200
    try:
        assert host.result(plugin_id, "try", listing) == {"code": "capability_not_granted"}
    finally:
        assert host.daemon.ask("PUT", grants, {"grant": ["kv:read"]}).status == 200
    assert host.result(plugin_id, "try", listing)["keys"] == ["key"]
    events = host.daemon.events(action="host.call", actor=f"plugin:{plugin_id}")
    seen = {(one["target"], one["decision"], one["code"]) for one in events}
    assert {
        ("kv.put", "allow", ""),
        ("kv.get", "allow", ""),
        ("node.facts", "deny", "capability_denied"),
        ("kv.list", "deny", "capability_not_granted"),
        ("kv.list", "allow", ""),
    } <= seen


@pytest.mark.parametrize("plugin_id", GREETERS)
def test_invocation_is_audited_before_it_is_carried_out(host, plugin_id):
    """Its event comes before the first host call that it makes; payloads are recorded as size and hash only."""
    host.result(plugin_id, "keep", "a secret")
    events = host.daemon.events()
    invoked = [one for one in events if (one["action"], one["target"]) == ("plugin.invoke", plugin_id)][-1]
    kept = [one for one in events if (one["actor"], one["target"]) == (f"plugin:{plugin_id}", "kv.put")][-1]
    assert events.index(invoked) < events.index(kept)  # merged by time
    assert (invoked["decision"], invoked["detail"]["call"]) == ("allow", "keep")
    assert invoked["detail"]["bytes"] == len('"a secret"')
    assert "uid" in invoked["actor"]
    assert "secret" not in json.dumps(invoked)


def test_audited_payload_hash_is_that_of_the_sent_bytes(host):
    """The plugin gets these bytes; a number that JSON cannot represent is 400, not null."""
    host.result("acme.sh", "anything", {"ä": [1.5, 10**30]})
    said = '"payload":{"ä":[1.5,1' + "0" * 30 + "]}"
    host.daemon.until(lambda: any(said in line for line in host.lines("acme.sh")), "what it was sent")
    detail = host.daemon.events(action="plugin.invoke", target="acme.sh")[-1]["detail"]
    sent = said.partition(":")[2].encode()
    assert (detail["bytes"], detail["sha256"]) == (len(sent), hashlib.sha256(sent).hexdigest())
    body = b'{"action": "anything", "payload": [1e400]}'
    refused = host.daemon.post("/api/plugins/by-id/acme.sh/invoke", body)
    assert (refused.status, refused.json()["code"]) == (400, "bad_request")
    assert "expected a number within the range of a double, found 1e400" in refused.json()["detail"]


def test_shell_script_implements_latticed_stdio_1(host):
    """It uses sed and pipes, and calls the host in the middle of an invocation."""
    assert host.result("acme.sh", "anything", {}) == {"shell": "spoke"}
    host.daemon.until(lambda: any('"id":"mine","result"' in line for line in host.lines("acme.sh")), "the answer")


@pytest.mark.parametrize("plugin_id", ["acme.foreign-py", "acme.foreign-sh"])
def test_programs_written_for_other_hosts_run_unchanged(host, plugin_id):
    """They are asked for describe, health, and an action that calls the host."""
    assert "name" in host.result(plugin_id, "describe")
    assert host.invoke(plugin_id, "health").json()["ok"] is True
    first = host.result(plugin_id, "count", {"name": "you"})["count"]
    done = host.daemon.ctl("invoke", plugin_id, "count", '{"name": "you"}')
    assert (done.returncode, json.loads(done.stdout)["count"]) == (0, first + 1)


def test_programs_written_for_other_hosts_may_reply_in_any_allowed_form(host):
    """`plan` for `result`; a reply and then exit status 7; a last line without newline; refusals; no reply."""
    foreign = "acme.foreign-py"
    assert host.result(foreign, "plan", ["a"]) == {"steps": ["a"]}
    assert host.result(foreign, "seven") == "done"
    assert host.result(foreign, "no newline") == [1]
    refused = host.invoke(foreign, "refuse").json()
    assert (refused["ok"], refused["error"]) == (False, "bad_payload: I do not like it")
    assert host.result(foreign, "count")["refused"] is None
    nothing = host.invoke(foreign, "nothing")
    assert (nothing.status, nothing.code) == (502, "exited")
    assert "exited 5" in nothing.json()["detail"]
