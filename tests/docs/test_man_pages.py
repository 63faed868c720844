"""The man pages have every verb, option, setting and field that the programs take, and troff accepts them."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields, is_dataclass

import msgspec
import pytest

from latticed.bundle import decode
from latticed.ctl import main as ctl
from latticed.model import manifest
from latticed.settings import shapes
from tests.house import pages

PROGRAMS = {
    "latticed": "daemon",
    "latticed-apply": "apply",
    "latticed-journal": "journal",
    "latticed-fleet": "fleet.agent",
    "latticed-controller": "fleet.controller.process",
}
SECTIONS = {"latticectl": 1, "latticed.toml": 5, "latticed-manifest": 5, **dict.fromkeys(PROGRAMS, 8)}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """{name: source} of all pages."""
    place = tmp_path_factory.mktemp("man")
    subprocess.run([sys.executable, "-P", pages.CHECKOUT / "packaging/manual.py", place], check=True)
    return {path.stem: path for path in sorted(place.glob("man*/*"))}


@pytest.fixture(scope="module")
def plain(sources):
    """{name: text} of all pages, without troff's escapes."""
    texts = {name: path.read_text(encoding="utf-8") for name, path in sources.items()}
    return {name: text.replace("\\-", "-").replace("\\(aq", "'") for name, text in texts.items()}


def test_there_is_a_page_for_each_program_and_file(sources):
    assert {path.stem: int(path.suffix[1:]) for path in sources.values()} == SECTIONS


def test_pages_are_the_same_each_time(sources, tmp_path):
    subprocess.run([sys.executable, "-P", pages.CHECKOUT / "packaging/manual.py", tmp_path], check=True)
    for path in sources.values():
        assert (tmp_path / path.parent.name / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("verb", ctl.VERBS)
def test_page_of_latticectl_has_each_verb_with_all_its_options(plain, verb):
    """Compared with what the verb prints with --help, and each of its own verbs."""
    parser = ctl.verb_parser(verb, ctl.load(verb))
    section = re.search(rf'^\.SS "latticectl {verb}"$(.*?)^\.S[SH]', plain["latticectl"], re.MULTILINE | re.DOTALL)[1]
    common = {"--help", "--format", "--abs-time", "--socket", "--config"}
    for help_text in (parser.format_help(), *_helps_below(parser)):
        own = set(re.findall(r"^ {2,4}(?:-\w, )?(--[a-z-]+)", help_text, re.MULTILINE)) - common
        assert own <= set(re.findall(r"--[a-z-]+", section)), verb


def _helps_below(parser):
    """What `VERB SUBVERB --help` prints, of each."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from (one.format_help() for one in action.choices.values())


@pytest.mark.parametrize("program", PROGRAMS)
def test_page_of_each_program_has_all_its_options(plain, program):
    # In a process of its own: what a program does first, such as to its limits, would stay with the tests.
    asked = f"import latticed.{PROGRAMS[program]} as program; program.main(['--help'])"
    done = subprocess.run([sys.executable, "-P", "-c", asked], check=True, capture_output=True, text=True)
    options = set(re.findall(r"--[a-z-]+", done.stdout)) - {"--help"}
    assert options
    assert options <= set(re.findall(r"--[a-z-]+", plain[program]))


def test_page_of_settings_has_each_with_its_default(plain):
    items = dict(re.findall(r"^\.TP\n\.B (\S+)\n(.*)$", plain["latticed.toml"], re.MULTILINE))
    for key, default in _settings(shapes.Settings):
        assert f"Default: {json.dumps(default)}.".replace("\\", "\\e") in items[key], key


def _settings(part, name=""):
    """(key, default) of every setting that has one, of what is within tables too."""
    for one in fields(part):
        key = f"{name}.{one.name}".lstrip(".")
        if is_dataclass(one.default):
            yield from _settings(one.default, key)
        elif name:
            yield key, getattr(part, one.name)


def test_page_of_manifests_has_each_field(plain):
    described = plain["latticed-manifest"].partition('"CAPABILITIES"')[0]
    items = re.findall(r"^\.TP\n\.B (\S+)$", described, re.MULTILINE)
    assert set(decode._FIELDS) <= set(items)
    inner = {field.name for part in manifest._Part.__subclasses__() for field in msgspec.structs.fields(part)}
    assert inner == {name.rpartition(".")[2] for name in items}


def test_troff_accepts_every_page(sources):
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed here")
    for path in sources.values():
        done = subprocess.run(
            ["groff", "-man", "-ww", "-Tutf8", "-K", "utf8", "-z", path], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), path.name
