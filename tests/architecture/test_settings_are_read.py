"""Every setting is read somewhere in the code: otherwise it would have no effect."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import latticed
from latticed.settings import shapes

PACKAGE = Path(latticed.__file__).parent


def keys(part: object) -> Iterator[str]:
    """The names of all settings below `part`."""
    for field in fields(part):
        value = getattr(part, field.name)
        if is_dataclass(value):
            yield from keys(value)
        else:
            yield field.name


def test_every_setting_is_read():
    trees = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py") if "settings" not in path.parts]
    read = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    known = [name for field in fields(shapes.Settings) if is_dataclass(field.default) for name in keys(field.default)]
    assert len(known) > 80
    assert set(known) - read == set()
