"""The SDK by itself: imports little of the standard library only, and runs on Python 3.9."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import latticed
import latticed.sdk
from tests.house import plugins

SDK = Path(latticed.sdk.__file__).parent
MODULES = sorted(SDK.glob("*.py"))
OLDEST = (3, 9)
MAY_LOAD = {
    *("json", "json.decoder", "json.encoder", "json.scanner", "_json"),
    *("re", "re._casefix", "re._compiler", "re._constants", "re._parser", "sre_compile", "sre_constants", "sre_parse"),
    *("_sre", "_locale", "copyreg", "enum", "types", "operator", "_operator", "functools", "_functools"),
    *("collections", "_collections", "reprlib", "keyword", "itertools", "binascii", "threading", "_weakrefset"),
    *("warnings", "_warnings", "contextlib", "__future__", "_weakref", "_thread", "time", "_types"),
}
"""What importing the SDK and starting to speak may cost: neither typing nor dataclasses, inspect, base64, logging."""


def _imports(module):
    tree = ast.parse(module.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield node.module or ""


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_sdk_imports_only_the_standard_library_and_itself(module):
    """Imports for type checking count, too."""
    for name in _imports(module):
        assert name.startswith("latticed.sdk") or name.partition(".")[0] in sys.stdlib_module_names, name


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_sdk_parses_with_the_oldest_python_grammar(module):
    ast.parse(module.read_text(encoding="utf-8"), feature_version=OLDEST)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A directory with latticed/sdk only, which is what a confined plugin sees."""
    place = tmp_path_factory.mktemp("alone")
    shutil.copytree(SDK, place / "latticed" / "sdk", ignore=shutil.ignore_patterns("__pycache__"))
    return place


def _own() -> list[str]:
    """This Python, unless latticed itself is installed in it."""
    return [] if "site-packages" in latticed.__file__ else [sys.executable]


def _pythons():
    """This Python, and the other supported ones on this host."""
    names = [f"python3.{minor}" for minor in range(OLDEST[1], 20)]
    found = dict.fromkeys(
        [*_own(), *filter(None, (shutil.which(name, path="/usr/bin:/usr/local/bin") for name in names))]
    )
    return list(found)


@pytest.mark.parametrize("python", _pythons())
def test_sdk_runs_without_the_rest_of_latticed(alone, tmp_path, python):
    """It is a namespace package then; a whole session over pipes imports every module."""
    every = ", ".join(f"latticed.sdk.{module.stem}" for module in MODULES if module.stem != "__init__")
    body = f"""
    def do_work(self, payload):
        import latticed, {every}
        return [getattr(latticed, "__file__", None), type(self.network).__name__]
    """
    invoke = {"id": 2, "method": "invoke", "params": {"action": "work"}}
    done = subprocess.run(
        [python, *plugins.program(tmp_path, body)[1:]],
        input=plugins.say("initialize", invoke, "health", "shutdown"),
        env={"PATH": "/usr/bin", "PYTHONPATH": str(alone), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr) == (0, "")
    assert said[1]["result"]["result"] == [None, "Network"]


@pytest.mark.parametrize("protocol", ["session", "one_shot"])
def test_sdk_loads_few_modules(alone, protocol):
    """Every start of a plugin imports them."""
    script = (
        "import os, sys; before = set(sys.modules)  # os: every Python has it by then\n"
        f"import latticed.sdk, latticed.sdk.{protocol}\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    command = [sys.executable, "-S", "-c", script]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(alone)}, capture_output=True, text=True, check=True, timeout=30
    )
    loaded = set(done.stdout.split())
    assert {name for name in loaded if not name.startswith("latticed")} <= MAY_LOAD
    assert not loaded & {f"latticed.sdk.{name}" for name in ("messages", "machine", "work", "network", "testing")}


def test_parent_package_of_the_sdk_imports_nothing():
    """A sandbox may have to show latticed/__init__.py as well."""
    tree = ast.parse((SDK.parent / "__init__.py").read_text(encoding="utf-8"))
    assert not [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
