"""The schedules that a Python artifact declares by `@schedule(every_s=60)`, read from its source without running it.

`class Disk(Plugin)` with `@schedule(every_s=60)` above `def do_check` is `{"name": "check", "every_s": 60, "action":
"check"}`, an entry of a manifest's `schedules`.
"""

from __future__ import annotations

import ast
import io
import re
import zipfile
import zlib
from typing import TYPE_CHECKING, Any, Final

from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SDK: Final = "latticed.sdk"
NAME: Final = "schedule"
MAX_SOURCE: Final = 4 << 20
"""Most bytes of one module that is looked into."""
_USES_SDK: Final = re.compile(rb"^\s*(?:from|import)\s+latticed\b", re.MULTILINE)
_OTHERWISE: Final = re.compile(rb"\b(?:(?:invoke|setattr|__getattr__|__getattribute__)\b|do_['\"{%])")
"""What carries out actions without a method of their name; the last: one that is put together, as `f"do_{name}"`."""
_TIMES: Final = frozenset({"every_s", "daily", "cron"})
_ARGUMENTS: Final = ("name", "every_s", "daily", "cron", "payload")


def declared(artifact: bytes) -> list[dict[str, Any]]:
    """The schedules in a script or zipapp, in the order of their files and lines; none in anything else.

    Problem schedule_unreadable for a decorator whose arguments are no literals or that is on no method `do_ACTION`,
    and for a damaged zipapp.
    """
    found: list[dict[str, Any]] = []
    for where, source in _modules(artifact):
        # Cheap, before it is parsed: most modules have none.
        if NAME.encode() in source and b"latticed" in source and len(source) <= MAX_SOURCE:
            found += _of_module(where, source)
    return found


def without_method(artifact: bytes, actions: Iterable[str]) -> list[str]:
    """Those of `actions` that the Python in an artifact, if it uses the SDK, can have no method for.

    None when something else may carry them out: a method `invoke`, or one made at run time. `describe` and `health` are
    the SDK's own. What is only named counts as a method. Problem as `declared`.
    """
    text = b"\n".join(source for _, source in _modules(artifact))
    if not _USES_SDK.search(text) or _OTHERWISE.search(text):
        return []
    named = {
        action: re.escape(action.replace("-", "_")).encode()
        for action in actions
        if action not in {"describe", "health"}
    }
    return [action for action, method in named.items() if not re.search(rb"\bdo_%b\b" % method, text)]


def _modules(artifact: bytes) -> Iterator[tuple[str, bytes]]:
    """(name, source) of each module of a Python artifact."""
    if not artifact.startswith(b"#!") or b"python" not in artifact.partition(b"\n")[0]:
        return
    if not zipfile.is_zipfile(io.BytesIO(artifact)):
        yield "artifact", artifact
        return
    try:
        with zipfile.ZipFile(io.BytesIO(artifact)) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith(".py") and entry.file_size <= MAX_SOURCE:
                    yield entry.filename, archive.read(entry)
    # ValueError: a name that is no UTF-8. RuntimeError, NotImplementedError: encrypted, or compressed in another way.
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError) as error:
        raise Problem(
            "schedule_unreadable", f"artifact: expected a whole zipapp, found: {error}", "pack it again"
        ) from error


def _of_module(where: str, source: bytes) -> Iterator[dict[str, Any]]:
    """The schedules of one module; none if Python cannot read it, which shows when it runs."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    imported = _imported(tree)
    read: set[ast.Call] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and imported.has(decorator):
                    read.add(decorator)
                    yield _entry(f"{where}:{decorator.lineno}", node.name, decorator)
        # A function stands before its decorators.
        elif isinstance(node, ast.Call) and node not in read and imported.has(node):
            raise _unreadable(f"{where}:{node.lineno}", f"expected @{NAME} above a method, found another use of it")


class _Imported:
    """What a module's imports bind: `names` of the decorator, `modules` of the SDK's package.

    `others`: names that something else of the module binds too, or that a `*` may not have bound.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.modules: set[str] = set()
        self.others: set[str] = set()

    def has(self, call: ast.Call) -> bool:
        """Whether the SDK's decorator is called: `schedule`, `sdk.schedule`, `latticed.sdk.schedule`. Where the name
        may be of something else: whether it looks like it.
        """
        func = call.func
        if isinstance(func, ast.Name) and func.id in self.names:
            root = func.id
        elif isinstance(func, ast.Attribute) and func.attr == NAME and (of := ast.unparse(func.value)) in self.modules:
            root = of.partition(".")[0]
        else:
            return False
        # An argument of no name is `**something`, which may have the times.
        return root not in self.others or any(one.arg is None or one.arg in _TIMES for one in call.keywords)


def _imported(tree: ast.Module) -> _Imported:
    """What a module's names stand for, wherever in it they are bound."""
    found = _Imported()
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom():
                for one in node.names:
                    _from(found, node, one)
            case ast.Import():
                for one in node.names:
                    _import(found, one)
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                found.others.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.others.add(name)
            case _:
                pass
    return found


def _from(found: _Imported, node: ast.ImportFrom, one: ast.alias) -> None:
    """Note one name of `from … import …`."""
    bound, module = one.asname or one.name, "" if node.level else node.module
    if module == "latticed" and one.name == "sdk":
        found.modules.add(bound)
    elif module in {SDK, f"{SDK}.{NAME}"} and one.name == NAME:
        found.names.add(bound)
    elif one.name != "*":
        found.others.add(bound)
    elif module in {SDK, f"{SDK}.{NAME}"}:
        found.names.add(NAME)
        found.others.add(NAME)


def _import(found: _Imported, one: ast.alias) -> None:
    """Note one name of `import …`."""
    if one.name == f"{SDK}.{NAME}" and one.asname:
        found.names.add(one.asname)  # the package has the function under the module's name
    elif one.name == SDK:
        found.modules.add(one.asname or SDK)
    elif one.name.startswith(f"{SDK}.") and not one.asname:
        found.modules.add(SDK)
    elif one.asname or one.name.partition(".")[0] != "latticed":
        found.others.add(one.asname or one.name.partition(".")[0])


def _entry(where: str, method: str, call: ast.Call) -> dict[str, Any]:
    """The manifest's entry of one decorator."""
    action = method.removeprefix("do_")
    if action == method or not action:
        raise _unreadable(where, f"expected @{NAME} on a method do_ACTION, found {method}")
    given: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg not in _ARGUMENTS:
            raise _unreadable(where, f"expected {', '.join(_ARGUMENTS)}, found {keyword.arg or '**'}")
        try:
            given[keyword.arg] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
            raise _unreadable(where, f"expected {keyword.arg} to be a literal, as the code is not run") from error
    if call.args:
        raise _unreadable(where, "expected arguments by name, such as every_s=60")
    entry = {"name": given.pop("name", None) or action, **given, "action": action}
    return {name: value for name, value in entry.items() if value is not None}


def _unreadable(where: str, what: str) -> Problem:
    return Problem("schedule_unreadable", f"{where}: {what}", f"such as @{NAME}(every_s=60)")
