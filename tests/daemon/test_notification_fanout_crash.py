"""Thousands of notifications, one channel that hangs, one that refuses, and many times kill -9 in between."""

from __future__ import annotations

import re

import pytest

from tests.house import bundles, daemons, fanouts, filled_queue, long, processes, push_services

pytestmark = [pytest.mark.daemon, pytest.mark.slow]

ITEMS = long.times(2_500, 5_000)
KILLS = long.times(5, 10)
SETTINGS = "[notify]\nplugin_items = 100000\ntotal_items = 100000\n"


def instead(services):
    def answer(service, _handler):
        if service == "gotify":
            services.ending.wait(60)
            return 503, {}, b""
        if service == "slack":
            return 403, {}, b"action_prohibited"
        return None

    return answer


def items_of(one):
    """How many items a message stands for."""
    found = re.match(r"(\d+) notifications", one.title)
    return int(found[1]) if found else 1


def has_all(fanout, name):
    """Whether nothing waits for a channel any more, and every item has been told there."""
    told = {one.id: items_of(one) for one in fanout.services.of(name)}
    return sum(told.values()) >= ITEMS and fanout.channel(name)["waiting"] == 0


@pytest.mark.timeout(600)
def test_nothing_is_lost_or_told_twice_while_others_hang_refuse_and_the_daemon_is_killed():
    acme = bundles.author("acme")
    with push_services.serving() as services, daemons.placed(settings=SETTINGS) as place:
        services.instead = instead(services)
        every = services.channels()
        chosen = {name: every[name] | {"per_minute": 120} for name in ("webhook", "ntfy", "gotify", "slack")}
        place.builtins = ("latticed", "")
        place.trust_us(acme)
        with place.running() as daemon:
            intent = {"channels": chosen, "default": sorted(chosen), "window_s": 0}
            fanout = fanouts.prepare(place, daemon, services, acme, **intent)
            assert daemon.stop() == 0
        filled = place.ran([*place.python(), filled_queue.__file__, str(place.state), fanouts.SENDER, str(ITEMS)])
        assert filled.returncode == 0, filled.stderr
        for _ in range(KILLS):
            with place.running() as daemon:
                before = len(services.taken)
                daemon.until(lambda before=before: len(services.taken) >= before + 20, "some to be delivered")
                daemon.kill()
        with place.running() as daemon:
            fanout.daemon = daemon
            for name in ("webhook", "ntfy"):
                processes.until(lambda name=name: has_all(fanout, name), what=f"{name} to have all", deadline_s=240)
            hanging, refusing = fanout.channel("gotify"), fanout.channel("slack")
            counts = daemon.get("/api/notifications?limit=1").json()["counts"]
            daemon.stop()
    told = {one.id: [row["title"] for row in one.plain["data"]["items"]] for one in services.of("webhook")}
    wanted = {f"item {n}" for n in range(ITEMS)}
    titles = [title for found in told.values() for title in found if title in wanted]
    assert sorted(titles) == sorted(wanted)
    # Besides, what latticed tells of the channel that refuses.
    assert ITEMS <= sum({one.id: items_of(one) for one in services.of("ntfy")}.values()) <= ITEMS + KILLS
    assert (hanging["state"], refusing["state"]) == ("failing", "degraded")
    assert hanging["waiting"] >= ITEMS
    assert counts["queued"] == 0
