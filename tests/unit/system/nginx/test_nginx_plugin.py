"""What the plugin nginx does with what it sees: health, news, certificates that are taken up."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from latticed.sdk.base import PluginError
from latticed.sdk.calls import HostError
from latticed.system.nginx.plugin import Nginx, health

CONFIRMED = "ab" * 32


NOW = 1_800_000_000


def state(*sites, ends=None, unusable=False, **target):
    """Sites as (name, served, due)."""
    more = {"domains": [], "unusable": unusable, "expires_at": ends}
    live = {"sites": [{"name": name, "served": served, "due": due, **more} for name, served, due in sites]}
    return {"kind": "nginx", "live": live, "target": {"confirmed": CONFIRMED, "unconfirmed": "", **target}}


class Host:
    """Answers with each state in turn, and keeps what it was asked for."""

    def __init__(self, *states):
        self.states = list(states)
        self.applied, self.news, self.titles, self.planned, self.kept = [], [], [], [], {}
        self.network = SimpleNamespace(state=self._state, apply=self._apply, plan=self._plan, plans=self._plans)
        self.notify = SimpleNamespace(send=self._send)
        self.kv = SimpleNamespace(get=self._get, put=self._put)

    async def _state(self, kind):
        assert kind == "nginx"
        found = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(found, Exception):
            raise found
        return found

    async def _apply(self, sha256):
        self.applied.append(sha256)

    async def _plan(self, kind, intent):
        self.planned.append((kind, intent))
        return {"ok": True, "sha256": CONFIRMED, "state": "planned"}

    async def _plans(self):
        return {"plans": [{"state": "planned"}, {"state": "stale"}]}

    async def _send(self, title, body, *, event, severity="warning", dedupe=""):
        self.news.append((body, event))
        self.titles.append(title)

    async def _get(self, key):
        return self.kept.get(key)

    async def _put(self, key, value):
        self.kept[key] = value


def plugin(host, **config):
    return Nginx(host, id="latticed.nginx", capabilities=(), config=config)


async def looked(made, *, times=1):
    """What `run` does at each look."""
    for _ in range(times):
        seen = await made._taken_up(await made.host.network.state("nginx"))
        await made._tell(seen)
        await made._tell_of_ends(seen)


@pytest.mark.parametrize(
    ("seen", "status", "word"),
    [
        (state(("a", True, False)), "healthy", "1 sites"),
        (state(("a", True, False), ("b", False, False)), "degraded", "503: b"),
        (state(*((f"s{index}", False, False) for index in range(15))), "degraded", "and 5 more"),
        (state(unconfirmed="cd" * 32, deadline_s=7), "degraded", "undone in 7 s"),
        (state(confirmed=""), "degraded", "latticectl apply latticed.nginx"),
        (state(drifted=True), "degraded", "drift"),
        (state(("a", True, False), unusable=True), "degraded", "does not fit its key"),
        (state(("a", True, False), ends=NOW), "degraded", "has ended: a"),
        (state(("a", True, False), ends=NOW + 1), "healthy", "1 sites"),
        ({"kind": "nginx", "target": None}, "degraded", "latticed-apply does not run"),
    ],
)
def test_health_says_what_is_the_matter(seen, status, word):
    found = health(seen, now_s=NOW)
    assert found.status == status
    assert word in found.message


async def test_the_configuration_is_planned_as_it_is():
    host = Host(state())
    assert (await plugin(host, sites=[]).do_plan(None))["sha256"] == CONFIRMED
    assert host.planned == [("nginx", {"sites": []})]


async def test_published_files_are_planned_as_they_are_with_all_pages():
    host = Host(state())
    pages = [
        {"files": [{"path": path, "sha256": "ab" * 32}], "next": after} for path, after in (("a", "a"), ("b", None))
    ]
    asked = []

    async def call(name, **params):
        asked.append((name, params["plugin"], params["after"], params["digests"]))
        return {**pages[len(asked) - 1], "publisher": "acme"}

    host.call = call
    sites = [{"name": "x", "publish": "acme.site"}, {"name": "y", "locations": [{"publish": "acme.site"}]}]
    await plugin(host, sites=sites).do_plan(None)
    assert asked == [("static.list", "acme.site", "", True), ("static.list", "acme.site", "a", True)]
    files = {"a": "ab" * 32, "b": "ab" * 32}
    assert host.planned[0][1]["published"] == [{"plugin": "acme.site", "publisher": "acme", "files": files}]


async def test_files_that_may_not_be_read_name_the_permit():
    host = Host(state())

    async def call(_name, **_params):
        raise HostError("bad_params", "not shared")

    host.call = call
    with pytest.raises(PluginError, match=r"share=acme\.site"):
        await plugin(host, sites=[{"name": "x", "publish": "acme.site"}]).do_plan(None)


async def test_a_renewed_certificate_is_taken_up_by_the_confirmed_plan_once():
    host = Host(state(("a", True, True)), state(("a", True, False)))
    await looked(plugin(host), times=3)
    assert host.applied == [CONFIRMED]


@pytest.mark.parametrize("target", [{"confirmed": ""}, {"unconfirmed": "cd" * 32}])
async def test_nothing_is_applied_while_a_change_waits_or_none_was_confirmed(target):
    host = Host(state(("a", True, True), **target))
    await looked(plugin(host))
    assert host.applied == []


async def test_a_site_that_is_lost_is_told_once_and_again_after_it_came_back():
    good, bad = state(("a", True, False)), state(("a", False, False))
    host = Host(good, bad, bad, good, bad)
    await looked(plugin(host), times=5)
    assert [event for _, event in host.news] == ["nginx.site", "nginx.site"]
    assert host.news[0][0].startswith("a: ")


async def test_titles_name_the_sites_so_that_no_message_is_taken_for_a_repeat_of_another():
    names, ends = ["a", "b", "c"], int(time.time()) + 6 * 86_400 + 3_600
    good = state(*((name, True, False) for name in names))
    host = Host(good, state(("a", False, False), *((name, True, False) for name in names[1:])))
    await looked(plugin(host), times=2)
    host.states = [good, state(*((name, False, False) for name in names))]
    await looked(plugin(host), times=2)
    host.states = [state(("a", True, False), ends=ends)]
    await looked(plugin(host))
    host.states = [state(("b", True, False), ("c", True, False), ends=ends + 1)]
    await looked(plugin(host))
    assert host.titles == [
        "a answers 503",
        "a and 2 more sites answer 503",
        "The certificate of a ends in 6 days",
        "The certificate of b and 1 more site ends in 6 days",
    ]


async def test_what_was_so_at_the_start_is_no_news():
    host = Host(state(("a", False, False)))
    await looked(plugin(host), times=3)
    assert host.news == []


async def test_the_end_of_a_certificate_is_told_once_also_by_a_plugin_that_was_started_again():
    soon = state(("a", True, False), ends=int(time.time()) + 6 * 86_400 + 3_600)
    host = Host(soon)
    for _ in range(2):
        await looked(plugin(host), times=2)
    assert host.news == [("a: the certificate ends in 6 days", "nginx.certificate")]
    host.states = [{"kind": "nginx", "target": None}, soon]
    await looked(plugin(host), times=2)
    assert len(host.news) == 1


async def test_ends_of_certificates_are_measured_also_while_the_helper_does_not_answer():
    host = Host(state(("a", True, False), ("b", True, False), ends=NOW), {"kind": "nginx", "target": None})
    made = plugin(host)
    assert made.measures()[0].values == {}
    await looked(made, times=2)
    (measure,) = made.measures()
    assert (measure.name, measure.values) == ("nginx_certificate_ends_seconds", {("a",): NOW, ("b",): NOW})


async def test_a_helper_that_does_not_answer_is_a_failed_action_and_a_degraded_health():
    host = Host(HostError("service_unavailable", "no helper"))
    made = plugin(host)
    assert (await made.check()).status == "degraded"
    with pytest.raises(PluginError, match="no helper"):
        await made.do_status(None)


async def test_status_has_sites_target_and_open_plans():
    found = await plugin(Host(state(("a", True, False)))).do_status(None)
    assert [one["name"] for one in found["sites"]] == ["a"]
    assert found["plans"] == [{"state": "planned"}]
