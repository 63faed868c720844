"""What cloudflared's configuration may say: every kind of rule that is refused, with its place; hostile documents."""

from __future__ import annotations

import json

import jsonschema_rs
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from latticed.model import egress
from latticed.model import tunnel as rules
from latticed.system.cloudflared import BUILTIN, check, decode, render
from latticed.system.findings import IntentRefused
from tests.house import edges

GOOD = {"hostname": "a.example.com", "service": "http://backend.lan:8080"}
REST = {"service": "http_status:404"}
OTHER = "7ff42ae2-765d-4adf-8112-31c55c1551ef"


def tunnel(*ingress, **more):
    return {"name": "main", "tunnel": edges.TUNNEL, "credentials": "main.json", "ingress": [*ingress, REST], **more}


def findings(*tunnels, **more):
    """(code, path) of each fault."""
    try:
        found = check.check(decode.read({"tunnels": [*tunnels], **more}))
    except IntentRefused as refused:
        found = refused.findings
    return [(one.code, one.path) for one in found]


def test_configuration_that_means_something_has_no_findings():
    assert findings(tunnel(GOOD), tunnel({**GOOD, "hostname": "b.example.com"}, name="two", tunnel=OTHER)) == []
    assert findings() == []


@pytest.mark.parametrize(
    "service",
    [
        "unix:/run/latticed/control.sock", "unix+tls:/run/x.sock", "tcp://db.lan:5432", "ssh://h.lan:22", "rdp://h.lan",
        "smb://h.lan", "ftp://h.lan:21", "bastion", "socks-proxy", "hello_world", "hello-world", "http_status:99",
        "http_status:600", "", "http://", "http://u:p@h.lan", "http://h.lan/admin", "http://h.lan?x", "http://h.lan#x",
        "http://0x7f000001", "http://127.1", "http://h.lan:0", "http://h.lan:65536", "http://h.lan\\@evil", "//h.lan",
        "http://h.lan:80\n", "http://[::1", "http://h lan", "wss://h.lan",
    ],
)  # fmt: skip
def test_service_that_is_no_bound_origin_is_refused_with_its_place(service):
    (found,) = findings(tunnel(GOOD, {"hostname": "b.example.com", "service": service}))
    assert found[0] in {"bad_service", "wrong_type"}
    assert found[1] == "tunnels[0].ingress[1].service"


@pytest.mark.parametrize(
    ("ingress", "code", "path"),
    [
        ([GOOD, GOOD, REST], "hidden_rule", "ingress[1]"),
        ([GOOD, {**GOOD, "hostname": "A.Example.COM."}, REST], "hidden_rule", "ingress[1]"),
        ([GOOD, {**GOOD, "path": "/x"}, REST], "hidden_rule", "ingress[1]"),
        ([{**GOOD, "hostname": "*.example.com"}, GOOD, REST], "hidden_rule", "ingress[1]"),
        ([GOOD, REST, REST], "hidden_rule", "ingress[2]"),
        ([GOOD], "no_last_rule", "ingress"),
        ([{**REST, "path": "/x"}], "no_last_rule", "ingress"),
        ([], "rule_count", "ingress"),
        ([REST] * 65, "too_many", "ingress"),
        ([{**GOOD, "hostname": "*"}, REST], "bad_hostname", "ingress[0].hostname"),
        ([{**GOOD, "hostname": "localhost"}, REST], "bad_hostname", "ingress[0].hostname"),
        ([{**GOOD, "hostname": "10.0.0.1"}, REST], "bad_hostname", "ingress[0].hostname"),
        ([{**GOOD, "hostname": 'a.b"\n- service: ssh://x'}, REST], "wrong_type", "ingress[0].hostname"),
        ([{**GOOD, "path": "("}, REST], "bad_path", "ingress[0].path"),
        ([{**GOOD, "path": "/../x"}, REST], "bad_path", "ingress[0].path"),
        ([{**GOOD, "originRequest": {"noTLSVerify": True}}, REST], "unknown_key", "ingress[0]"),
        ([{"hostname": "a.example.com"}, REST], "missing_key", "ingress[0].service"),
        (["http://backend.lan", REST], "wrong_type", "ingress[0]"),
        ({"0": REST}, "wrong_type", "ingress"),
    ],
)
def test_rules_are_refused_with_their_place(ingress, code, path):
    found = findings({**tunnel(), "ingress": ingress})
    assert (code, f"tunnels[0].{path}") in found


@pytest.mark.parametrize(
    ("change", "code", "path"),
    [
        ({"tunnel": "my-tunnel"}, "bad_id", "tunnels[0].tunnel"),
        ({"tunnel": f"{{{edges.TUNNEL}}}"}, "bad_id", "tunnels[0].tunnel"),
        ({"credentials": "../main.json"}, "bad_file", "tunnels[0].credentials"),
        ({"credentials": "/etc/shadow"}, "bad_file", "tunnels[0].credentials"),
        ({"credentials": ".hidden"}, "bad_file", "tunnels[0].credentials"),
        ({"token": "main.token"}, "one_secret", "tunnels[0]"),
        ({"name": "a/b"}, "bad_name", "tunnels[0].name"),
        ({"metrics": "0.0.0.0:2000"}, "unknown_key", "tunnels[0].metrics"),
        ({"warp-routing": {"enabled": True}}, "unknown_key", "tunnels[0].warp-routing"),
    ],
)
def test_each_part_of_a_tunnel_is_refused_with_its_place(change, code, path):
    assert findings({**tunnel(GOOD), **change}) == [(code, path)]


def test_tunnel_needs_credentials_or_a_token():
    plain = tunnel(GOOD)
    del plain["credentials"]
    assert findings(plain) == [("one_secret", "tunnels[0]")]
    assert findings({**plain, "token": "main.token"}) == []


def test_tunnels_that_take_something_from_each_other_are_refused():
    """Names, ids, and a public name: the provider's DNS leads it to one tunnel."""
    twice = findings(tunnel(GOOD), tunnel({**GOOD, "hostname": "A.example.com"}))
    assert twice == [
        ("duplicate", "tunnels[1].name"),
        ("duplicate", "tunnels[1].tunnel"),
        ("two_tunnels", "tunnels[1].ingress[0].hostname"),
    ]


@pytest.mark.parametrize(
    ("monitor_s", "fine"), [(0, True), (10, True), (9, False), (True, False), (1.5, False), ("30", False)]
)
def test_interval_of_monitors_is_bounded(monitor_s, fine):
    assert (findings(tunnel(GOOD), monitor_s=monitor_s) == []) is fine


def test_origins_that_have_no_room_for_monitors_are_refused_unless_unwatched():
    every = [
        tunnel(
            *({"hostname": f"h{n}-{i}.example.com", "service": f"http://h{n}-{i}.lan"} for i in range(60)),
            name=f"t{n}",
            tunnel=f"{n}ff42ae2-765d-4adf-8112-31c55c1551ef",
        )
        for n in range(2)
    ]
    assert findings(*every) == [("too_many_origins", "tunnels")]
    assert findings(*every, monitor_s=0) == []


def test_document_full_of_faults_is_told_in_part():
    """A hundred findings of a document that has more, and nothing of it deeper than the model is walked."""
    every = [{**tunnel(), "ingress": [{"service": "bastion"}] * 64, "name": [[[]]]}] * 16
    assert len(findings(*every)) == 100
    deep = []
    for _ in range(500):
        deep = [deep]
    assert findings(deep) == [("wrong_type", "tunnels[0]")]


SCHEMA = jsonschema_rs.Draft202012Validator(json.loads((BUILTIN.folder / "manifest.json").read_text())["config"])
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
RULES = st.fixed_dictionaries(
    {
        "service": st.sampled_from(["http://a.lan", "https://[::1]:8443", "http_status:404", "bastion"])
        | st.text(max_size=30)
    },
    optional={"hostname": st.text("ab.*é-", max_size=12), "path": st.text("/ab.~(", max_size=8), "odd": st.none()},
)


@given(PLAIN | st.lists(RULES, max_size=6).map(lambda rules: {"tunnels": [tunnel(*rules)]}))
def test_any_document_is_read_or_refused_and_what_is_read_leads_to_origins_alone(plain):
    try:
        intent = decode.read(plain)
    except IntentRefused as refused:
        event(refused.findings[0].code)
        unprintable = [one for one in refused.findings if not (one.found.isascii() and one.found.isprintable())]
        if unprintable or not refused.findings:
            raise
        return
    assert SCHEMA.is_valid(plain), "else an operator could not set it"
    for one in intent.tunnels:
        for rule in one.ingress:
            assert rules.is_status(rule.service) or egress.origin(f"{rule.service}=192.0.2.1").port
        again, faults = rules.judged(one.ingress)
        assert (again, faults) == (one.ingress, []), "the normal form is one"


def test_calls_that_carry_a_configuration_out():
    intent = decode.read(
        {"tunnels": [tunnel(GOOD, {**GOOD, "hostname": "b.example.com", "path": "/x"})], "monitor_s": 60}
    )
    assert render.tunnel(intent.tunnels[0]) == {
        "name": "main",
        "tunnel": edges.TUNNEL,
        "credentials": "main.json",
        "ingress": [
            {"hostname": "a.example.com", "path": "", "service": "http://backend.lan:8080"},
            {"hostname": "b.example.com", "path": "/x", "service": "http://backend.lan:8080"},
            {"hostname": "", "path": "", "service": "http_status:404"},
        ],
    }
    assert {name: one["target"] for name, one in render.monitors(intent).items()} == {
        "http-backend.lan-8080": "http://backend.lan:8080/"
    }


@given(st.sets(st.sampled_from(["a", "a-80", "a.b", "::1", "b" * 60, f"{'b' * 60}.c"]), min_size=2, max_size=2))
def test_monitors_of_different_origins_have_different_names(hosts):
    services = [f"http://{f'[{one}]' if ':' in one else one}:80" for one in hosts]
    names = {render.monitor_name(one) for one in services}
    assert len(names) == 2
    assert all(len(one) <= 64 for one in names)
