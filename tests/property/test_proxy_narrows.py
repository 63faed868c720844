"""What proxies take for narrowing lets nobody in whom the approved intent keeps out, and cuts are narrowing."""

from __future__ import annotations

import copy
import json
import random

import pytest

from latticed.system.findings import IntentRefused
from latticed.system.proxy import applied, check, decode, ends, narrows, render
from latticed.system.proxy.intent import Core
from tests.house import proxies

MOMENTS = (0, 1_750_000_000, 1_850_000_000, 2**40)


def admitted(plain, now_s):
    """Who is let in where, with all that he proves himself by and that the inbound is."""
    intent = decode.read(plain)
    core = Core(intent.core)
    config = json.loads(applied.config(applied.read(render.render(intent, proxies.secrets(intent))), now_s))
    found = set()
    for inbound in config["inbounds"]:
        bare = copy.deepcopy(inbound)
        users = bare.pop("users") if core is Core.SING_BOX else bare["settings"].pop("clients")
        found |= {(json.dumps(bare, sort_keys=True), json.dumps(one, sort_keys=True)) for one in users}
    rest = {name: value for name, value in config.items() if name not in {"inbounds", "route", "routing", "dns"}}
    return found, rest


def named(admission):
    """The id of the user of an admission."""
    user = json.loads(admission[1])
    return user.get("name") or user.get("email")


@pytest.mark.parametrize("seed", range(400))
def test_nobody_is_let_in_who_was_kept_out(seed):
    rng = random.Random(seed)
    plain = proxies.sound(rng)
    changed = mutated(rng, plain)
    try:
        approved, new = decode.read(plain), decode.read(changed)
    except IntentRefused:
        return
    if check.check(new) or not narrows.narrows(approved, new):
        return
    for now_s in MOMENTS:
        before, rest_before = admitted(plain, now_s)
        after, rest_after = admitted(changed, now_s)
        assert after <= before
        assert rest_after == rest_before
    quotas = {one["id"]: one.get("quota_bytes", 2**60) for one in plain["users"]}
    assert all(
        one.get("quota_bytes", 2**60) <= quotas[one["id"]] for one in changed["users"] if one.get("enabled", True)
    )
    assert plain.get("reach_private", False) or not changed.get("reach_private", False)


def test_enough_of_what_is_changed_narrows_for_that_to_mean_something():
    narrowed = 0
    for seed in range(400):
        rng = random.Random(seed)
        plain = proxies.sound(rng)
        changed = mutated(rng, plain)
        if changed != plain and not check.check(decode.read(changed)):
            narrowed += narrows.narrows(decode.read(plain), decode.read(changed))
    assert narrowed > 40


@pytest.mark.parametrize("seed", range(200))
def test_a_cut_is_sound_and_only_takes_away_and_takes_all(seed):
    rng = random.Random(seed)
    plain = proxies.sound(rng)
    off = {one["id"] for one in plain["users"] if rng.random() < 0.4}
    before = copy.deepcopy(plain)
    cut = ends.cut(plain, off)
    assert plain == before
    approved, new = decode.read(plain), decode.read(cut)
    assert check.check(new) == ()
    assert narrows.narrows(approved, new)
    kept = {one["id"] for one in plain["users"] if one.get("enabled", True)} - off
    assert {named(one) for one in admitted(cut, 0)[0]} <= kept
    # Nobody else loses anything.
    assert {one for one in admitted(plain, 0)[0] if named(one) in kept} == admitted(cut, 0)[0]
    assert ends.cut(cut, off) == cut


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda plain: plain, True),
        (lambda plain: plain["users"][0].update(enabled=False, name="Anna B"), True),
        (lambda plain: plain["users"][0].update(expires_at=50), True),
        (lambda plain: plain["users"][0].update(expires_at=101), False),
        (lambda plain: plain["users"][0].pop("expires_at"), False),
        (lambda plain: plain["users"][0].update(quota_bytes=1_001), False),
        (lambda plain: plain["users"][0].update(quota_bytes=999), True),
        (lambda plain: plain["users"][0].update(label="anna.2"), False),
        (lambda plain: plain["users"][0].update(inbounds=["front"]), True),
        (lambda plain: plain["users"][1].pop("inbounds"), False),
        (lambda plain: plain["users"][2].update(enabled=True), False),
        (lambda plain: plain["users"].append(proxies.user("new")), False),
        (lambda plain: plain["users"].pop(0), True),
        (lambda plain: plain["inbounds"].pop(1), True),
        (lambda plain: plain["inbounds"].append(proxies.vmess()), False),
        (lambda plain: plain["inbounds"][0].update(port=444), False),
        (lambda plain: plain.update(reach_private=True), False),
        (lambda plain: plain.update(api={"port": 9_181, "secret": "${secret:PROXY_API}"}), False),
    ],
)
def test_each_change_by_itself(change, expected):
    plain = proxies.document(
        proxies.vless(),
        proxies.trojan(),
        users=[
            proxies.user("anna", expires_at=100, quota_bytes=1_000),
            proxies.user("ben", inbounds=["front"]),
            proxies.user("carl", enabled=False),
            proxies.user("dora"),
        ],
    )
    changed = copy.deepcopy(plain)
    change(changed)
    assert narrows.narrows(decode.read(plain), decode.read(changed)) is expected


def mutated(rng, plain):
    """Some changes that an operator or a plugin would make."""
    found = copy.deepcopy(plain)
    for _ in range(rng.randrange(1, 4)):
        user = rng.choice(found["users"]) if found["users"] else {}
        rng.choice(
            [
                lambda user=user: user.update(enabled=rng.random() < 0.3),
                lambda user=user: user.update(expires_at=rng.randrange(1_700_000_000, 1_900_000_000)),
                lambda user=user: user.pop("expires_at", None),
                lambda user=user: user.update(name="Other"),
                lambda user=user: user.update(inbounds=[one["tag"] for one in found["inbounds"] if rng.random() < 0.7]),
                lambda user=user: user.update(label=f"{user.get('id', 'x')}.3") if rng.random() < 0.3 else None,
                lambda: found["users"].remove(rng.choice(found["users"])) if len(found["users"]) > 1 else None,
                lambda: found["inbounds"].remove(rng.choice(found["inbounds"])) if found["inbounds"] else None,
                lambda: found.update(reach_private=rng.random() < 0.5),
                lambda: found["users"].append(proxies.user("new")) if rng.random() < 0.3 else None,
            ]
        )()
    tags = {one["tag"] for one in found["inbounds"]}
    for one in found["users"]:
        if "inbounds" in one:
            one["inbounds"] = [tag for tag in one["inbounds"] if tag in tags]
    return found
