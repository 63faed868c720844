"""The outside test suites, which are published separately and lie beside the checkout when they are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

PLACE = Path(__file__).resolve().parents[2].parent / "shared" / "corpora"


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of the suite `name`; skips the calling module when it is not there."""
    path = PLACE / name
    if not path.is_file():
        pytest.skip(f"outside test suites are not here ({name})", allow_module_level=True)
    found: list[dict[str, Any]] = json.loads(path.read_bytes())
    return found
