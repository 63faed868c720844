"""An intent as large as they may be holds nobody else up: no turn of the daemon's loop is long."""

from __future__ import annotations

import ipaddress
import json
import time

import pytest

from tests.house import firewalled
from tests.house.nft_places import WIDE
from tests.net.test_nft_guard_plugin import STRANGER, set_up

pytestmark = [pytest.mark.root, pytest.mark.daemon, pytest.mark.timeout(180)]


def large():
    """Some 235 KiB of configuration, nearly all of it bans."""
    first, end = ipaddress.ip_address("203.0.0.0"), int(time.time()) + 86_400
    bans = [{"address": str(first + n), "expires_at": end} for n in range(4_000)]
    rules = [{"proto": "tcp", "ports": [n + 1], "remote": [f"10.{n}.0.0/16"], "comment": "x" * 100} for n in range(200)]
    found = {**WIDE, "groups": [*WIDE["groups"], {"name": "many", "rules": rules}], "bans": bans}
    found["bindings"] = {"groups": ["ssh", "web", "many"]}
    assert 230_000 < len(json.dumps(found, separators=(",", ":"))) < 256 << 10
    return found


def test_no_action_and_no_poll_of_a_large_intent_holds_the_loop_up():
    with firewalled.network() as net, set_up(net, probed=True) as site, site.helper.running():
        site.put(large())
        with site.host.daemon.turns.short(worst_s=0.050):
            plan = site.applied()
            site.until(lambda: f"plan {plan[:12]}, 4000 bans" in site.health(), "a healthy nft guard")
            site.do("test", {"from": "10.9.0.2", "to": "10.9.0.1", "port": 80, "iface": "r0"})
            site.do("ban", {"address": STRANGER, "seconds": 600})
            site.until(lambda: f"{STRANGER}/32" in site.banned(), "the ban")
            site.do("status")
            site.do("unban", {"address": STRANGER})
            polls = site.health()
            assert polls
