"""What a built-in plugin has to tell reaches the operator, though the queue of notifications refuses it at first."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from latticed.sdk.base import Health
from latticed.sdk.calls import HostError
from latticed.system.nginx.plugin import Nginx
from latticed.system.plugin import SystemPlugin
from latticed.system.proxy.plugin import ProxyCores
from latticed.system.wireguard.plugin import Wireguard
from tests.house import proxies, tunnels

PLAN = "ab" * 32


class Host:
    """Has a confirmed plan; refuses what it is told, or what is to be kept, as long as `is_full` or `keeps_nothing`."""

    def __init__(self):
        self.is_full = self.is_not_granted = self.keeps_nothing = False
        self.told, self.kept = {}, {}
        self.intent = None
        self.notify = SimpleNamespace(send=self.send)
        self.kv = SimpleNamespace(get=self.get, get_bytes=self.get, put=self.put, delete=self.delete)

    async def send(self, title, body, *, event, severity="warning", dedupe=""):
        if self.is_full:
            raise HostError("quota_exceeded", "the queue is full")
        if self.is_not_granted:
            raise HostError("capability_not_granted", "notify:send is not granted")
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


def device(host, names=("home",)):
    member = tunnels.member("anna", 2)
    (network,) = tunnels.document(members=[member])["networks"]
    host.intent = {"networks": [{**network, "name": name} for name in names]}
    made = Wireguard(host, id="latticed.wireguard", capabilities=(), config=host.intent)
    peer = {"public_key": member["public_key"], "endpoint": "198.51.100.7:51820", "handshake_at": int(time.time())}
    live = {"networks": [{"name": name, "peers": [{**peer, "rx_bytes": 0, "tx_bytes": 0}]} for name in names]}
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


@pytest.mark.parametrize("made", [site, user, device])
async def test_news_that_may_not_be_told_are_none_at_the_next_look(made):
    host = Host()
    tell = made(host)
    host.is_not_granted = True
    await tell()
    host.is_not_granted = False
    await tell()
    assert host.told == {}


async def test_news_that_cannot_be_told_hide_no_other_trouble_and_hold_up_no_other_news():
    plugin, done = SystemPlugin(None, id="latticed.nginx", capabilities=(), config={}), []

    async def refused():
        raise HostError("quota_exceeded", "the queue is full")

    async def told():
        done.append("told")

    ill = Health("degraded", "answering 503: shop")
    assert await plugin.after_news(ill, refused, told) == ill
    assert (await plugin.after_news(Health(), refused, told)).message == "quota_exceeded: the queue is full"
    assert done == ["told", "told"]


async def test_refused_news_of_one_network_hold_up_no_other():
    host, sent = Host(), []
    tell = device(host, names=("home", "office"))

    async def send(title, _body, **_more):
        if title.startswith("home"):
            raise HostError("quota_exceeded", "the queue is full")
        sent.append(title.partition(":")[0])

    host.notify.send = send
    with pytest.raises(HostError):
        await tell()
    assert sent == ["office"]


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
