"""What the source says that nothing keeps at run time: the strings below fields."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import sys
from pathlib import Path
from typing import Any, Final

import latticed

ROOT: Final = Path(latticed.__file__).parent


@functools.cache
def trees() -> dict[str, list[ast.AST]]:
    """The nodes of each module of latticed, by its place below the package: `host/kv.py`."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        found[path.relative_to(ROOT).as_posix()] = list(ast.walk(ast.parse(path.read_bytes())))
    return found


@functools.cache
def _classes(path: str) -> dict[str, ast.ClassDef]:
    with open(path, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def below(kind: type) -> dict[str, str]:
    """{name: the string below it} of the fields and members of a class, those that it inherits included."""
    found: dict[str, str] = {}
    for one in reversed(_with_bases(kind)):
        if one.__module__.split(".")[0] == "latticed":
            path = inspect.getsourcefile(sys.modules[one.__module__])
            found.update(_of(_classes(str(path))[one.__name__].body))
    return found


def _with_bases(kind: type) -> list[type]:
    """A class before its bases. A TypedDict is made of dict alone, and has them in `__orig_bases__`."""
    if kind.__mro__[1:] != (dict, object):
        return list(kind.__mro__)
    bases = [base for base in getattr(kind, "__orig_bases__", ()) if isinstance(base, type)]
    return [kind, *(one for base in bases for one in _with_bases(base))]


def _of(body: list[ast.stmt]) -> dict[str, str]:
    found: dict[str, str] = {}
    for field, after in itertools.pairwise(body):
        name: Any = None
        if isinstance(field, ast.AnnAssign):
            name = field.target
        elif isinstance(field, ast.Assign):
            name = field.targets[0]
        if isinstance(name, ast.Name) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[name.id] = inspect.cleandoc(str(after.value.value))
    return found
