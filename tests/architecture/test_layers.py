"""The import contracts of setup.cfg hold, and cover every room there is (docs/adr/0001)."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
CTL_MAY_IMPORT = {"ctl", "wire", "settings", "model", "kit", "bundle", "trust"}


def test_imports_go_downward_only():
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


def test_latticectl_is_kept_from_every_other_room():
    """A new room must be added to the contract of latticectl, or be allowed openly here."""
    contracts = configparser.ConfigParser()
    contracts.read(CHECKOUT / "setup.cfg")
    forbidden = {name.split(".")[1] for name in contracts["importlinter:contract:ctl"]["forbidden_modules"].split()}
    house = CHECKOUT / "latticed"
    rooms = {path.parent.name for path in house.glob("*/__init__.py")} | {path.stem for path in house.glob("[!_]*.py")}
    assert forbidden == rooms - CTL_MAY_IMPORT
