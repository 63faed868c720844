"""Every problem of a controller says what helps: a command, most of the time."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from latticed.fleet import controller

PLACE = Path(controller.__file__).parent


@pytest.mark.parametrize("path", sorted(PLACE.glob("*.py")), ids=lambda path: path.stem)
def test_problem_has_a_hint(path):
    calls = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Problem"
    ]
    bare = [f"{path.name}:{one.lineno}" for one in calls if len(one.args) + len(one.keywords) < 3]
    assert bare == []
