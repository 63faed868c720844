"""The import contracts of setup.cfg hold, and name every package (docs/adr/0001)."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
CONSOLE_MAY_IMPORT = {"model", "kit"}
CTL_MAY_IMPORT = {"ctl", "client", "console", "fleet", "wire", "settings", "model", "kit", "bundle", "trust"}


def test_import_contracts_hold():
    """import-linter finds every contract kept."""
    # `python -P`: the contracts are about this checkout, which import-linter puts on the path by itself.
    lint = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    found = subprocess.run(
        [sys.executable, "-P", "-c", lint, "--no-cache"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_package_is_allowed_or_forbidden_to_latticectl():
    """A new package is added to that contract of setup.cfg, or to CTL_MAY_IMPORT here."""
    contracts = configparser.ConfigParser()
    contracts.read(CHECKOUT / "setup.cfg")
    forbidden = {name.split(".")[1] for name in contracts["importlinter:contract:ctl"]["forbidden_modules"].split()}
    package = CHECKOUT / "latticed"
    packages = {path.parent.name for path in package.glob("*/__init__.py")} | {
        path.stem for path in package.glob("[!_]*.py")
    }
    assert forbidden == packages - CTL_MAY_IMPORT


def test_every_package_below_the_console_is_allowed_or_forbidden_to_it():
    """The console knows what it shows; the daemon it asks through what latticectl hands to it."""
    contracts = configparser.ConfigParser()
    contracts.read(CHECKOUT / "setup.cfg")
    layers = (
        contracts["importlinter:contract:layers"]["layers"]
        .replace("|", " ")
        .replace("(", " ")
        .replace(")", " ")
        .split()
    )
    below = set(layers[layers.index("console") + 1 :])
    forbidden = contracts["importlinter:contract:console"]["forbidden_modules"].split()
    assert {name.split(".")[1] for name in forbidden} == below - CONSOLE_MAY_IMPORT
