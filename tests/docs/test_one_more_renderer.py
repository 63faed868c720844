"""The renderer of docs/internals/system-plugins.md, put beside latticed's own: it runs as the page says."""

from __future__ import annotations

import importlib
import json
import os
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

import latticed.plans
import latticed.system
from latticed.catalog.builtins import Builtins
from latticed.model.verdict import Verified
from latticed.plans import protocol
from latticed.plans.programs import ProgramTools
from latticed.sdk.base import PluginError
from latticed.system.builtin import Builtin
from latticed.system.host import Host
from latticed.trust import policy
from tests.house import apply_helpers, pages, processes

PAGE = pages.CHECKOUT / "docs/internals/system-plugins.md"
BESIDE = """
    import sys
    from pathlib import Path
    import latticed.plans, latticed.system
    from latticed import apply

    here = Path(__file__).parent
    latticed.plans.__path__.append(str(here / "latticed/plans"))
    latticed.system.__path__.append(str(here / "latticed/system"))
    from latticed.plans.motd import MotdKind

    again = (sys.executable, "-I", __file__)
    sys.exit(apply.main(sys.argv[1:], kinds={"motd": MotdKind(path=here.parent / "live/motd")}, command=again))
"""
HELLO, MORE = {"lines": ["hello"]}, {"lines": ["hello", "patches on Tuesday"]}


def written(place: Path) -> list[str]:
    """The files of the page below `place`; their paths."""
    paths = []
    for block in pages.blocks(PAGE):
        for path in (word.partition("=")[2] for word in block.words if word.startswith("file=")):
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_text(block.text)
            paths.append(path)
    return paths


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """The page's modules, importable as latticed's own while the test runs."""
    paths = written(tmp_path)
    assert [Path(one).name for one in paths] == ["intent.py", "plugin.py", "manifest.json", "motd.py"]
    for package in (latticed.system, latticed.plans):
        folder = tmp_path / "latticed" / package.__name__.rpartition(".")[2]
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    yield tmp_path
    for name in [one for one in sys.modules if "motd" in one]:
        del sys.modules[name]
    for package in (latticed.system, latticed.plans):
        vars(package).pop("motd", None)


def test_manifest_is_that_of_a_built_in_plugin(beside):
    folder = beside / "latticed/system/motd"
    (folder / "__init__.py").touch()
    load = lambda: importlib.import_module("latticed.system.motd.plugin").Motd  # noqa: E731 - as BUILTIN has it
    ((_, verdict),) = Builtins([Builtin(folder=folder, load=load)], version="1.0.0").verdicts(lambda: policy.NOBODY)
    assert isinstance(verdict, Verified), verdict


def test_intents_are_checked_rendered_and_compared(beside):
    intent = importlib.import_module("latticed.system.motd.intent")
    assert intent.check(MORE) == ()
    assert intent.render(MORE) == b"hello\npatches on Tuesday\n"
    for bad in (
        {},
        {"lines": "x"},
        {**HELLO, "more": 1},
        *({"lines": [one]} for one in ("", "a\nb", "\x1b[2J", "é", 1)),
    ):
        assert intent.check(bad), bad
    assert [intent.narrows(*both) for both in ((MORE, HELLO), (HELLO, MORE), (MORE, MORE))] == [True, False, True]


async def test_plugin_plans_what_its_configuration_says_and_refuses_the_rest(beside):
    plugin = importlib.import_module("latticed.system.motd.plugin").Motd
    manifest = json.loads((beside / "latticed/system/motd/manifest.json").read_text())
    asked = []

    async def ask(method, params):
        asked.append((method, params))
        return {"ok": True, "sha256": "ab" * 32, "state": "planned"}

    def made(config):
        return plugin(Host(ask), id=manifest["id"], capabilities=tuple(manifest["capabilities"]), config=config)

    assert (await made(MORE).do_plan(None))["state"] == "planned"
    assert asked == [("network.plan", {"kind": "motd", "intent": MORE})]
    with pytest.raises(PluginError, match=r"lines\[0\]: expected 1 to 80 printable ASCII"):
        await made({"lines": ["a\nb"]}).do_plan(None)


def test_kind_puts_back_what_was_there_after_no_half_and_whole_commits(beside):
    kind = importlib.import_module("latticed.plans.motd").MotdKind(path=beside / "motd")
    tools = ProgramTools(kind.programs)
    for before in (None, b"of the distribution\xff\n"):
        if before is not None:
            kind.path.write_bytes(before)
        snapshot, rendering = kind.snapshot(tools), kind.render(MORE, None, {})
        kind.restore(snapshot, tools)
        (beside / ".motd.latticed").write_bytes(rendering[:3])
        kind.restore(snapshot, tools)
        kind.validate(rendering, tools)
        for _ in range(2):
            kind.commit(rendering, tools)
            kind.self_check(rendering, tools)
            assert kind.holds(rendering, kind.observe(tools))
        for _ in range(2):
            kind.restore(snapshot, tools)
            assert (kind.path.read_bytes() if kind.path.exists() else None) == before


@dataclass
class MotdPlace(apply_helpers.Place):
    """The root helper with that kind alone."""

    def command(self, *options: str) -> list[str]:
        return [sys.executable, "-I", str(self.home / "code/beside.py"), "--config", str(self.config), *options]


@pytest.mark.root
@pytest.mark.daemon
def test_root_helper_reviews_applies_undoes_and_narrows_with_it():
    with apply_helpers.place() as made:
        written(made.home / "code")
        (made.home / "code/beside.py").write_text(textwrap.dedent(BESIDE))
        place, motd = MotdPlace(home=made.home, settings={"kinds": ["motd"]}), made.home / "live/motd"
        motd.write_bytes(b"of the distribution\n")
        with place.running():
            refused = place.ask(protocol.Offer(kind="motd", intent={"lines": ["a\nb"]}))
            assert [(one.path, one.code) for one in refused.findings] == [("lines[0]", "bad_line")]
            plan = place.offer(HELLO, kind="motd")
            assert "-of the distribution\n+hello\n" in place.review(plan).diff
            place.applied(HELLO, kind="motd")
            assert motd.read_bytes() == b"hello\n"
            plan = place.approved(MORE, kind="motd")
            assert place.ask(protocol.Apply(plan=plan, confirm_within_s=1)).state == "unconfirmed"
            assert motd.read_bytes() == b"hello\npatches on Tuesday\n"
            processes.until(lambda: motd.read_bytes() == b"hello\n", what="the undoing")
            empty = place.offer({"lines": []}, kind="motd")
            assert place.ask(protocol.Apply(plan=empty), user=apply_helpers.DAEMON).state in {"applied", "unconfirmed"}
            processes.until(lambda: motd.read_bytes() == b"", what="less than was approved, without an approval")
            assert os.stat(motd).st_uid == 0
