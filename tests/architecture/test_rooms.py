"""The rooms keep their shape (docs/adr/0001)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import latticed

HOUSE = Path(latticed.__file__).parent
ROOMS = sorted(path.parent for path in HOUSE.glob("*/__init__.py"))
MODULES = sorted(HOUSE.rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_says_what_it_is_for(room):
    """Every room's __init__ opens with a docstring that states its purpose and its limits."""
    docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text()))
    assert len((docstring or "").split()) >= 10, f"{room.name}: what is it for, what must it never do?"


def test_every_folder_is_a_room():
    """A folder without __init__.py would be left out of the wheel and of the import contracts."""
    folders = {path.parent for path in MODULES}
    assert {folder for folder in folders if not (folder / "__init__.py").is_file()} == set()


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(HOUSE)))
def test_no_room_is_a_drawer(module):
    """`utils` and its kin are nouns that nobody looked for."""
    assert module.stem not in {"utils", "helpers", "misc", "common", "util", "helper"}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(HOUSE)))
def test_structlog_comes_through_kit_logs(module):
    """A plain import of structlog loads rich: only kit.logs does it, others may name it for type checking."""
    tree = ast.parse(module.read_text())
    for_types = {id(node) for block in ast.walk(tree) if _is_type_checking(block) for node in ast.walk(block)}
    imports = [
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in for_types
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    ]
    if module != HOUSE / "kit/logs.py":
        assert not [name for name in imports if name.split(".")[0] == "structlog"]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(HOUSE)))
def test_nothing_changes_what_all_threads_share(module):
    """A changed umask or working directory hits whatever other threads make meanwhile.

    Only the stub is alone, and a front door, which puts right what it was started into before there is any thread.
    """
    called = {
        node.func.attr
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if isinstance(node.func.value, ast.Name) and node.func.value.id == "os"
    }
    if module not in {HOUSE / "sandbox/stub.py", HOUSE / "sandbox/stub_root.py", HOUSE / "kit/process_start.py"}:
        assert called.isdisjoint({"umask", "chdir", "fchdir", "putenv", "unsetenv"})


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
