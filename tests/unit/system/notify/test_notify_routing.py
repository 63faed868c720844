"""Rules of the fan-out: which channels, what is held back by quiet hours, what counts as a repeat."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.model.errors import Problem
from latticed.system.notify import check, routing
from latticed.system.notify.intent import SEVERITIES, NotifyItem

CHANNELS = {name: {"kind": "mail", "to": [f"{name}@example.org"]} for name in ("phone", "team", "log")}
NOON = datetime(2026, 1, 15, 12, 0, tzinfo=UTC)
NIGHT = {"start": "22:00", "end": "07:00", "zone": "Europe/Berlin"}


def intent(*rules, **more):
    return check.read({"channels": CHANNELS, "default": ["log"], "rules": list(rules), **more})


def item(**more):
    plain = {"id": "i1", "sender": "acme.watch", "event": "disk.full", "severity": "info", "title": "disk full"}
    return NotifyItem(**{**plain, "body": "", "created_at": "2026-01-15T12:00:00Z", **more})


def names(wanted, one, now=NOON, **more):
    return [found.name for found in routing.route(wanted, one, now, **more)]


@pytest.mark.parametrize(
    ("rule", "matches"),
    [
        ({}, True),
        ({"events": ["disk.full"]}, True),
        ({"events": ["disk.*"]}, True),
        ({"events": ["disk"]}, False),
        ({"events": ["*"]}, True),
        ({"senders": ["acme.*"]}, True),
        ({"senders": ["acme"]}, False),
        ({"severities": ["warning", "error"]}, False),
        ({"severities": ["info"], "events": ["other", "disk.full"]}, True),
        ({"events": ["disk.full"], "senders": ["other.one"]}, False),
    ],
)
def test_rule_takes_items_that_match_all_it_names(rule, matches):
    found = names(intent({"channels": ["phone"], **rule}), item())
    assert found == (["phone"] if matches else ["log"])


def test_item_gets_channels_of_all_rules_that_match_each_once():
    wanted = intent({"channels": ["phone"]}, {"channels": ["team", "phone"], "events": ["disk.*"]})
    assert names(wanted, item()) == ["phone", "team"]


def test_rule_without_channels_takes_what_is_not_critical():
    wanted = intent({"channels": [], "events": ["disk.*"]})
    assert names(wanted, item(severity="error")) == []
    assert names(wanted, item(severity="critical")) == ["log"]


@pytest.mark.parametrize(
    ("now", "hold_s"),
    [
        ("2026-01-15T20:59:59+00:00", 0),  # 21:59:59 in Berlin
        ("2026-01-15T21:00:00+00:00", 9 * 3600),
        ("2026-01-16T05:59:59+00:00", 1),
        ("2026-01-16T06:00:00+00:00", 0),
        ("2026-03-28T22:00:00+00:00", 7 * 3600),  # the night of 29 March is an hour shorter
        ("2026-10-24T21:00:00+00:00", 9 * 3600),  # and that of 25 October an hour longer
    ],
)
def test_quiet_hours_hold_back_until_they_end_by_the_clock_of_the_zone(now, hold_s):
    wanted = intent({"channels": ["phone"], "quiet": NIGHT})
    (found,) = routing.route(wanted, item(severity="error"), datetime.fromisoformat(now))
    assert (found.hold_s, found.bundle == routing.QUIET) == (hold_s, hold_s > 0)


def test_critical_is_not_held_back_by_quiet_hours():
    wanted = intent({"channels": ["phone"], "quiet": NIGHT})
    (found,) = routing.route(wanted, item(severity="critical"), datetime(2026, 1, 15, 23, 0, tzinfo=UTC))
    assert found.hold_s == 0


@given(st.integers(1_577_836_800, 2_051_222_400))
def test_no_hold_is_longer_than_a_day(at):
    """Whatever clocks change meanwhile, in hours that are missing in one night and there twice in another."""
    now = datetime.fromtimestamp(at, tz=UTC)
    quiet = intent({"channels": ["phone"], "quiet": {"start": "01:30", "end": "02:30", "zone": "Europe/Berlin"}})
    found = routing.quiet_for_s(quiet.rules[0].quiet, now)
    assert 0 <= found <= 25 * 3600


def test_repeats_are_of_one_sender_and_event_and_critical_ones_of_one_title():
    wanted = intent({"channels": ["phone"]})

    def bundle(**more):
        (found,) = routing.route(wanted, item(**more), NOON)
        return found.bundle

    assert bundle(title="a") == bundle(title="b")
    assert bundle(event="x") != bundle(event="y")
    assert bundle(sender="acme.a") != bundle(sender="acme.b")
    assert bundle(severity="critical", title="a") != bundle(severity="critical", title="b")
    (found,) = routing.route(intent(window_s=0), item(), NOON)
    assert (found.bundle, found.window_s) == ("", 0)


def test_news_of_a_degraded_channel_goes_to_another_one():
    news = item(sender="latticed", event="channel.degraded")
    assert names(intent(), news, avoid=["log"]) == ["phone"]
    assert names(intent(), news, avoid=["phone"]) == ["log"]
    assert names(intent(), news, avoid=["log", "phone", "team"]) == []
    assert names(intent(), item(event="channel.degraded"), avoid=["log"]) == ["log"], "only latticed's own is news"


@pytest.mark.parametrize(
    ("plain", "named"),
    [
        ({"channels": {}, "default": ["a"]}, "channels"),
        ({"channels": {"A b": CHANNELS["log"]}, "default": ["A b"]}, "channels"),
        ({"channels": CHANNELS, "default": []}, "default"),
        ({"channels": CHANNELS, "default": ["pager"]}, "default"),
        ({"channels": CHANNELS, "default": ["log"], "rules": [{"channels": ["pager"]}]}, "rules[0].channels"),
        (
            {"channels": CHANNELS, "default": ["log"], "rules": [{"channels": [], "title": "{{titel}}"}]},
            "rules[0].title",
        ),
        ({"channels": {"x": {"kind": "pigeon"}}, "default": ["x"]}, "pigeon"),
        ({"channels": {"x": {"kind": "mail"}}, "default": ["x"]}, "to"),
        ({"channels": CHANNELS, "default": ["log"], "colour": 1}, "colour"),
        *(
            ({"channels": CHANNELS, "default": ["log"], "rules": [{"channels": [], "quiet": {**NIGHT, **bad}}]}, named)
            for bad, named in (
                ({"zone": "Mars/Olympus"}, "rules[0].quiet.zone"),
                ({"zone": "../../etc/passwd"}, "rules[0].quiet.zone"),
                ({"zone": "Europe"}, "rules[0].quiet.zone"),
                ({"start": "24:00"}, "rules[0].quiet.start"),
                ({"end": "7:00"}, "rules[0].quiet.end"),
                ({"end": "22:00"}, "rules[0].quiet"),
            )
        ),
    ],
)
def test_configuration_that_means_nothing_is_refused_with_its_place(plain, named):
    with pytest.raises(Problem) as refused:
        check.read(plain)
    assert refused.value.code == "config_invalid"
    assert named in refused.value.reason


def test_severities_are_in_order():
    assert SEVERITIES.index("critical") > SEVERITIES.index("error") > SEVERITIES.index("warning")
