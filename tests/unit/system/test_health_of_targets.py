"""What the health of plugins with a target on the host says where the helper has a problem with it."""

from __future__ import annotations

import pytest

from latticed.system.nft_guard import plugin as nft_guard
from latticed.system.nginx import plugin as nginx
from latticed.system.proxy import plugin as proxy
from latticed.system.wireguard import plugin as wireguard

HEALTH = {
    "nft": nft_guard._health,
    "nginx": lambda state: nginx.health(state, now_s=0),
    "proxy": proxy._health,
    "wireguard": wireguard._health,
}
LIVE = {"answers": True, "sound": True, "connections": []}


@pytest.mark.parametrize("kind", HEALTH)
@pytest.mark.parametrize("drifted", [True, None])
def test_what_cannot_be_put_back_or_looked_at_is_degraded_and_says_so(kind, drifted):
    target = {"confirmed": "ab" * 32, "unconfirmed": "", "drifted": False, "problem": ""}
    assert HEALTH[kind]({"target": target, "live": LIVE}).status == "healthy"
    found = HEALTH[kind]({"target": {**target, "drifted": drifted, "problem": "it is so"}, "live": LIVE})
    assert (found.status, found.message) == ("degraded", "it is so: journalctl -t latticed-apply")
