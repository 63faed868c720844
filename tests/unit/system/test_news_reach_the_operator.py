"""What a built-in plugin has to tell reaches the operator, though the queue of notifications refuses it at first."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from latticed.sdk.calls import HostError
from latticed.system.nginx.plugin import Nginx
from latticed.system.proxy.plugin import ProxyCores
from latticed.system.wireguard.plugin import Wireguard
from tests.house import proxies, tunnels

PLAN = "ab" * 32


class Host:
    """Has a confirmed plan; refuses what it is told, or what is to be kept, as long as `is_full` or `keeps_nothing`."""

    def __init__(self):
        self.is_full = self.keeps_nothing = False
        self.told, self.kept = {}, {}
        self.intent = None
        self.notify = SimpleNamespace(send=self.send)
        self.kv = SimpleNamespace(get=self.get, get_bytes=self.get, put=self.put, delete=self.delete)

    async def send(self, title, body, *, event, severity="warning", dedupe=""):
        if self.is_full:
            raise HostError("quota_exceeded", "the queue is full")
        self.told.setdefault(dedupe or len(self.told), title)

    async def get(self, key):
        return self.kept.get(key)

    async def put(self, key, value):
        if self.keeps_nothing:
            raise HostError("quota_exceeded", "no more values")
        self.kept[key] = value if isinstance(value, bytes) else value.encode()

    async def delete(self, key):
        return self.kept.pop(key, None) is not None

    async def call(self, name, **_params):
        assert name == "network.plans"
        return {"plans": [{"sha256": PLAN, "intent": self.intent}]}


def site(host):
    made = Nginx(host, id="latticed.nginx", capabilities=(), config={})
    made._unserved = frozenset()
    one = {"name": "shop", "served": False, "expires_at": None}
    return lambda: made._tell({"target": {}, "live": {"sites": [one]}})


def user(host):
    config = proxies.document(users=[proxies.user("anna", expires_at=int(time.time()) - 60)])
    made = ProxyCores(host, id="latticed.proxy", capabilities=(), config=config)
    return made._tell


def device(host):
    member = tunnels.member("anna", 2)
    made = Wireguard(host, id="latticed.wireguard", capabilities=(), config=tunnels.document(members=[member]))
    host.intent = tunnels.document(members=[member])
    (network,) = host.intent["networks"]
    peer = {"public_key": member["public_key"], "endpoint": "198.51.100.7:51820", "handshake_at": int(time.time())}
    live = {"networks": [{"name": network["name"], "peers": [{**peer, "rx_bytes": 0, "tx_bytes": 0}]}]}
    return lambda: made._tell({"target": {"confirmed": PLAN}, "live": live})


@pytest.mark.parametrize("made", [site, user, device])
async def test_news_that_could_not_be_sent_are_sent_later_and_once(made):
    host = Host()
    tell = made(host)
    host.is_full = True
    for _ in range(2):
        with pytest.raises(HostError):
            await tell()
    assert host.told == {}
    host.is_full = False
    for _ in range(3):
        await tell()
    assert len(host.told) == 1


@pytest.mark.parametrize("made", [user, device])
async def test_news_that_cannot_be_kept_are_told_once_all_the_same(made):
    host = Host()
    tell = made(host)
    host.keeps_nothing = True
    with pytest.raises(HostError):
        await tell()
    host.keeps_nothing = False
    for _ in range(2):
        await tell()
    assert len(host.told) == 1
