"""Tables, diagrams and examples in the docs agree with the code."""

from __future__ import annotations

import json
import os
import re
import tomllib
from dataclasses import fields

import pytest

from latticed import settings, wire
from latticed.bundle import decode, write
from latticed.market import sources
from latticed.model import lifecycle
from latticed.model.errors import Problem
from latticed.rpc import problems
from latticed.settings import shapes
from latticed.trust import keys, policy
from tests.house import bundles, pages

SETTINGS, PLUGINS, API = "docs/operate/settings.md", "docs/write/plugins.md", "docs/reference/api.md"
ACCESS, AUDIT = "docs/operate/access.md", "docs/operate/audit.md"


def test_settings_files_on_pages_are_valid(tmp_path):
    """Each TOML block, as a settings file of its own."""
    for block in pages.named("toml"):
        assert tomllib.loads(block.text)
        file = tmp_path / "latticed.toml"
        file.write_text(block.text)
        loaded = settings.load(file, {"HOME": str(tmp_path)}, os.geteuid())
        assert loaded.config_file == file
        assert [one for one in sources.of_settings(loaded.market.sources).values() if isinstance(one, Problem)] == []
    assert len(pages.named("toml")) > 5
    file.write_text("[access]\nown_users = false\n")
    with pytest.raises(Problem, match="own_users"):
        settings.load(file, {"HOME": str(tmp_path)}, os.geteuid())


def test_index_example_has_a_key_that_can_be_one():
    (example,) = (one for one in pages.named("json") if "lattice.plugin.index.v1" in one.text)
    for publisher in json.loads(example.text)["publishers"]:
        assert keys.decode_public(publisher["public_key_ed25519"])


def test_trust_policy_example_is_valid_and_has_the_samples_key():
    (block,) = pages.named("json", "trust")
    example = policy.decode(block.text.encode())
    assert example.publishers["acme"].may_sign("acme.demo")
    (committed,) = policy.decode((pages.CHECKOUT / "plugins-sample/trust.json").read_bytes()).publishers.values()
    assert committed.keys == example.publishers["acme"].keys, "the page says that it is the samples' key"


def test_lifecycle_diagram_equals_the_transitions():
    (block,) = pages.named("mermaid")
    drawn = {tuple(arrow) for arrow in re.findall(r"^ +(\S+) --> (\S+)$", block.text, re.MULTILINE)}
    table = {(old.value, new.value) for old, following in lifecycle.TRANSITIONS.items() for new in following}
    assert drawn == table | {("[*]", "verified")}


def test_schedules_of_the_page_are_valid():
    (block,) = pages.named("json", "schedules")
    signed = {"publisher": "acme", "digest_sha256": "ab" * 32, "signature_ed25519": "x"}
    raw = bundles.manifest_v2(**signed, schedules=json.loads(block.text))
    assert len(decode.decode(json.dumps(raw).encode())[1].schedules) == 3


def test_manifest_example_equals_that_of_a_sample():
    (block,) = pages.named("json", "manifest")
    example = json.loads(block.text)
    sample = json.loads((pages.CHECKOUT / "plugins-sample/web-check/manifest.json").read_text())
    unsigned = {name: value for name, value in sample.items() if name not in {"digest_sha256", "signature_ed25519"}}
    assert example == unsigned
    decode.decode(write.render(sample))


def test_table_of_types_and_runners_equals_the_defaults():
    """It says which runners are not built in."""
    wanted = {one.name: one.default for one in fields(shapes.RunnerSettings)}
    rows = pages.table(PLUGINS, "type")
    assert {row[0]: row[2] for row in rows} == wanted
    for plugin_type, _, runner, said in rows:
        built_in = runner in {"noop", "process", "wasm", "worker"}
        assert said == ("built in" if built_in else "not built in: held by noop"), plugin_type


def test_api_message_examples_have_no_fields_but_the_shared_ones():
    """They decode into the messages that daemon and latticectl share, and encode to the same."""
    (shown,) = pages.named("json", "problem")
    plain = json.loads(shown.text)
    assert wire.encode(wire.decode(wire.ProblemView, plain)) == plain
    assert problems.STATUS_OF[plain["code"]] == plain["status"]
    (listing,) = pages.named("json", "plugin")
    (row,) = json.loads(listing.text)
    runtime = wire.decode(wire.RuntimeView, row["runtime"])
    assert wire.encode(wire.decode(wire.PluginView, {**row, "runtime": runtime})) == row
