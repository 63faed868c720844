"""The internet within a test: public addresses with real servers and a real DNS, for http.do to reach."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest

from latticed.host.call import Caller, HostError
from latticed.host.egress.client import EgressClient, EgressLimits
from latticed.host.egress.guard import Guard
from latticed.host.http.calls import HttpCalls
from latticed.model.egress import EgressRights
from tests.house import dials, nameservers, origins, plugin_secrets

PUBLIC = "93.184.215.14"
OTHER = "93.184.215.20"
PUBLIC6 = "2606:2800:220:1:248:1893:25c8:1946"
PRIVATE = "192.168.1.1"
WIRESERVER = "168.63.129.16"
METADATA = "169.254.169.254"
ADDRESSES = (*(f"{one}/32" for one in (PUBLIC, OTHER, PRIVATE, WIRESERVER, METADATA)), f"{PUBLIC6}/128")
"""What the network namespace has, so that a blocked address would answer if it were ever dialled."""

ANYWHERE = EgressRights(hosts=("*",))
CALLER = Caller(plugin_id="acme.fetch")
NAMES = ("example.com", "other.example.net", "a.example.net", "xn--mnchen-3ya.example")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """http.do as a plugin has it, and what the servers received."""

    http: HttpCalls
    web: origins.Origin
    secure: origins.Origin
    names: nameservers.Nameserver
    dialled: list[dials.Dial]
    contacted: list[str]

    async def do(self, url, **params):
        """The result of http.do."""
        return await call(self.http, url=url, **params)

    async def refused(self, url, **params):
        """`code: message` of the denial."""
        with pytest.raises(HostError) as caught:
            await self.do(url, **params)
        return str(caught.value)

    @property
    def seen(self) -> list[tuple[str, str, str]]:
        """(Host, method, path) of each request that arrived anywhere."""
        return [(one.header["host"], one.method, one.path) for one in [*self.web.seen, *self.secure.seen]]


async def call(http: HttpCalls, *, caller=CALLER, **params):
    """One http.do, with its parameters decoded as the Gate does it."""
    import msgspec

    (served,) = http.calls()
    return await served.answer(caller, msgspec.convert(params, served.params, strict=True))


@contextlib.asynccontextmanager
async def opened(
    zone: dict[str, list],
    routes: dict[tuple[str, str], bytes | origins.Say] | None = None,
    *,
    rights: EgressRights = ANYWHERE,
    limits: EgressLimits | None = None,
    own_addresses: Callable = frozenset,
    secrets_of: Callable = plugin_secrets.no_secrets,
) -> AsyncIterator[World]:
    """Servers at port 80 and 443 of all addresses, answering by (host, path); call within a namespace (`netns.run`)."""
    authority = origins.Authority()

    async def say(request, writer):
        said = (routes or {}).get((request.header["host"], request.path), origins.answer(b"fine"))
        await (origins.saying(said) if isinstance(said, bytes) else said)(request, writer)

    contacted: list[str] = []
    async with (
        nameservers.serving(zone) as names,
        origins.serving(say, at=((None, 80),)) as web,
        origins.serving(say, at=((None, 443),), tls=authority.server(*NAMES)) as secure,
    ):
        resolver = nameservers.AskingResolver(names.address)
        guard = Guard(resolver=resolver, own_addresses=own_addresses, lookup_s=5.0)
        async with EgressClient(guard, tls=authority.trust()) as client:
            http = HttpCalls(
                client,
                rights_of=lambda caller: rights,
                limits=limits or EgressLimits(),
                secrets_of=secrets_of,
                contacted=lambda caller, target: contacted.append(target),
            )
            with dials.watched(may_leave=True) as dialled:
                yield World(http=http, web=web, secure=secure, names=names, dialled=dialled, contacted=contacted)
