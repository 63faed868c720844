"""What pages are made of: rows, plots, capabilities by risk, candidates and forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.console import acts, overview, plain, plots, plugin, words
from latticed.market.install import STEPS
from latticed.model.capability import RISKS
from latticed.model.errors import Problem
from tests.house import api_server

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


def running(**fields: object) -> dict[str, object]:
    return {"state": "armed", "runner": "process", "health": "healthy", "message": "", **fields}


def failed(code: str) -> dict[str, object]:
    return running(state="failed", last_error={"code": code, "message": "why"})


PLUGINS = [
    api_server.plugin("acme.fine", status="active", runtime=running()),
    api_server.plugin("acme.ends", status="active", runtime=failed("crashed")),
    api_server.plugin("acme.asks", status="active", runtime=failed("needs_consent")),
    api_server.plugin("acme.waits", status="active", runtime=running(), candidate=api_server.CANDIDATE),
    api_server.plugin("acme.masked", status="active", runtime=running(), capabilities=["kv:read", "http:egress"]),
    api_server.plugin("acme.gone", status="installed", available=False),
    api_server.plugin("acme.new"),
    api_server.plugin("acme.off", status="disabled"),
    api_server.plugin("latticed.proxy", builtin=True),
]


def test_what_needs_attention_comes_first():
    """Failures, then what an operator has to decide; built-ins that nobody installed are not there."""
    found = overview.rows(PLUGINS)
    assert [row.id for row in overview.page(found, overview.view({})).rows] == [
        *("acme.ends", "acme.asks", "acme.gone", "acme.waits", "acme.masked", "acme.new", "acme.fine", "acme.off"),
    ]
    assert [(row.id, row.why) for row in overview.attention(found)] == [
        ("acme.ends", "failed: crashed"),
        ("acme.asks", "needs a decision: needs_consent"),
        ("acme.gone", "its bundle does not verify, or is gone"),
        ("acme.waits", "version 1.1.0 waits to be taken"),
        ("acme.masked", "not granted: http:egress"),
    ]
    assert {label: count for label, count, _ in overview.counts(found)} == {
        "running": 3,
        "failed": 2,
        "disabled": 1,
        "installed": 1,
        "not decided": 1,
        "plugins": 8,
    }


def test_ten_thousand_plugins_are_pages_of_fifty():
    found = overview.rows([api_server.plugin(f"acme.p{number:05}") for number in range(10_000)])
    page = overview.page(found, overview.view({"page": "200", "sort": "id"}))
    assert (len(page.rows), page.pages, page.rows[-1].id) == (50, 200, "acme.p09999")
    assert overview.page(found, overview.view({"page": "999999"})).page == 200
    one = overview.page(found, overview.view({"q": "P00007"}))
    assert ([row.id for row in one.rows], one.found, one.total) == (["acme.p00007"], 1, 10_000)
    assert overview.page([], overview.view({})).pages == 1


@pytest.mark.parametrize("page", ["", "0", "-1", "x", "1e9", "٣", "9" * 40])
def test_a_page_that_is_none_is_the_first(page: str):
    assert overview.view({"page": page}).page == 1


def test_the_address_of_a_view_leads_back_to_it():
    wanted = overview.view({"q": "a&b=c ü", "sort": "name", "page": "3"})
    from urllib.parse import parse_qsl

    assert overview.view(dict(parse_qsl(wanted.query()[1:]))) == wanted
    assert overview.view({}).query() == "?"


@given(st.lists(ANYTHING, max_size=4))
def test_answers_of_another_version_give_rows_all_the_same(answer: list[object]):
    for row in overview.rows(answer):
        assert isinstance(row.id, str)
    overview.counts(overview.rows(answer))


@given(ANYTHING)
def test_no_answer_about_a_plugin_is_an_error(answer: object):
    plugin.by_risk(answer, answer)
    plugin.candidate(answer)
    plugin.day(answer)
    list(plugin.acts(answer))
    for kind in ("routes", "monitors", "services", "ddns"):
        plugin.delegated(kind, answer, "acme.demo")
    for name in ("id", "list"):
        plain.text(answer, name), plain.rows(answer, name), plain.texts(answer, name), plain.numbers(answer, name)


@pytest.mark.parametrize(
    ("kind", "state", "tone", "told"),
    [
        ("ddns", "published", "good", False),
        ("ddns", "retrying", "warn", True),
        ("ddns", "denied", "bad", True),
        ("services", "running", "good", False),
        ("services", "waiting", "warn", True),
        ("services", "failed", "bad", True),
    ],
)
def test_last_error_is_shown_until_it_has_come_right(kind: str, state: str, tone: str, told: bool):  # noqa: FBT001 - a row
    error = {"code": "service_unavailable", "message": "it is down", "at": "2026-01-01T00:00:00Z"}
    row = {"plugin": "acme.demo", "name": "one", "state": state, "last_error": error}
    (shown,) = plugin.delegated(kind, {"records": [row], "services": [row]}, "acme.demo")
    assert (shown["tone"], shown["fault"]) == (tone, "service_unavailable: it is down" if told else "")


def test_a_check_that_failed_is_shown_before_it_changes_the_state():
    last = {"outcome": "down", "code": "refused", "reason": "no connection"}
    row = {"plugin": "acme.demo", "name": "one", "state": "up", "last": last}
    (shown,) = plugin.delegated("monitors", {"monitors": [row]}, "acme.demo")
    assert (shown["tone"], shown["fault"]) == ("good", "refused: no connection")


def test_every_capability_has_words():
    assert set(words.CAPABILITIES) == set(RISKS)
    assert set(words.RISKS) == {risk.word for risk in RISKS.values()}


def test_what_it_may_do_is_by_risk_with_its_use():
    one = api_server.plugin(
        capabilities=["kv:read", "kv:write", "http:egress", "new:thing"], granted=["kv:read", "kv:write"]
    )
    groups = plugin.by_risk(one, {"enough": True, "unused": ["kv:write"]})
    assert [(group.risk, [cap.name for cap in group.capabilities]) for group in groups] == [
        ("host", ["http:egress", "new:thing"]),
        ("write", ["kv:write"]),
        ("read", ["kv:read"]),
    ]
    by_name = {cap.name: cap for group in groups for cap in group.capabilities}
    assert by_name["kv:write"].use == "not used in the last 14 days"
    assert by_name["kv:read"].use == "used in the last 14 days"
    assert (by_name["http:egress"].grantable, by_name["new:thing"].grantable) == (False, False)
    assert by_name["http:egress"].command == "latticectl caps grant acme.demo http:egress"
    soon = plugin.by_risk(one, {"enough": False, "unused": []})
    assert {cap.use for group in soon for cap in group.capabilities if cap.granted} == {
        "watched for too short a time to tell"
    }


def test_hosts_that_it_may_reach_have_their_use_and_what_is_withheld_its_command():
    usage = {"hosts": [{"host": "a.example:443", "last_at": "2026-01-01T00:00:00Z"}], "unused_hosts": ["b.example:443"]}
    grants = {"hosts": ["a.example:443", "b.example:443", "c.example:443"], "withheld": ["kv:read", "limit=fuel:9"]}
    grants["withheld_hosts"] = ["*.example:443"]
    assert plugin.hosts(grants, usage) == [
        ("a.example:443", "2026-01-01T00:00:00Z", ""),
        ("b.example:443", "", "not used in the last 14 days"),
        ("c.example:443", "", ""),
    ]
    assert plugin.withheld("acme.demo", grants) == [
        ("host=*.example:443", "latticectl caps grant acme.demo 'host=*.example:443'"),
        ("limit=fuel:9", "latticectl caps grant acme.demo limit=fuel:9"),
    ]


def test_a_taking_has_the_steps_behind_it_the_one_under_way_and_those_to_come():
    assert tuple(words.TAKING) == STEPS
    row = {"steps": [{"step": one, "detail": f"{one} holds"} for one in STEPS[:4]], "file": "artifact", "bytes": 7}
    found = plugin.taking(row)
    assert [one.tone for one in found] == [*["good"] * 4, "warn", "", ""]
    assert [one.says for one in found[3:]] == ["consent holds", "7 bytes of artifact are here", "to come", "to come"]
    whole = plugin.taking({"steps": [{"step": one, "detail": ""} for one in STEPS]})
    assert {one.tone for one in whole} == {"good"}


@pytest.mark.parametrize(
    ("fields", "by_page", "command"),
    [
        ({"must_name": []}, True, "latticectl upgrade acme.demo"),
        ({"must_name": ["kv:write"]}, True, "latticectl upgrade acme.demo --accept kv:write"),
        ({"must_name": ["http:egress"]}, False, "latticectl upgrade acme.demo --accept http:egress"),
        ({"must_name": ["host=a.example:443"]}, False, "latticectl upgrade acme.demo --accept host=a.example:443"),
        ({"needs_downgrade": True}, False, "latticectl upgrade acme.demo --allow-downgrade"),
        ({"bad": {"code": "rolled_back", "reason": "", "at": ""}}, False, "latticectl upgrade acme.demo --retry"),
        ({"must_name": ["$(reboot)"]}, False, "latticectl upgrade acme.demo --accept '$(reboot)'"),
    ],
)
def test_a_page_takes_only_candidates_that_ask_for_no_host_risk(fields: dict[str, object], by_page: bool, command: str):  # noqa: FBT001 - a column
    one = api_server.plugin(candidate={**api_server.CANDIDATE, "adds": [], **fields})
    found = plugin.candidate(one)
    assert found is not None
    shown = f"latticectl upgrade acme.demo --identity {api_server.CANDIDATE['identity']}"
    assert (found.by_page, found.command) == (by_page, command.replace("latticectl upgrade acme.demo", shown))


@given(st.lists(st.none() | st.floats(0, 1e17), max_size=200))
def test_no_plot_leaves_its_frame(values: list[float | None]):
    found = plots.plot("x", values, 96, plots.percent)
    drawn = found.path.replace("M", " ").replace("L", " ").split()
    numbers = [float(one) for one in drawn]
    assert all(0 <= x <= plots.WIDTH + 1 for x in numbers[::2])
    assert all(0 <= y <= plots.HEIGHT for y in numbers[1::2])
    assert found.known is any(one is not None for one in values[-96:])


def test_what_is_not_known_is_a_gap_and_what_is_small_is_not_nothing():
    found = plots.plot("x", [1000.0, None, 0.0, 0.001], 4, plots.times)
    runs = found.path.split("M")[1:]
    assert len(runs) == 2
    zero, little = (float(point.split()[1]) for point in runs[1].split("L"))
    assert little < zero
    assert plots.plot("x", [], 4, plots.times).label == "x: not known yet"


@pytest.mark.parametrize(
    ("form", "method", "path", "body"),
    [
        ({"act": ["install"]}, "POST", "plugins/lifecycle", {"id": "acme.demo", "status": "installed"}),
        (
            {"act": ["activate"], "identity": ["5f0c"]},
            "POST",
            "plugins/lifecycle",
            {"id": "acme.demo", "status": "active", "identity": "5f0c"},
        ),
        ({"act": ["restart"]}, "POST", "plugins/by-id/acme.demo/restart", {}),
        (
            {"act": ["upgrade"], "accept": ["kv:write"], "identity": ["5f0c"]},
            "POST",
            "plugins/by-id/acme.demo/upgrade",
            {"accept": ["kv:write"], "identity": "5f0c"},
        ),
        ({"act": ["rollback"], "to": ["1.0.0"]}, "POST", "plugins/by-id/acme.demo/rollback", {"to": "1.0.0"}),
        ({"act": ["retry_dns"], "name": ["a.example"]}, "POST", "ddns/acme.demo/a.example/retry", {}),
        ({"act": ["trim"], "name": ["kv:write"]}, "PUT", "plugins/by-id/acme.demo/grants", {"trim": ["kv:write"]}),
        (
            {"act": ["invoke"], "action": ["greet"], "payload": ['{"a": [1]}']},
            "POST",
            "plugins/by-id/acme.demo/invoke",
            {"action": "greet", "payload": {"a": [1]}},
        ),
    ],
)
def test_a_form_comes_to_one_request(form: dict[str, list[str]], method: str, path: str, body: dict[str, object]):
    found = acts.on_plugin("acme.demo", form)
    assert (found.method, "/".join(found.parts), found.body) == (method, path, body)


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"act": ["nothing"]},
        {"act": ["restart", "forget"]},
        {"act": ["invoke"], "action": ["a"], "payload": ["{"]},
        {"act": ["invoke"], "action": ["a"], "payload": ["[" * 100_000]},
    ],
)
def test_a_form_that_is_none_comes_to_nothing(form: dict[str, list[str]]):
    with pytest.raises(Problem) as refused:
        acts.on_plugin("acme.demo", form)
    assert refused.value.code == "bad_form"
