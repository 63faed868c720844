"""What nginx's `narrows` takes for narrowing serves nobody anything that the approved intent keeps from him."""

from __future__ import annotations

import copy
import ipaddress
import random

import pytest

from latticed.system.nginx import check, decode, narrows
from tests.house import nginxes

CLIENTS = [
    ipaddress.ip_address(one) for one in ("192.0.2.9", "10.0.0.7", "10.9.9.9", "2001:db8::9", "203.0.113.5", "fd00::1")
]
HOSTS = (
    "shop.example.org",
    "a.shop.example.net",
    "wiki-2.lan",
    "a-b.example.org",
    "files.example.org",
    "x.example.com",
)
PATHS = ("/", "/api", "/api/", "/apix", "/static/x.css", "/v1/(x)*", "/a-b_c~")


def answer(intent, client, host, path):
    """What a request gets, written anew from nginx's documentation; None for nothing at all."""
    exact = [one for one in intent.sites if host in one.domains]
    below = [
        (len(domain), one)
        for one in intent.sites
        for domain in one.domains
        if domain[:2] == "*." and host.endswith(domain[1:])
    ]
    site = exact[0] if exact else max(below, key=lambda one: one[0])[1] if below else None
    if site is None or not site.enabled:
        return None
    found = [one for one in site.locations if one.match == "exact" and one.path == path]
    if not found:
        found = [one for one in site.locations if one.match == "prefix" and path.startswith(one.path)]
        found.sort(key=lambda one: -len(one.path))
    handler, access = (found[0].handler, found[0].access or site.access) if found else (site.handler, site.access)
    if access:
        (allowed,) = [one.allow for one in intent.access if one.name == access]
        if not any(client in network for network in allowed):
            return None
    return (site.tls, site.websockets, site.max_body_mb, handler)


def mutated(rng, document):
    """The document with one to three changes, in either direction."""
    changed = copy.deepcopy(document)
    for _ in range(rng.randint(1, 3)):
        site = rng.choice(changed["sites"]) if changed["sites"] else None
        listed = rng.choice(changed["access"]) if changed["access"] else None
        match rng.randint(0, 9):
            case 0 if site:
                site["enabled"] = not site["enabled"]
            case 1 if listed and listed["allow"]:
                listed["allow"].pop()
            case 2 if listed:
                listed["allow"] = list({*listed["allow"], "10.0.0.7/32"})
            case 3 if site and listed:
                site["access"] = listed["name"]
            case 4 if site:
                site.pop("access", None)
            case 5 if site and site["locations"]:
                site["locations"].pop()
            case 6 if site:
                changed["sites"].remove(site)
            case 7 if site and site["locations"] and listed:
                site["locations"][0]["access"] = listed["name"]
            case 8 if site and len(site["domains"]) > 1:
                site["domains"].pop()
            case 9:
                rng.shuffle(changed["sites"])
    return changed


@pytest.mark.parametrize("seed", range(400))
def test_nobody_is_served_what_was_kept_from_him(seed):
    rng = random.Random(seed)
    document = nginxes.sound(rng)
    approved, new = decode.read(document), decode.read(mutated(rng, document))
    if check.check(new, nginxes.PLACE) or not narrows.narrows(approved, new):
        return
    for client in CLIENTS:
        for host in HOSTS:
            for path in PATHS:
                got = answer(new, client, host, path)
                assert got is None or got == answer(approved, client, host, path)


@pytest.mark.parametrize("seed", range(50))
def test_the_same_intent_narrows_whatever_its_order(seed):
    rng = random.Random(seed)
    document = nginxes.sound(rng)
    other = {**document, "sites": rng.sample(document["sites"], len(document["sites"]))}
    assert narrows.narrows(decode.read(document), decode.read(other))


def told(before, after):
    return narrows.narrows(decode.read(before), decode.read(after))


def test_a_site_that_is_switched_off_and_a_shorter_list_need_no_approval():
    shop, wide = nginxes.site(access="office"), {"name": "office", "allow": ["10.0.0.0/8", "192.0.2.0/24"]}
    before = nginxes.document(shop, access=[wide])
    assert told(before, nginxes.document({**shop, "enabled": False}, access=[wide]))
    assert told(before, nginxes.document(shop, access=[{**wide, "allow": ["10.1.0.0/16"]}]))
    assert told(nginxes.document(nginxes.site()), before)


@pytest.mark.parametrize(
    "change",
    [
        {"enabled": True},
        {"access": ""},
        {"domains": ["shop.example.org", "b.example.org"]},
        {"websockets": True},
        {"answer": 404},
        {"locations": []},
        {"tls": nginxes.tls()},
    ],
)
def test_everything_else_does(change):
    shop = nginxes.site(locations=[{"path": "/admin", "answer": 404}], access="office")
    lists = [{"name": "office", "allow": ["10.0.0.0/8"]}]
    before = nginxes.document({**shop, "enabled": "enabled" not in change}, access=lists)
    after = {**shop, **change}
    if after["access"] == "":
        del after["access"]
    if "answer" in change:
        del after["upstream"]
    assert not told(before, nginxes.document(after, access=lists))


def test_a_site_that_goes_would_leave_its_names_to_another():
    star = nginxes.site("star", domains=["*.example.org"])
    assert not told(nginxes.document(nginxes.site(), star), nginxes.document(star))
