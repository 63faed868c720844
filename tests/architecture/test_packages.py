"""Rules that hold in every package (docs/adr/0001)."""

from __future__ import annotations

import ast
from importlib import metadata
from pathlib import Path

import pytest

import latticed

PACKAGE = Path(latticed.__file__).parent
PACKAGES = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))
MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_every_package_docstring_states_purpose_and_limits(package):
    """The docstring is that of its __init__ module."""
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text()))
    assert len((docstring or "").split()) >= 10, f"{package.name}: what is it for, what must it not do?"


def test_version_is_that_of_distribution():
    assert latticed.__version__ == metadata.version("latticed")


def test_every_folder_is_a_package():
    """A folder without __init__.py would be left out of the wheel and of the import contracts."""
    folders = {path.parent for path in MODULES}
    assert {folder for folder in folders if not (folder / "__init__.py").is_file()} == set()


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(PACKAGE)))
def test_no_module_is_called_utils(module):
    """Code that fits nowhere needs a package with a name of its own."""
    assert module.stem not in {"utils", "helpers", "misc", "common", "util", "helper"}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(PACKAGE)))
def test_only_kit_logs_imports_structlog(module):
    """A plain import of structlog loads rich; others may import it for type checking."""
    tree = ast.parse(module.read_text())
    for_types = {id(node) for block in ast.walk(tree) if _is_type_checking(block) for node in ast.walk(block)}
    imports = [
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in for_types
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    ]
    if module != PACKAGE / "kit/logs.py":
        assert not [name for name in imports if name.split(".")[0] == "structlog"]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(PACKAGE)))
def test_umask_directory_and_environment_are_not_changed(module):
    """Other threads would be affected. Only the stub and entry points may, while they have no thread."""
    called = {
        node.func.attr
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if isinstance(node.func.value, ast.Name) and node.func.value.id == "os"
    }
    if module not in {PACKAGE / "sandbox/stub.py", PACKAGE / "sandbox/stub_root.py", PACKAGE / "kit/process_start.py"}:
        assert called.isdisjoint({"umask", "chdir", "fchdir", "putenv", "unsetenv"})


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
