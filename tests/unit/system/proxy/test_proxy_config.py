"""What an operator writes: the schema takes what the plugin takes, and the how-to has a file that can be applied."""

from __future__ import annotations

import json
import random
import tomllib
from pathlib import Path

import jsonschema_rs
import pytest

from latticed.system import proxy
from latticed.system.proxy import accounts, check, decode, usage
from latticed.system.proxy.accounts import Account
from latticed.system.proxy.plugin import _form
from tests.house import pages, proxies

SCHEMA = json.loads((proxy.BUILTIN.folder / "manifest.json").read_bytes())["config"]
HOW_TO = Path(__file__).parents[4] / "docs/system-plugins/how-to/proxy.md"


@pytest.mark.parametrize("seed", range(40))
def test_the_schema_takes_every_intent_that_the_plugin_takes(seed):
    document = proxies.sound(random.Random(seed))
    jsonschema_rs.validator_for(SCHEMA).validate({**document, "public_url": "https://sub.example.org"})


def test_the_file_of_the_how_to_is_one_that_can_be_applied():
    (text,) = [one.text for one in pages.blocks(HOW_TO) if one.language == "toml" and "[[inbounds]]" in one.text]
    document = tomllib.loads(text)
    jsonschema_rs.validator_for(SCHEMA).validate(document)
    del document["public_url"]
    assert check.check(decode.read(document)) == ()


@pytest.mark.parametrize(
    ("query", "agent", "form"),
    [
        ([], "", "base64"),
        ([["format", "clash"]], "sing-box 1.14", "clash"),
        ([["format", "nothing"]], "SFA/1.12 (sing-box 1.14)", "sing-box"),
        ([], "mihomo/1.19", "clash"),
        ([], "v2rayNG/1.9", "base64"),
    ],
)
def test_a_subscription_has_the_form_that_is_asked_for_or_that_the_program_reads(query, agent, form):
    assert _form({"query": query, "headers": {"user-agent": agent}}) == form


def test_accounts_that_say_nothing_are_not_kept_and_damaged_ones_are_refused():
    kept = {"anna": Account(off=True), "ben": Account(), "cleo": Account(token=accounts.token_hash("x"), told="time 5")}
    assert accounts.read(accounts.written(kept)) == {name: kept[name] for name in ("anna", "cleo")}
    for broken in ("[]", "5", '{"anna": 5}', '{"anna": {"more": 1}}', "{"):
        with pytest.raises(ValueError, match=r".*"):
            accounts.read(broken)
    assert accounts.read(None) == {}


def test_groups_of_users_are_taken_apart_and_joined_again():
    told = [usage.Connection(id=f"id-{one}", user=f"user-{one % 50}", up_bytes=one, down_bytes=1) for one in range(500)]
    state = usage.ticked(usage.polled(usage.Usage(), told), {"user-3": 10}, 20)
    parts = usage.split(state)
    assert usage.joined(parts) == state
    assert sum(1 for one in parts if one.used) > usage.GROUPS // 2
