"""What each service is sent, whatever a sender wrote, and what its answers mean."""

from __future__ import annotations

import base64
import json
import re
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latticed.bundle import config_schema
from latticed.system.notify import BUILTIN, check, render, routing, services
from latticed.system.notify.intent import NotifyItem
from tests.house import push_services
from tests.house.push_services import PushServices, Refused

HERE = PushServices(port=80)
PLAIN = {"channels": {**HERE.channels(), "mail": {"kind": "mail", "to": ["ops@example.org"]}}, "default": ["mail"]}
INTENT = check.read(PLAIN)
NOW = datetime(2026, 1, 15, 12, 0, tzinfo=UTC)
NASTY = (
    "<b>bold</b> <!channel> <@U01> @everyone @here [a](http://x) *b* _i_ `c` ~s~ ||s|| &amp; <script> ${secret:SLACK} "
    "# head\n> quote\n- list {{body}} \\ \u202e \u200b \ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")
)


def item(**more):
    plain = {"id": "a" * 32, "sender": "acme.watch", "event": "disk.full", "severity": "error", "title": "disk full"}
    return NotifyItem(**{**plain, "body": "/var", "created_at": "2026-01-15T12:00:00.000000Z", **more})


def message(name, one, *more, template=None):
    rule = template or routing.rule_of(INTENT, one, name)
    text = render.compose(one, more, rule, host=INTENT.host)
    return services.request(INTENT.channels[name], text, one.id, (one, *more))


class _Handler:
    """A request as the strict services see it, with the secrets in place and signed, as the host would send it."""

    def __init__(self, params):
        def filled(text):
            return re.sub(r"\$\{secret:([A-Z]+)\}", lambda found: push_services.SECRETS[found[1]], text)

        self.path = filled(params["url"]).removeprefix(HERE.origin)
        self.headers = {name: filled(value) for name, value in params["header"].items()}
        self.body = base64.b64decode(params["body_base64"])


def taken(name, params):
    handler = _Handler(params)
    found, _ = push_services._CHECKS[name](handler, handler.body)
    return found


CHECKED = sorted(set(HERE.channels()) - {"webhook"})


@pytest.mark.parametrize("name", CHECKED)
@given(
    title=st.text(min_size=1, max_size=300),
    body=st.text(max_size=9_000),
    severity=st.sampled_from(["info", "critical"]),
)
@settings(max_examples=40, deadline=None)
def test_services_take_whatever_a_sender_wrote(name, title, body, severity):
    """They refuse broken markup, and what is longer than they take."""
    taken(name, message(name, item(title=title, body=body, severity=severity)).params)


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("filler", ["<&>*_@\\", "\N{GRINNING FACE}", "ü\n", '"\\'])
def test_long_texts_are_cut_to_what_the_service_takes(name, filler):
    found = taken(name, message(name, item(title=filler * 3_000, body=filler * 9_000)).params)
    assert render.ELLIPSIS in found.body or render.ELLIPSIS in found.title


@pytest.mark.parametrize("name", CHECKED)
def test_markup_of_a_sender_is_text(name):
    found = taken(name, message(name, item(title="x", body=NASTY)).params)
    assert found.body.replace("@\u200b", "@").strip() == NASTY.strip()
    assert "parse_mode" not in found.plain or "<script>" not in found.plain["text"]


@pytest.mark.parametrize("name", sorted(HERE.channels()))
def test_references_of_a_sender_to_secrets_are_not_replaced(name):
    """The host replaces none in a body that is base64; nothing else of a request holds what senders wrote."""
    params = message(name, item(title="${secret:SLACK}", body="${secret:HOOK}")).params
    assert "body" not in params
    own = {name: channel.get("url", channel.get("server", "")) for name, channel in HERE.channels().items()}
    assert params["url"].startswith(own[name].partition("$")[0])
    assert set(params["header"]) <= {"Content-Type", "Authorization", "X-Gotify-Key", "Idempotency-Key"}


def test_mail_has_one_line_of_subject_and_no_reference():
    one = item(title="a\r\nBcc: all@example.org ${secret:SLACK}", body="b ${secret:SLACK}\r\nc")
    params = message("mail", one).params
    assert params["subject"] == "[error] a Bcc: all@example.org $ {secret:SLACK}"
    assert params["body"] == "b $ {secret:SLACK}\r\nc"
    assert params["to"] == ["ops@example.org"]


def test_template_is_filled_in_one_pass():
    rule = check.read(
        {**PLAIN, "rules": [{"channels": ["slack"], "title": "{{host}}: {{title}}", "body": "{{body}}!"}]}
    )
    text = render.compose(item(title="{{body}}", body="{{title}} {{nothing}}"), (), rule.rules[0], host="web-1")
    assert (text.title, text.body) == ("web-1: {{body}}", "{{title}} {{nothing}}!")


def test_repeats_and_different_items_become_one_message():
    rule = routing.rule_of(INTENT, item(), "slack")
    same = render.compose(item(), [item(id="b"), item(id="c")], rule, host="")
    assert (same.title, same.body, same.count) == ("disk full (×3)", "/var", 3)
    other = [item(title=f"t{n}", severity="info") for n in range(40)]
    mixed = render.compose(item(severity="info"), [*other, item(severity="critical", title="fire")], rule, host="web-1")
    lines = mixed.body.splitlines()
    assert (mixed.title, mixed.severity) == ("42 notifications of acme.watch on web-1", "critical")
    assert lines[0] == "critical acme.watch: fire"
    assert lines[-1] == "and 12 more: latticectl notify list"


@pytest.mark.parametrize("name", sorted(HERE.channels()))
def test_repeats_have_every_different_text_once_in_order(name):
    """One title for several facts: each of them arrives."""
    sites = ["mail", "shop", "mail", "wiki"]
    items = [item(id=f"{n:032x}", body=f"{site}: the certificate ends") for n, site in enumerate(sites)]
    found = taken(name, message(name, *items).params) if name in CHECKED else None
    text = render.compose(items[0], items[1:], routing.rule_of(INTENT, items[0], name), host="")
    assert text.title == "disk full (×4)"
    assert text.body.splitlines() == [f"{site}: the certificate ends" for site in ("mail", "shop", "wiki")]
    assert found is None or found.body == text.body


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("body", ["disk {} is full", "{} " + "long " * 2_000, "{} " + "😀\n" * 300])
def test_repeats_of_many_different_texts_say_how_many_more_there_are(name, body):
    """So many as fit into a message of every service."""
    items = [item(id=f"{n:032x}", body=body.format(n)) for n in range(100)]
    lines = taken(name, message(name, *items).params).body.splitlines()
    shown = [line.split()[0 if body[0] == "{" else 1] for line in lines if re.match(r"(disk )?\d", line)]
    assert len(shown) >= 4
    assert shown == [str(n) for n in range(len(shown))]
    assert lines[-1] == f"and {100 - len(shown)} more"


def test_template_of_repeats_has_their_different_texts_in_the_place_of_one():
    rule = check.read({**PLAIN, "rules": [{"channels": ["slack"], "body": "on {{host}}: {{body}}!"}]}).rules[0]
    text = render.compose(item(body="a"), [item(body="b {{host}}"), item(body="")], rule, host="web-1")
    assert text.body == "on web-1: a\nb {{host}}!"


def test_webhook_has_every_item_with_its_id_within_what_a_request_takes():
    items = [item(id=f"{n:032x}", body="x" * 8_192, title="t" * 200) for n in range(100)]
    params = message("webhook", *items).params
    found = json.loads(base64.b64decode(params["body_base64"]))
    assert [one["id"] for one in found["data"]["items"]] == [one.id for one in items]
    assert len(json.dumps(params)) < 256 << 10
    assert params["sign"] == {"secret": "${secret:HOOK}", "id": items[0].id}


def answer(status, body=b"", **header):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return {"status_code": status, "header": header, "body_base64": base64.b64encode(raw).decode()}


@pytest.mark.parametrize(
    ("name", "said", "meant"),
    [
        ("telegram", answer(200, {"ok": True, "result": {}}), ("done", "", 0, True)),
        ("telegram", answer(200, {"ok": False, "error_code": 400, "description": "x"}), ("fail", "http_400", 0, False)),
        ("telegram", answer(429, {"ok": False, "parameters": {"retry_after": 33}}), ("retry", "http_429", 33, True)),
        ("telegram", answer(401, {"ok": False}), ("fail", "http_401", 0, True)),
        ("slack", answer(200, b"ok"), ("done", "", 0, True)),
        ("slack", answer(200, {"ok": False, "error": "x"}), ("fail", "http_400", 0, False)),
        ("slack", answer(200, b"<html>portal</html>"), ("retry", "unexpected_answer", 0, True)),
        ("slack", answer(404, b"no_service"), ("fail", "http_404", 0, True)),
        ("discord", answer(200, {"id": "1"}), ("done", "", 0, True)),
        ("discord", answer(429, {"retry_after": 0.5}), ("retry", "http_429", 0.5, True)),
        ("bark", answer(200, {"code": 200}), ("done", "", 0, True)),
        ("bark", answer(200, {"code": 400, "message": "x"}), ("fail", "http_400", 0, False)),
        ("ntfy", answer(200, b"[]"), ("retry", "unexpected_answer", 0, True)),
        ("gotify", answer(200, b"\xff" * 9), ("retry", "unexpected_answer", 0, True)),
        ("webhook", answer(204), ("done", "", 0, True)),
        ("webhook", answer(429, **{"Retry-After": "86400"}), ("retry", "http_429", 86_400, True)),
        ("webhook", answer(429), ("retry", "http_429", 0, True)),
        ("webhook", answer(429, **{"Retry-After": "soon"}), ("retry", "http_429", 0, True)),
        ("webhook", answer(503, **{"Retry-After": "Thu, 15 Jan 2026 12:01:00 GMT"}), ("retry", "http_503", 60, True)),
        ("webhook", answer(503, **{"Retry-After": "9" * 40}), ("retry", "http_503", 999_999_999, True)),
        ("webhook", answer(500), ("retry", "http_500", 0, True)),
        ("webhook", answer(304), ("fail", "http_304", 0, True)),
        ("webhook", answer(422), ("fail", "http_422", 0, False)),
        ("webhook", answer(413), ("fail", "http_413", 0, False)),
    ],
)
def test_answer_of_a_service_is_understood(name, said, meant):
    found, shown = services.verdict(INTENT.channels[name], said, now=NOW)
    assert (found.outcome, found.code, found.retry_after_s, found.blames_channel) == meant
    assert shown.startswith(str(said["status_code"]))


@pytest.mark.parametrize("name", sorted(HERE.channels()))
@pytest.mark.parametrize("status", [200, 500])
def test_page_behind_a_redirect_that_dropped_the_message_is_no_success(name, status):
    """The message says where the redirect leads, and what to configure."""
    page = answer(status, {"ok": True, "id": "1", "code": 200}) | {
        "redirected": {"method": "GET", "url": "https://new.example.org/${secret:HOOK}/?next=%2Fhook"}
    }
    found, _ = services.verdict(INTENT.channels[name], page, now=NOW)
    assert (found.outcome, found.code, found.blames_channel) == ("fail", "redirected", True)
    assert found.reason.endswith("leads to https://new.example.org/${secret:HOOK}/")
    key = "url" if "url" in PLAIN["channels"][name] else "server"
    assert f"set {key} of the channel" in found.reason


def test_message_that_a_redirect_has_repeated_is_judged_by_its_answer():
    said = answer(204) | {"redirected": {"method": "POST", "url": "https://new.example.org/"}}
    assert services.verdict(INTENT.channels["webhook"], said, now=NOW)[0].outcome == "done"


NUMBERS = st.sampled_from(["0", "1", "31", "2026", "9" * 11, "9" * 25, "-1", ""])
DATES = st.builds("Mon, {} Jan {} {}:{}:{} {}{}".format, *[NUMBERS] * 5, st.sampled_from(["+", "-", "GMT"]), NUMBERS)


@given(
    st.sampled_from(sorted(HERE.channels())),
    st.binary(max_size=200),
    st.integers(200, 599),
    st.text(max_size=30) | DATES,
)
def test_no_answer_breaks_what_reads_it(name, body, status, after):
    found, _ = services.verdict(INTENT.channels[name], answer(status, body, **{"Retry-After": after}), now=NOW)
    assert found.outcome in {"done", "retry", "fail"}


@pytest.mark.parametrize(
    ("call", "code", "text", "meant"),
    [
        ("http.do", "egress_blocked", "redirect not followed", ("fail", True)),
        ("http.do", "bad_params", "no such secret", ("fail", True)),
        ("http.do", "deadline_exceeded", "", ("retry", True)),
        ("http.do", "too_large", "the answer", ("retry", True)),
        ("http.do", "rate_limited", "", ("retry", False)),
        ("http.do", "audit_unavailable", "the disk is full", ("retry", False)),
        ("mail.send", "too_large", "", ("fail", False)),
        ("mail.send", "service_unavailable", "the relay refuses the message (554 no)", ("fail", False)),
        ("mail.send", "service_unavailable", "cannot connect to the relay", ("retry", True)),
    ],
)
def test_refusal_of_the_host_is_understood(call, code, text, meant):
    found = services.refused(call, code, text)
    assert (found.outcome, found.blames_channel) == meant


def test_strict_services_refuse():
    """Otherwise the tests above would show nothing."""
    for name, broken in (
        ("telegram", {"text": "<b>x"}),
        ("slack", {"text": "<!channel>"}),
        ("ntfy", {"message": "x" * 5_000}),
    ):
        params = message(name, item()).params
        plain = json.loads(base64.b64decode(params["body_base64"])) | broken
        params["body_base64"] = base64.b64encode(json.dumps(plain).encode()).decode()
        with pytest.raises(Refused):
            taken(name, params)


def test_schema_of_the_manifest_and_the_check_agree():
    schema = json.loads((BUILTIN.folder / "manifest.json").read_text())["config"]
    config_schema.check(schema)
    import jsonschema_rs

    validator = jsonschema_rs.validator_for(schema)
    assert validator.is_valid(PLAIN)
    for name, channel in PLAIN["channels"].items():
        for key in channel:
            if key not in {"kind", "server", "secret", "token"} or (name, key) in {
                ("telegram", "token"),
                ("gotify", "token"),
            }:
                less = {one: value for one, value in channel.items() if one != key}
                assert not validator.is_valid({"channels": {"x": less}, "default": ["x"]}), (name, key)
        assert not validator.is_valid({"channels": {"x": {**channel, "colour": 1}}, "default": ["x"]})
        if "token" in channel:
            assert not validator.is_valid({"channels": {"x": {**channel, "token": "plain"}}, "default": ["x"]})
    assert not validator.is_valid(
        {"channels": {"x": {"kind": "slack", "url": "https://hooks.slack.com/T/B/plain"}}, "default": ["x"]}
    )
