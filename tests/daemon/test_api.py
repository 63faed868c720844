"""The control API as contracts §7 states it, black-box: status codes, fields, times, and never a local path."""

from __future__ import annotations

import json
import re
from urllib.parse import quote

import pytest

from latticed.rpc import routes
from tests.house import bundles, daemons, raw_http

pytestmark = pytest.mark.daemon

ACME = bundles.author("acme")
FIELDS = {
    *(
        "id",
        "name",
        "type",
        "version",
        "entrypoint",
        "publisher",
        "capabilities",
        "artifact_sha256",
        "available",
        "status",
    ),
    *("runtime", "candidate", "granted", "builtin", "verified_at", "installed_at", "activated_at", "disabled_at"),
    *("created_at", "updated_at"),
}
RUNTIME_FIELDS = {
    *("state", "runner", "health", "message", "pid", "restart_count", "next_retry_at", "last_error", "started_at"),
    *("stopped_at", "updated_at", "sandbox", "plugin_id"),
}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
IDS = ("acme.one", "acme.two", "acme.three", "acme.gone", "acme.refused", "acme.paths", "acme.host", "acme.grants")


@pytest.fixture(scope="module")
def daemon():
    """One daemon for the module; each test has a plugin of its own."""
    with daemons.placed() as place:
        place.trust_us(ACME)
        for plugin_id in IDS:
            place.drop(plugin_id, author=ACME, id=plugin_id)
        place.drop("egress", author=ACME, id="acme.egress", capabilities=["kv:read", "http:egress"])
        with place.running() as daemon:
            yield daemon


def _times(record):
    found = {name: value for name, value in record.items() if name.endswith("_at")}
    return found | {f"runtime.{name}": value for name, value in record["runtime"].items() if name.endswith("_at")}


def test_plugin_list_is_sorted_and_has_the_documented_fields(daemon):
    """List and single record show the same; absent fields are left out, never null."""
    listed = daemon.get("/api/plugins/lifecycle")
    assert (listed.status, listed.headers["content-type"]) == (200, "application/json")
    records = listed.json()
    assert [one["id"] for one in records] == sorted([*IDS, "acme.egress"])
    assert [one["id"] for one in daemon.get("/api/plugins").json()] == sorted([*IDS, "acme.egress"])
    for record in records:
        assert set(record) <= FIELDS
        assert set(record["runtime"]) <= RUNTIME_FIELDS
        assert {"state", "runner", "health", "message"} <= set(record["runtime"])
        assert record["runtime"]["plugin_id"] == record["id"]
        assert None not in record.values()
        assert None not in record["runtime"].values()
        assert all(TIME.fullmatch(value) for value in _times(record).values()), _times(record)


def test_plugin_goes_through_every_status(daemon):
    """verified, installed, active, disabled, active; each answer is the record, each time is set once."""
    seen = daemon.plugin("acme.one")
    assert (seen["status"], seen["available"], seen["runtime"]["state"]) == ("verified", True, "stopped")
    assert {"verified_at", "created_at", "updated_at"} <= set(seen)
    assert not {"installed_at", "activated_at", "disabled_at", "candidate"} & set(seen)
    assert (seen["type"], seen["version"], seen["publisher"]) == ("system", "1.0.0", "acme")
    assert (seen["builtin"], seen["granted"]) == (False, ["kv:read", "log:write"])

    installed = daemon.set_status("installed", "acme.one").json()
    assert (installed["status"], installed["runtime"]["state"]) == ("installed", "stopped")
    active = daemon.set_status("active", "acme.one").json()
    assert (active["status"], active["runtime"]["state"], active["runtime"]["health"]) == ("active", "armed", "unknown")
    assert (active["runtime"]["runner"], "started_at" in active["runtime"]) == ("process", True)
    assert "each invocation" in active["runtime"]["message"]
    disabled = daemon.set_status("disabled", "acme.one").json()
    assert (disabled["status"], disabled["runtime"]["state"]) == ("disabled", "stopped")
    assert "stopped_at" in disabled["runtime"]
    again = daemon.set_status("active", "acme.one").json()
    assert (again["status"], again["runtime"]["state"]) == ("active", "armed")
    assert (again["installed_at"], again["verified_at"]) == (installed["installed_at"], seen["verified_at"])
    assert again["activated_at"] > active["activated_at"]
    assert again["disabled_at"] == disabled["disabled_at"]


@pytest.mark.parametrize("start", ["verified", "installed", "active", "disabled"])
def test_transition_that_is_not_in_the_table_is_409(daemon, start):
    """`invalid_transition`, audited as a refusal; nothing changes."""
    allowed = {
        "verified": {"installed"},
        "installed": {"active", "disabled"},
        "active": {"disabled"},
        "disabled": {"active"},
    }
    steps = {"verified": [], "installed": ["installed"], "active": ["active"], "disabled": ["disabled"]}
    for step in steps[start]:
        assert daemon.set_status(step, "acme.two").status == 200
    for wanted in {"installed", "active", "disabled"} - allowed[start]:
        answer = daemon.set_status(wanted, "acme.two")
        assert (answer.status, answer.code) == (409, "invalid_transition")
        assert daemon.plugin("acme.two")["status"] == start
        refusal = daemon.events(target="acme.two", decision="deny")[-1]
        assert (refusal["action"], refusal["code"]) == ("plugin.status", "invalid_transition")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"not json",
        b'{"id": "acme.three"}',
        b'{"status": "installed"}',
        b'{"id": "acme.three", "status": "verified"}',
        b'{"id": "acme.three", "status": "ACTIVE"}',
        b'{"id": "acme.three", "status": "installed", "force": true}',
        b'{"id": "acme.three", "status": "installed", "Status": "installed"}',
        b'{"id": "acme.three", "status": "installed", "status": "installed"}',
        b'{"id": "acme.three", "status": "installed"} x',
        b'\xef\xbb\xbf{"id": "acme.three", "status": "installed"}',
        b'{"id": "acme.three\xff", "status": "installed"}',
        b'{"id": ["acme.three"], "status": "installed"}',
        b'{"id": "acme.three", "status": "installed", "accept": "kv:read"}',
        b'{"id": "acme.three", "status": "installed", "accept": [1]}',
        b'{"id": "acme.three", "status": "installed", "accept": ["no:such"]}',
        b'{"id": "acme.three", "status": "installed", "accept": ["http:egress"]}',
        b'{"id": "acme.three", "status": "installed", "allow_downgrade": "yes"}',
        b'{"id": "\\ud800", "status": "installed"}',
        b'{"id": ' + b"[" * 100_000,
    ],
)
def test_invalid_body_is_400(daemon, body):
    """A problem document with `bad_request`; nothing is done."""
    answer = daemon.post("/api/plugins/lifecycle", body)
    assert (answer.status, answer.code) == (400, "bad_request"), answer
    assert daemon.plugin("acme.three")["status"] == "verified"


def test_problem_document_has_all_documented_members(daemon):
    """RFC 9457 with code, detail and hint."""
    answer = daemon.set_status("installed", "acme.nobody")
    assert (answer.status, answer.headers["content-type"].split(";")[0]) == (404, "application/problem+json")
    document = answer.json()
    assert set(document) == {"type", "title", "status", "code", "detail", "hint"}
    assert (document["code"], document["status"], document["title"]) == ("not_found", 404, "Not Found")
    assert "acme.nobody" in document["detail"]


@pytest.mark.parametrize("verb", ["upgrade", "restart", "forget"])
@pytest.mark.parametrize("plugin_id", ["acme.nobody", "..", "%2e%2e", "a%2Fb", "%00", "%ff", "x" * 5000])
def test_unknown_plugin_id_is_404(daemon, verb, plugin_id):
    answer = daemon.post(f"/api/plugins/by-id/{plugin_id}/{verb}")
    assert (answer.status, answer.code) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/api", 404),
        ("GET", "/api/nothing", 404),
        ("DELETE", "/api/plugins", 405),
        ("POST", "/api/health", 405),
        ("GET", "/api/plugins/verify", 405),
        ("GET", "/api/plugins?x=1", 400),
        ("GET", "/api/plugins/lifecycle?status=active", 400),
        ("GET", "/api/audit?limit=0", 400),
        ("GET", "/api/audit?limit=99999", 400),
        ("GET", "/api/audit?after=-1", 400),
        ("GET", "/api/audit?since=yesterday", 400),
        ("GET", "/api/audit?limit=1&limit=2", 400),
        ("GET", "/api/audit?after=%d9%a1", 400),
        ("GET", "/api/plugins/by-id/acme.nobody", 404),
        ("GET", "/api/plugins/by-id/acme.nobody/grants", 404),
        ("GET", "/api/kv/default/nothing", 404),
        ("GET", "/api/kv/default/%2e%2e", 400),
        ("GET", "/api/kv/default/a%00b", 400),
        ("DELETE", "/api/kv/default/nothing", 404),
    ],
)
def test_unknown_path_or_method_gives_a_problem_document(daemon, method, path, status):
    answer = daemon.ask(method, path)
    assert answer.status == status, answer
    assert answer.code in {"not_found", "method_not_allowed", "bad_request"}


def test_body_over_one_mebibyte_is_413(daemon):
    """A body of exactly the limit is accepted; one more byte is not."""
    limit = 1 << 20
    at_limit = json.dumps({"name": "x" * 10}).encode().ljust(limit)
    assert daemon.post("/api/plugins/verify", at_limit).status == 404
    answer = daemon.post("/api/plugins/verify", at_limit + b" ")
    assert (answer.status, answer.code) == (413, "too_large")


@pytest.mark.parametrize(
    "route",
    [one for one in routes.ROUTES if one.method != "GET" and one.form.body is not bytes],
    ids=lambda one: f"{one.method} {one.path}",
)
def test_body_with_unknown_fields_or_over_the_limit_is_refused(daemon, route):
    """Also where nothing is to be said in it."""
    path = re.sub(r"{\w+}", "acme.one", route.path)
    for body, status, code in (({"x": 1}, 400, "bad_request"), (b" " * (2 << 20), 413, "too_large")):
        answer = daemon.ask(route.method, path, body)
        assert (answer.status, answer.code) == (status, code), answer


def test_installing_a_removed_bundle_is_409_not_available(daemon):
    """Its record stays until it is forgotten."""
    place = daemon.place
    (place.plugins / "acme.gone").rename(place.home / "aside")
    daemon.until(lambda: not daemon.plugin("acme.gone")["available"], "acme.gone to be gone")
    answer = daemon.set_status("installed", "acme.gone")
    assert (answer.status, answer.code) == (409, "not_available")
    answer = daemon.post("/api/plugins/by-id/acme.gone/forget")
    left = {"values": 0, "files": 0, "notifications": 0, "services": 0}
    told = {"id": "acme.gone", "forgotten": True, "purged": False, "data": left}
    assert (answer.status, answer.json()) == (200, told)
    assert daemon.plugin("acme.gone") is None
    assert daemon.post("/api/plugins/by-id/acme.gone/forget").status == 404
    (place.home / "aside").rename(place.plugins / "acme.gone")
    assert daemon.until(lambda: daemon.plugin("acme.gone"), "it to be back")["status"] == "verified"


def test_forget_of_an_active_or_undecided_plugin_is_409(daemon):
    """An undecided plugin is one whose bundle is there and about which no operator has decided."""
    answer = daemon.post("/api/plugins/by-id/acme.three/forget")
    assert (answer.status, answer.code) == (409, "invalid_transition")


def test_no_answer_shows_a_local_path(daemon):
    """No reading route shows the plugin directory or the state directory."""
    for path in (
        *("/api/plugins", "/api/plugins/lifecycle", "/api/plugins/rejected", "/api/plugins/by-id/acme.paths"),
        *("/api/health", "/api/status", "/api/audit", "/api/audit/verify", "/api/trust"),
    ):
        answer = daemon.get(path)
        assert answer.status == 200, (path, answer)
        assert str(daemon.place.home).encode() not in answer.body, path


def test_brief_list_says_what_the_whole_one_says(daemon):
    """Of each plugin what a table shows, with the same values; of the runtime its state, and a reason where it ails."""

    def unchanged():
        """Both lists, of a moment in which no plugin's health changed."""
        before = daemon.get("/api/plugins").json()
        brief = daemon.get("/api/plugins/brief").json()
        return (before, brief) if daemon.get("/api/plugins").json() == before else None

    plugins, brief = daemon.until(unchanged, "plugins that stay as they are")
    whole = {one["id"]: one for one in plugins}
    assert [one["id"] for one in brief] == sorted(whole)
    for one in brief:
        known = whole[one["id"]]
        assert {"id", "name", "status", "available", "builtin", "capabilities", "granted", "runtime"} <= set(one)
        for name in set(one) - {"runtime", "candidate"}:
            assert one[name] == known[name]
        assert one["runtime"].items() <= known["runtime"].items()
        assert {"state", "health"} <= set(one["runtime"]) <= {"state", "health", "message", "last_error"}


def test_rejected_bundles_about_one_plugin_or_name(daemon):
    """By the id that they claim, or by the name of their directory; no other, and not by a part."""
    daemon.place.drop("about", author=ACME, id="acme.about")
    (daemon.place.plugins / "about" / "artifact").write_bytes(b"changed")
    daemon.until_rejected("about", "digest_mismatch")
    for about, names in (("about", ["about"]), ("acme.about", ["about"]), ("abou", []), ("", []), ("acme.one", [])):
        found = daemon.get(f"/api/plugins/rejected?about={about}").json()
        assert [one["name"] for one in found] == names
    assert daemon.get("/api/plugins/rejected?about=a&about=b").status == 400


def test_rejected_bundle_has_code_reason_and_hint(daemon):
    """The row also has the directory's name and the id that the bundle claims."""
    bundle = daemon.place.drop("broken", author=ACME, id="acme.broken")
    bundles.tamper(bundle.artifact_path)
    daemon.until_rejected("broken", "digest_mismatch")
    (found,) = [one for one in daemon.get("/api/plugins/rejected").json() if one["name"] == "broken"]
    assert set(found) == {"name", "code", "reason", "hint", "id", "version", "publisher"}
    assert (found["id"], found["version"]) == ("acme.broken", "1.0.0")
    assert "expected" in found["reason"]
    assert daemon.plugin("acme.broken") is None


def test_verify_checks_one_bundle_and_stores_nothing(daemon):
    """A bundle outside the directory cannot be named."""
    good = daemon.post("/api/plugins/verify", {"name": "acme.paths"}).json()
    assert (good["ok"], good["code"], good["id"]) == (True, None, "acme.paths")
    assert {"name": "log:write", "risk": "write"} in good["capabilities"]
    assert daemon.post("/api/plugins/verify", {"name": "nothing"}).status == 404
    for name in ("../plugins/acme.paths", "/etc", "", ".", "..", "a/b", ".hidden", "a\0b"):
        answer = daemon.post("/api/plugins/verify", {"name": name})
        assert (answer.status, answer.code) == (400, "bad_request"), name


def test_host_risk_is_not_granted_until_named(daemon):
    """Installing without options grants the rest; grants can be changed one by one."""
    daemon.set_status("installed", "acme.egress")
    assert daemon.plugin("acme.egress")["granted"] == ["kv:read"]
    grants = daemon.get("/api/plugins/by-id/acme.egress/grants").json()
    assert (grants["declared"], grants["masked"]) == (["kv:read", "http:egress"], ["http:egress"])
    path = "/api/plugins/by-id/acme.egress/grants"
    changed = daemon.ask("PUT", path, {"grant": ["http:egress"], "trim": ["kv:read"]})
    assert (changed.status, changed.json()["granted"]) == (200, ["http:egress"])
    for body in ({"grant": ["kv:write"]}, {"grant": ["kv:read"], "trim": ["kv:read"]}, {"grand": []}):
        assert daemon.ask("PUT", path, body).status == 400
    assert daemon.plugin("acme.egress")["granted"] == ["http:egress"]


def test_restart_of_a_plugin_that_is_not_active_is_409(daemon):
    """For an active one it is 200 with the record, once the plugin is armed again."""
    answer = daemon.post("/api/plugins/by-id/acme.grants/restart")
    assert (answer.status, answer.code) == (409, "invalid_transition")
    before = daemon.activate("acme.grants")
    answer = daemon.post("/api/plugins/by-id/acme.grants/restart")
    assert (answer.status, answer.json()["runtime"]["state"]) == (200, "armed")
    assert answer.json()["runtime"]["started_at"] > before["runtime"]["started_at"]
    assert answer.json()["activated_at"] == before["activated_at"]


def test_upgrade_without_a_candidate_is_409(daemon):
    answer = daemon.post("/api/plugins/by-id/acme.three/upgrade")
    assert (answer.status, answer.code) == (409, "no_candidate")


def test_kv_values_are_raw_bytes(daemon):
    """The test puts, gets, lists and deletes them in the operator's bucket; any bytes come back exactly."""
    value = bytes(range(256))
    assert daemon.ask("PUT", "/api/kv/default/some.key", value).json() == {
        "bucket": "default",
        "key": "some.key",
        "bytes": 256,
    }
    answer = daemon.get("/api/kv/default/some.key")
    assert (answer.body, answer.headers["content-type"]) == (value, "application/octet-stream")
    assert daemon.get("/api/kv/default").json() == {"keys": ["some.key"], "next": None}
    assert daemon.get("/api/kv/default?prefix=other").json()["keys"] == []
    assert daemon.ask("PUT", "/api/kv/default/big", b"x" * (65536 + 1)).code == "quota_exceeded"
    assert daemon.ask("DELETE", "/api/kv/default/some.key").status == 200
    assert daemon.get("/api/kv/default/some.key").status == 404


ODD_KEYS = (
    *"{} {x} {key} a{1} } { % %2F %7B %25 a+b a&b=c ;, ? # @ : [0] ~ ' \" ... .a ä 𝄞 \u00a0".split(" "),
    "a b",
    "{" * 256,
    "𝄞" * 256,
)


@pytest.mark.parametrize("key", ODD_KEYS)
def test_every_valid_kv_key_and_bucket_can_be_addressed(daemon, key):
    """It is written, read, listed and deleted by its percent-encoded name, and by latticectl."""
    path = f"/api/kv/{quote(key, safe='')}/{quote(key, safe='')}"
    assert daemon.ask("PUT", path, b"here").json() == {"bucket": key, "key": key, "bytes": 4}
    assert daemon.get(path).body == b"here"
    assert daemon.get(f"/api/kv/{quote(key, safe='')}").json()["keys"] == [key]
    if key in {"{x}", "%2F", "a b"}:
        assert daemon.ctl("kv", "get", key, key).stdout == "here"
    assert daemon.ask("DELETE", path).json() == {"bucket": key, "key": key, "deleted": True}


def test_decisions_and_runtime_changes_are_audited(daemon):
    """`plugin.status` names who decided; `plugin.runtime` follows arming and stopping; pages follow a cursor."""
    daemon.activate("acme.host")
    daemon.set_status("disabled", "acme.host")

    def recorded():
        """All events, once those of arming and stopping are there: they are recorded after the answer."""
        found = daemon.events(target="acme.host")
        return found if len([one for one in found if one["action"] == "plugin.runtime"]) >= 2 else None

    events = daemon.until(recorded, "both runtime events")
    decided = [one for one in events if one["action"] == "plugin.status"]
    assert [one["detail"]["to"] for one in decided] == ["installed", "active", "disabled"]
    assert all(re.fullmatch(r"uid:\d+ user:\S+ pid:\d+", one["actor"]) for one in decided), decided
    first = daemon.get("/api/audit?limit=2").json()
    second = daemon.get(f"/api/audit?limit=2&after={first['next']}").json()
    assert [one["seq"] for one in (*first["events"], *second["events"])] == [1, 2, 3, 4]
    assert second["events"][0]["prev"] == first["events"][-1]["hash"]
    assert daemon.get("/api/audit/verify").json()["ok"] is True


def test_head_requests_and_leading_empty_lines_are_accepted(daemon):
    """Curl and proxies send them; HEAD is answered without a body."""
    with raw_http.connected(daemon.place.socket) as sock:
        sock.sendall(b"\r\nHEAD /api/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        head, _, body = raw_http.until_closed(sock).partition(b"\r\n\r\n")
    assert head.split(b" ")[1] == b"200"
    assert body == b""


def test_latticectl_shows_what_the_api_answers(daemon):
    """The real daemon is asked: list, info, wait, rejected, and the exit codes."""
    listed = json.loads(daemon.ctl("list", "--format", "json").stdout)
    assert [one["id"] for one in listed] == [one["id"] for one in daemon.get("/api/plugins").json()]
    assert daemon.ctl("install", "acme.nobody").returncode == 4
    done = daemon.ctl("install", "acme.refused")
    assert done.returncode == 0, done
    assert daemon.ctl("activate", "acme.refused").returncode == 0
    assert daemon.ctl("wait", "acme.refused", "--for", "active", "--timeout", "5").returncode == 0
    assert "already" in daemon.ctl("activate", "acme.refused").stdout
    assert "acme.refused" in daemon.ctl("info", "acme.refused").stdout
    assert daemon.ctl("health", "--check").returncode == 0
    assert daemon.ctl("audit", "verify").returncode == 0
    assert str(daemon.place.home) not in daemon.ctl("status").stdout


def test_log_is_json_without_paths_of_bundles(daemon):
    """Events in the past tense; no 500 and no failed component."""
    events = {entry["event"] for entry in daemon.log()}
    assert not events & {"request_failed", "lifecycle_failed", "sweeper_failed", "saver_failed"}
    assert str(daemon.place.plugins) not in daemon.log_file.read_text()


@pytest.mark.parametrize("path", ["/api/kv/default/%ff", "/api/kv/%ff/key"])
def test_kv_keys_that_are_not_utf8_are_refused(daemon, path):
    """They would be stored under another key than requested."""
    assert daemon.ask("PUT", path, b"value").code == "bad_request"
