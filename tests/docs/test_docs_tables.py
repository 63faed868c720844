"""Tables, diagrams and examples in the docs agree with the code."""

from __future__ import annotations

import importlib
import json
import os
import re
import tomllib
from dataclasses import fields, is_dataclass

import pytest

from latticed import daemon, settings, wire
from latticed.bundle import decode, write
from latticed.ctl import exit_codes
from latticed.kit import rendering
from latticed.model import lifecycle, verdict
from latticed.model.errors import Problem
from latticed.rpc import access, problems, routes
from latticed.settings import live, shapes
from latticed.trust import policy
from tests.house import bundles, pages

load = importlib.import_module("latticed.settings.load")  # the package re-exports its function of that name

SETTINGS, PLUGINS, API = "docs/operate/settings.md", "docs/write/plugins.md", "docs/reference/api.md"
ACCESS, AUDIT = "docs/operate/access.md", "docs/operate/audit.md"


def _number(value) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _bounds(rules) -> str:
    if rules["low"] is not None:
        return f"{_number(rules['low'])} to {_number(rules['high'])}"
    return ", ".join(rules["one_of"]) or "-"


def _settings():
    """(key, default, bounds) of every setting, as the page writes them."""
    for name in load._PATHS:
        yield name, "see below", "absolute path"
    for section in fields(shapes.Settings):
        if is_dataclass(section.default):
            yield from _of_section(section.name, section.default)


def _of_section(name, part):
    for key in fields(part):
        value = getattr(part, key.name)
        if is_dataclass(value):
            yield from _of_section(f"{name}.{key.name}", value)
        else:
            yield f"{name}.{key.name}", json.dumps(value), _bounds(key.metadata)


def test_table_of_settings_equals_the_code():
    assert [row[:3] for row in pages.table(SETTINGS, "key")] == list(_settings())


def test_table_of_environment_variables_equals_the_code():
    known = {**{name: key for key, name in load._ENVIRONMENT.items()}, **{n: k for k, n in load._SYSTEMD.items()}}
    assert dict(pages.table(SETTINGS, "variable")) == known


def test_sections_that_wait_for_a_restart_equal_the_code():
    text = (pages.CHECKOUT / SETTINGS).read_text(encoding="utf-8")
    sentence = re.search(r"a reload does not change: (.*?)\. All others", text, re.DOTALL)
    assert sentence
    keys = [key for key, *_ in _settings()]
    changing = {key.partition(".")[0] for key in keys if live.takes_effect(key)}
    waiting = {key.partition(".")[0] for key in keys if "." in key} - changing
    assert set(re.findall(r"`\[(\w+)\]`", sentence[1])) == waiting


def test_exit_codes_on_the_page_equal_the_code():
    documented = {int(code) for code in pages.column(SETTINGS, "exit code of latticed")}
    assert documented == {0, daemon.FAILED, 2, *daemon.EXIT_CODES.values()}
    assert [int(code) for code in pages.column(SETTINGS, "exit code of latticectl")] == list(exit_codes.ExitCode)


def test_table_of_scopes_equals_the_code():
    assert pages.column(ACCESS, "scope") == list(access.BY_WORD)


def test_settings_files_on_pages_are_valid(tmp_path):
    """Each TOML block, as a settings file of its own."""
    for block in pages.named("toml"):
        assert tomllib.loads(block.text)
        file = tmp_path / "latticed.toml"
        file.write_text(block.text)
        loaded = settings.load(file, {"HOME": str(tmp_path)}, os.geteuid())
        assert loaded.config_file == file
    assert len(pages.named("toml")) == 9
    file.write_text("[access]\nown_users = false\n")
    with pytest.raises(Problem, match="own_users"):
        settings.load(file, {"HOME": str(tmp_path)}, os.geteuid())


def test_journal_fields_and_events_on_the_page_exist_in_the_code():
    text = pages.prose(pages.CHECKOUT / AUDIT)
    fields_named = re.search(r"Journal fields:\s(.*?)\.\n", text, re.DOTALL)
    assert fields_named
    assert set(re.findall(r"LATTICED_(\w+)", fields_named[1])) == {name.upper() for name in rendering.FIELDS}
    source = "".join(path.read_text(encoding="utf-8") for path in (pages.CHECKOUT / "latticed").rglob("*.py"))
    for cell in pages.column(AUDIT, "event"):
        for event in cell.split(", "):
            assert f'"{event}"' in source, event


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


def test_table_of_routes_equals_the_code():
    words = {scope: word for word, scope in access.BY_WORD.items()} | {
        access.Scope.NONE: "-",
        access.Scope.OPERATE: "operate",
        access.Scope.ALL: "all",
    }
    expected = [(route.method, route.path, words[route.scope]) for route in routes.ROUTES]
    assert [row[:3] for row in pages.table(API, "method")] == expected


def test_table_of_problem_codes_equals_the_code():
    expected = [
        (code, str(int(status))) for code, status in problems.STATUS_OF.items() if code not in set(verdict.Code)
    ]
    assert pages.table(API, "code") == expected


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
