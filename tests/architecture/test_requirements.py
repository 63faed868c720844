"""setup.cfg requires what latticed imports, some of it as an extra, from the lowest version that .ci/run installs."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[2]
MODULES = {"dnspython": "dns", "jsonschema-rs": "jsonschema_rs", "nats-py": "nats"}
READ_PRIVATELY = {"aiohttp", "tuf", "watchdog"}
"""latticed reads private attributes of these, so they have an upper bound."""


def required() -> dict[str, str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    wanted = setup["options"]["install_requires"] + extras["tuf"] + extras["ui"] + extras["fleet"]
    lines = [line.strip() for line in wanted.split("\n")]
    found = [re.match(r"([a-z0-9-]+)(.*)", line) for line in lines if line and not line.startswith("#")]
    return {one[1]: one[2] for one in found if one}


def imported() -> set[str]:
    names = set()
    for path in (ROOT / "latticed").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"latticed"}


def test_requirements_equal_the_imported_packages():
    assert {MODULES.get(name, name) for name in required()} == imported()


def test_every_requirement_has_a_lowest_version():
    bounds = required()
    assert [name for name, bound in bounds.items() if not bound.startswith(">=")] == []
    assert {name for name, bound in bounds.items() if ",<" in bound} == READ_PRIVATELY


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_pins_of_the_debian_packages_are_what_setup_cfg_allows(suite):
    """packaging/pin writes them anew. Each has hashes, and no index is named."""
    text = (ROOT / f"packaging/requirements/{suite}.txt").read_text()
    pins = dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\\n +--hash=sha256:[0-9a-f]{64}", text, re.MULTILINE))
    for name, bound in required().items():
        assert pins[name] in SpecifierSet(bound), name
    assert re.findall(r"^(?! +--hash=sha256:|[a-z0-9-]+==|#).+", text, re.MULTILINE) == []
