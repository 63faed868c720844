"""Few classes share a name: `Settings` or `Outcome` alone should say which one is meant."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIES = "latticed/sdk/answers.py"
"""Has for authors of plugins what calls answer, by the host's own names: the SDK may import nothing of the host."""
MOST = 0.08
"""Of all classes; kopf, whose names read well, has 7 %."""


def classes() -> dict[str, list[str]]:
    """The files in which a class of each name is defined."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(set((ROOT / "latticed").rglob("*.py")) - {ROOT / COPIES}):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(str(path.relative_to(ROOT)))
    return found


def test_few_classes_share_a_name():
    found = classes()
    shared = {name: places for name, places in found.items() if len(places) > 1}
    total, sharing = (sum(map(len, names.values())) for names in (found, shared))
    assert total > 500
    assert sharing <= MOST * total, "\n".join([f"{sharing} of {total} classes:", *map(str, sorted(shared.items()))])
