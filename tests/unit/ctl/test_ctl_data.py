from __future__ import annotations

import io
import json
import os
import re

import pytest
import segno

from latticed.kit import passwords
from latticed.model import capability
from tests.house import api_server


def test_kv_values_are_set_and_printed_as_bytes(ctl, api, monkeypatch):
    """A pipe gets exactly the stored bytes; JSON has base64, and text if the value is UTF-8."""
    data = b"\0\xff\x1b[2J\r\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert ctl("kv", "set", "default", "logo", "-").out == "default/logo stored\n"
    assert ctl("kv", "get", "default", "logo").data == data
    assert ctl("kv", "get", "default", "logo", "--format", "json").json == {
        "bucket": "default",
        "key": "logo",
        "value": None,
        "value_base64": "AP8bWzJKDQo=",
    }
    ctl("kv", "set", "default", "motd", "héllo")
    assert api.values["default", "motd"] == "héllo".encode()
    assert ctl("kv", "get", "default", "motd", "--format", "json").json["value"] == "héllo"


def test_kv_value_beyond_the_body_limit_is_not_sent(ctl, api, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"x" * ((1 << 20) + 1))))
    ran = ctl("kv", "set", "default", "big", "-")
    assert ran.code == 1
    assert "expected at most 1048576 bytes" in ran.err
    assert api.asked == []


def test_kv_list_follows_all_pages(ctl, api):
    for key in ("a", "b", "c", "d", "e\x1b"):
        api.values["default", key] = b""
    assert ctl("kv", "list", "default").out == "a\nb\nc\nd\ne\\x1b\n"
    assert ctl("kv", "list", "default", "--prefix", "c", "--format", "json").json == {
        "bucket": "default",
        "keys": ["c"],
    }
    assert len(api.asked) == 4


def test_kv_list_of_nothing_says_so_and_where_plugins_keep_theirs(ctl, api):
    ran = ctl("kv", "list", "acme.demo")
    assert (ran.code, ran.out) == (0, "")
    assert ran.err == "no such keys in bucket acme.demo\nhint: what a plugin keeps is in plugin:ID\n"
    assert ctl("kv", "list", "plugin:acme.demo").err == "no such keys in bucket plugin:acme.demo\n"


def test_missing_kv_key_is_not_found(ctl, api):
    assert ctl("kv", "get", "default", "none").code == 4
    assert ctl("kv", "delete", "default", "none").code == 4
    assert ctl("kv", "get", "default", "..").code == 4
    api.values["default", "a"] = b"1"
    assert ctl("kv", "delete", "default", "a").out == "default/a deleted\n"
    assert api.values == {}


def test_caps_lists_all_capabilities_without_a_daemon(ctl):
    """19, each with risk, types and host calls."""
    rows = ctl("caps", "--format", "json").json
    assert {row["name"]: row["risk"] for row in rows} == {name: risk.word for name, risk in capability.RISKS.items()}
    assert next(row for row in rows if row["name"] == "kv:read")["host_calls"] == ["kv.get", "kv.list"]
    assert "http:egress    host   system, wasm          http.do, mail.send" in ctl("caps", "list").out


def test_capabilities_of_one_plugin_are_listed_granted_and_trimmed(ctl, api):
    api.add(capabilities=["kv:read", "http:egress"])
    assert ctl("caps", "list", "acme.demo").out.splitlines() == [
        "CAPABILITY   RISK  GRANTED",
        "kv:read      read  yes",
        "http:egress  host  no",
    ]
    assert ctl("caps", "grant", "acme.demo", "cap=http:egress").out == "acme.demo granted http:egress\n"
    assert json.loads(api.bodies[-1]) == {"grant": ["http:egress"], "trim": []}
    assert ctl("caps", "grant", "acme.demo", "http:egress").out == "acme.demo already granted http:egress\n"
    api.declared_hosts["acme.demo"] = ["a:1", "b:2"]
    assert ctl("caps", "grant", "acme.demo", "host=a:1").code == 0
    assert ctl("caps", "list", "acme.demo").out.endswith("host a:1\nnot accepted host=b:2\n")
    assert re.search("not accepted +host=b:2\n", ctl("info", "acme.demo").out)
    assert ctl("caps", "grant", "acme.demo", "host=b:2").code == 0
    assert ctl("caps", "list", "acme.demo").out.endswith("host a:1\nhost b:2\n")
    assert ctl("caps", "trim", "acme.demo", "host=a:1", "cap=kv:read").out == "acme.demo taken away host=a:1, kv:read\n"
    assert ctl("caps", "list", "acme.demo", "--format", "json").json == {
        "id": "acme.demo",
        "declared": ["kv:read", "http:egress"],
        "granted": ["http:egress"],
        "masked": ["kv:read"],
        "hosts": ["b:2"],
        "withheld_hosts": ["a:1"],
    }


@pytest.mark.parametrize("what", ["cap=kv:reed", "kv:reed", "host=", "secret=x", "=", "cap"])
def test_unknown_grant_is_a_usage_error(ctl, api, what):
    api.add()
    assert ctl("caps", "grant", "acme.demo", what).code == 2
    assert api.asked == []


def test_grants_of_unknown_plugins_are_not_found(ctl, api):
    assert ctl("caps", "list", "acme.none").code == 4
    assert ctl("caps", "grant", "acme.none", "cap=kv:read").code == 4


def test_audit_query_filters_pages_and_counts_from_the_end(ctl, api):
    api.events = [api_server.event(seq, decision="deny" if seq % 2 else "allow") for seq in range(1, 8)]
    rows = ctl("audit", "query", "--decision", "deny", "--limit", "2", "--format", "json").json
    assert [row["seq"] for row in rows["events"]] == [1, 3]
    assert rows["next"] == 3
    assert "there are more: --after 2" in ctl("audit", "query", "--limit", "2").err
    newest = ctl("audit", "query", "--last", "3", "--format", "json").json["events"]
    assert [row["seq"] for row in newest] == [5, 6, 7]
    out = ctl("audit", "query", "--after", "6", "--abs-time").out.splitlines()
    assert out[0].split() == ["SEQ", "WHEN", "ACTOR", "ACTION", "TARGET", "DECISION", "CODE", "REASON"]
    assert out[1].startswith("  7  2025-01-31T08:00:00Z  uid:0 user:root pid:1  plugin.status  acme.demo  deny")
    assert ctl("audit", "query", "--after", "7").err == "no such events\n"


@pytest.mark.parametrize(
    "words",
    [
        ("audit", "query", "--after", "3", "--last", "2"),
        *((*verb, "--last", last) for verb in (("audit", "query"), ("logs", "acme.demo")) for last in ("0", "1001")),
        *((verb, "list", "--last", last) for verb in ("task", "plan", "notify") for last in ("0", "501", "-1", "x")),
    ],
)
def test_number_of_the_newest_that_one_answer_cannot_have_is_refused(ctl, words):
    """It was cut, and nothing said so."""
    assert ctl(*words).code == 2


def test_audit_since_is_sent_as_a_time(ctl, api):
    ctl("audit", "query", "--since", "2025-01-31T09:00:00+01:00")
    assert api.asked[-1].endswith("since=2025-01-31T08%3A00%3A00.000000Z&limit=100")
    ctl("audit", "query", "--since", "90m")
    assert "since=20" in api.asked[-1]


def test_audit_verify_asks_the_daemon(ctl, api):
    assert ctl("audit", "verify").out == "the chain holds: 0 events, 1 signed heads, last event 3, ffffffffffffffff\n"
    broken = {"ok": False, "events": 2, "heads": 0, "first_bad_seq": 2, "reason": "event 2 was changed"}
    api.override["GET audit/verify"] = (200, broken)
    ran = ctl("audit", "verify")
    assert (ran.code, ran.out) == (6, "the chain is broken at event 2: event 2 was changed\n")
    assert ctl("audit", "verify", "--format", "json").json == broken
    assert ctl("audit", "verify", "--public-key", "x").code == 2


def test_payload_that_is_not_utf_8_is_not_sent(ctl, api, monkeypatch):
    """A usage error before the daemon is asked, rather than a changed payload."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'"caf\xe9"')))
    ran = ctl("invoke", "acme.demo", "greet", "-")
    assert (ran.code, ran.data) == (2, b"")
    assert "expected UTF-8, found byte 0xe9 at offset 4" in ran.err
    assert api.asked == []


@pytest.mark.parametrize(
    ("lines", "denials", "hint"),
    [
        ([{"text": "no such file"}], [{"target": "http.do"}], "latticectl logs acme.demo shows what it says"),
        ([], [{"target": "http.do"}], "latticectl explain acme.demo shows which of its calls were denied"),
        ([], [], ""),
        (None, [], ""),
    ],
)
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((200, {"ok": False, "error": "no page"}), "acme.demo refused 'greet': no page"),
        (api_server.problem(502, "exited", "the plugin ended: exited 3"), "the plugin ended: exited 3"),
    ],
)
def test_an_invocation_that_fails_hints_at_what_there_is(ctl, api, lines, denials, hint, answer, said):
    """Refused by the plugin, or ended with it. A log that is empty, or may not be read, is not named."""
    api.add(status="active")
    api.override["POST plugins/by-id/acme.demo/invoke"] = answer
    page = 200, {"lines": lines, "next": 1}
    denied = api_server.problem(403, "access_denied", "this takes the scope operate")
    api.override["GET plugins/by-id/acme.demo/logs"] = denied if lines is None else page
    api.denials = denials
    ran = ctl("invoke", "acme.demo", "greet")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == f"error: {said}\n" + (f"hint: {hint}\n" if hint else "")


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ('{"a": 1, "a": 2}', "expected each key once, found 'a' twice"),
        ('{"a": [{"b": 1, "b": 1}]}', "expected each key once, found 'b' twice"),
        ("[1e400]", "expected a number within the range of a double, found 1e400"),
        ("[-1e400]", "found -1e400"),
        ("NaN", "expected a JSON value, found NaN"),
        ('"\\ud800"', "found a lone surrogate"),
        ("{", "Expecting property name"),
        ("", "Expecting value"),
    ],
)
def test_payload_that_the_api_would_refuse_is_refused_before_sending(ctl, api, payload, said):
    """It is never changed into something that the API accepts."""
    ran = ctl("invoke", "acme.demo", "greet", payload)
    assert (ran.code, ran.data) == (2, b"")
    assert said in ran.err
    assert api.asked == []


def test_limits_of_every_capability_are_described(tmp_path):
    """`limits.of` describes them in words, with the values of the local daemon's settings."""
    from latticed import settings
    from latticed.ctl import limits
    from latticed.model import capability

    file = tmp_path / "latticed.toml"
    file.write_text("[host_calls]\nkv_value_bytes = 1234\n[task]\nplugin_waiting = 7\n")
    found = limits.of(settings.load(file, {"HOME": "/"}, os.geteuid()))
    assert set(found) == set(capability.RISKS)
    assert "1234 bytes a value" in found["kv:write"]
    assert "7 tasks waiting" in found["task:run"]


def test_secret_is_sent_without_its_final_newline(ctl, api, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"two\nlines\r\n")))
    assert ctl("secret", "set", "TOKEN").out == "TOKEN set\n"
    assert api.secrets == {"TOKEN": b"two\nlines"}


@pytest.mark.parametrize("words", [("secret", "set", "--password"), ("service", "password")])
def test_only_the_hash_of_a_password_is_sent(ctl, api, monkeypatch, words):
    """The password is read from a pipe: one line, in UTF-8."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("pässword\n".encode())))
    assert ctl(*words, "WEB").out == "WEB set\n"
    stored = api.secrets["WEB"].decode("ascii")
    assert stored.startswith("$scrypt$")
    assert passwords.verify(stored, "pässword")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"short", "8 characters"),
        (b"x" * 1_025, "1024 bytes"),
        (b"\xff" * 8, "UTF-8"),
        (b"$scrypt$ln=15,r=8,p=1$0123$0123", "found a hash"),
        (b"\n", "found nothing"),
    ],
)
def test_invalid_password_is_not_sent(ctl, api, monkeypatch, data, why):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    ran = ctl("secret", "set", "--password", "WEB")
    assert ran.code == 2
    assert why in ran.err
    assert api.asked == []


def test_password_is_prompted_for_twice(ctl, api, monkeypatch):
    """This is at a terminal, without echo; other secrets are asked for once."""
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    typed = iter(("correct horse", "corect horse", "correct horse", "correct horse", "token"))
    prompts = []
    monkeypatch.setattr("getpass.getpass", lambda prompt: (prompts.append(prompt), next(typed))[1])
    assert ctl("secret", "set", "--password", "WEB").code == 2
    assert api.secrets == {}
    assert ctl("secret", "set", "--password", "WEB").code == 0
    assert passwords.verify(api.secrets["WEB"].decode(), "correct horse")
    assert ctl("secret", "set", "TOKEN").code == 0
    assert api.secrets["TOKEN"] == b"token"
    assert prompts == ["WEB: ", "WEB again: ", "WEB: ", "WEB again: ", "TOKEN: "]


INVOKE = "POST plugins/by-id/acme.demo/invoke"
CONF = "[Interface]\nPrivateKey = QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=\n"


@pytest.mark.parametrize("result", [CONF, {"conf": CONF, "id": "anna"}])
def test_result_is_drawn_for_a_camera(ctl, api, result):
    """What is drawn is the code of the text, with the quiet zone around it; the text itself is on no stream."""
    api.override[INVOKE] = 200, {"ok": True, "message": "approve it", "result": result, "error": None}
    ran = ctl("invoke", "acme.demo", "issue", "--qr")
    assert ran.code == 0
    code = segno.make(CONF, error="l", micro=False)
    wanted = [[bool(module) for module in row] for row in code.matrix_iter(border=4)]
    # Two rows of modules a line; the screen is dark, so what is printed is what is light in the code.
    shown = {" ": (True, True), "▀": (False, True), "▄": (True, False), "█": (False, False)}
    drawn = [[shown[one] for one in line] for line in ran.data.decode().splitlines()]
    rows = [[pair[half] for pair in line] for line in drawn for half in (0, 1)]
    assert rows[: len(wanted)] == wanted
    assert "PrivateKey" not in ran.err
    assert "approve it" in ran.err
    assert ("anna" in ran.err) == isinstance(result, dict)


@pytest.mark.parametrize(
    ("result", "code", "said"),
    [
        (7, 2, "expected a result that is text"),
        ({"conf": ""}, 2, "expected a result that is text"),
        (None, 2, "expected a result that is text"),
        ("x" * 3_000, 1, "fits a QR code, found 3000 characters"),
    ],
)
def test_result_that_no_code_holds_is_said(ctl, api, result, code, said):
    api.override[INVOKE] = 200, {"ok": True, "message": "", "result": result, "error": None}
    ran = ctl("invoke", "acme.demo", "issue", "--qr")
    assert (ran.code, ran.data) == (code, b"")
    assert said in ran.err


def test_market_search_and_outdated_that_find_nothing_say_so_and_where_to_look(ctl, api):
    """A table of its titles alone does not tell whether there is an index at all."""
    for verb, said in (("search", "no index has such a plugin"), ("outdated", "no plugin could be newer")):
        answer = {"plugins": [], "next": None}
        api.override["GET market/plugins" if verb == "search" else "GET market/outdated"] = 200, answer
        ran = ctl("market", verb)
        assert (ran.code, ran.out, ran.err) == (0, "", f"{said}\nhint: latticectl market sources shows the indexes\n")
        assert ctl("market", verb, "--format", "json").json == []
