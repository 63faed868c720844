"""Every package of latticed.system is in the registry, has a manifest that holds, and a page (CONTRIBUTING)."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from latticed import system
from latticed.bundle import config_schema
from latticed.catalog.builtins import Builtins
from latticed.model import plan, semver_range
from latticed.model.verdict import Verified
from latticed.plans.kinds import KINDS
from latticed.system.registry import BUILTINS
from latticed.trust import policy
from tests.house.system.registry import SETS

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = sorted(path.parent for path in Path(system.__file__).parent.glob("*/__init__.py"))
EXAMPLE = ROOT / "tests" / "house" / "system" / "allowlist"
MAY_IMPORT = ("latticed.sdk", "latticed.model", "latticed.system", "tests.house.system", "msgspec")
OUTSIDE = {
    "socket",
    "subprocess",
    "ssl",
    "os",
    "pathlib",
    "shutil",
    "tempfile",
    "threading",
    "multiprocessing",
    "ctypes",
}


def imported(folder):
    """(file, module) for everything that the package imports, but for the folder of itself that __init__ names."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((path.name, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield path.name, node.module or ""


def strange(folder):
    """What a built-in's package imports and must not."""
    allowed = {("__init__.py", "pathlib")}
    return [
        found
        for found in imported(folder)
        if (found[1].startswith(("latticed", "tests")) and not found[1].startswith(MAY_IMPORT))
        or (found[1].partition(".")[0] in OUTSIDE and found not in allowed)
    ]


def test_every_built_in_package_is_in_the_registry():
    assert sorted(one.folder for one in BUILTINS) == PACKAGES


def test_version_of_latticed_is_semver():
    """Built-in plugins have latticed's version, and manifests of version 2 take SemVer alone."""
    assert semver_range.is_version(metadata.version("latticed"))


@pytest.mark.parametrize("builtins", [BUILTINS, SETS["eight"]], ids=["latticed", "tests"])
def test_every_built_in_manifest_verifies(builtins):
    """It is judged with the version of this latticed; a mistake would show as a rejected plugin at each start."""
    found = dict(Builtins(builtins, version=metadata.version("latticed")).verdicts(lambda: policy.NOBODY))
    assert {name: verdict for name, verdict in found.items() if not isinstance(verdict, Verified)} == {}
    for verdict in found.values():
        # Schemas of bundles are checked when they are decoded, those of built-ins here alone.
        config_schema.check(verdict.manifest.config)


@pytest.mark.parametrize("builtin", [*BUILTINS, SETS["one"][0]], ids=lambda one: one.folder.name)
def test_built_in_packages_import_only_sdk_and_model(builtin):
    """They open no file and no socket, and start no process and no thread."""
    assert strange(builtin.folder) == []


def test_forbidden_import_of_a_built_in_package_is_found(tmp_path):
    (tmp_path / "plugin.py").write_text("import os\nfrom latticed.kit import files\nfrom latticed.sdk import base\n")
    assert strange(tmp_path) == [("plugin.py", "os"), ("plugin.py", "latticed.kit")]


@pytest.mark.parametrize("builtin", [*BUILTINS, SETS["one"][0]], ids=lambda one: one.folder.name)
def test_built_in_packages_have_the_documented_files(builtin):
    """CONTRIBUTING describes them; the package that it names as an example has them, too."""
    parts = {"manifest.json", "__init__.py", "intent.py", "check.py", "render.py", "plugin.py"}
    assert parts <= {path.name for path in builtin.folder.iterdir()}


def test_every_built_in_package_has_a_page():
    names = {one.folder.name.replace("_", "-") for one in BUILTINS}
    assert names <= {path.stem for path in (ROOT / "docs/system-plugins").glob("*.md")}


def test_manifests_are_in_the_wheel():
    """By default setuptools takes Python files only."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert "manifest.json" in setup["options.package_data"]["*"].split()


def test_a_start_loads_no_code_of_built_in_plugins_and_kinds_of_plans():
    """Only what names them: all the rest is memory and time of each start."""
    script = "import sys, latticed.daemon, latticed.app, latticed.system.registry as r; len(r.BUILTINS);"
    script += "print([n for n in sys.modules if n.startswith('latticed.system.') and n.count('.') > 2])"
    ran = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout == "[]\n"


def test_every_kind_that_can_be_applied_has_the_name_that_it_is_listed_under():
    assert {name: kind.name for name, kind in KINDS.items()} == {name: name for name in KINDS}
    assert KINDS.keys() <= set(plan.KINDS)
