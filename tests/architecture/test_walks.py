"""The four walks in docs/internals/architecture.md lead through code that exists and is connected."""

from __future__ import annotations

import ast
import functools
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/internals/architecture.md"
STEP = re.compile(r"^\d+\. `([\w.]+):([\w.]+)`(?:, by `([\w.]+):([\w.]+)`)?", re.MULTILINE)


@functools.cache
def tree(module: str) -> ast.Module | None:
    base = ROOT / "latticed" / module.replace(".", "/")
    path = next((one for one in (base.with_suffix(".py"), base / "__init__.py") if one.is_file()), None)
    return ast.parse(path.read_text(encoding="utf-8")) if path else None


@dataclass(frozen=True)
class Place:
    """A function, a class with all its methods, or a table, in a module of latticed."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}:{self.name}"

    @property
    def last(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def owner(self) -> str:
        """The class that the place is a method of, or is itself."""
        return self.name.partition(".")[0]

    def node(self, name: str | None = None) -> ast.AST | None:
        """The code of the place; with `name` that of another part of its module."""
        found: ast.AST | None = tree(self.module)
        for part in (name or self.name).split("."):
            found = next((one for one in getattr(found, "body", ()) if part in _defined(one)), None)
        return found

    def mentions(self) -> set[str]:
        """The names in the code of the place, and in that of the private functions of its module and class that it
        uses.
        """
        seen, todo, found = set(), [self.name], set[str]()
        while todo:
            name = todo.pop()
            node = self.node(name)
            if name in seen or node is None:
                continue
            seen.add(name)
            names = {_name(one) for one in ast.walk(node)} - {""}
            private = [one for one in names if one.startswith("_")]
            todo += [*private, *(f"{self.owner}.{one}" for one in private)]
            found |= names
        return found

    def imports(self, other: Place) -> bool:
        """Whether its module imports that of `other`, or a package that `other` is in."""
        if self.module == other.module:
            return True
        packages = {other.module, other.module.partition(".")[0]}
        return any(
            f"latticed.{name}" in {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            for node in ast.walk(tree(self.module) or ast.Module([], []))
            if isinstance(node, ast.ImportFrom)
            for name in packages
        )


def _defined(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return {target.id for target in targets if isinstance(target, ast.Name)}
    return {getattr(node, "name", "")}


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def is_linked(before: Place, after: Place, by: Place | None) -> bool:
    """Whether `after` is used by `before`, uses it, implements it, or shares its class; `by` puts the two together."""
    if by is not None:
        names = by.mentions()
        known = {after.last, after.owner} & names and {before.last, before.owner} & names | (
            {before.owner} & {by.owner}
        )
        return bool(known) and by.imports(after) and by.imports(before)
    if before.module == after.module and before.owner == after.owner:
        return True
    used = {after.last, after.owner} & before.mentions() and before.imports(after)
    uses = {before.last, before.owner} & after.mentions() and after.imports(before)
    return bool(used or uses) or (before.last == after.last and after.imports(before))


def walks() -> dict[str, list[tuple[Place, Place | None]]]:
    """The steps of each walk by its title: a place, and the place that leads to it from an earlier step, if there is
    one.
    """
    section = PAGE.read_text(encoding="utf-8").partition("\n## Four walks\n")[2].partition("\n## ")[0]
    found = {}
    for part in section.split("\n### ")[1:]:
        title, _, text = part.partition("\n")
        found[title] = [(Place(*s[:2]), Place(*s[2:]) if s[2] else None) for s in STEP.findall(text)]
    return found


def faults(steps: list[tuple[Place, Place | None]]) -> list[str]:
    """What is wrong with each step of a walk."""
    found = []
    for number, (place, by) in enumerate(steps, 1):
        missing = [one for one in (place, by) if one is not None and one.node() is None]
        found += [f"step {number}: latticed has no {one}; it was moved or renamed" for one in missing]
        earlier = [one for one, _ in steps[: number - 1]]
        if not missing and earlier and not any(is_linked(one, place, by) for one in reversed(earlier)):
            found.append(f"step {number}: {place} is not used by an earlier step (nor uses one)")
    return found


def test_page_has_four_walks_of_at_least_ten_steps():
    assert {title: len(steps) >= 10 for title, steps in walks().items()} == dict.fromkeys(walks(), True)
    assert len(walks()) == 4


@pytest.mark.parametrize("title", walks())
def test_every_step_of_a_walk_exists_and_follows_from_an_earlier_one(title):
    found = faults(walks()[title])
    assert not found, "\n".join([f"edit `{title}` in {PAGE.relative_to(ROOT)}:", *found])


@pytest.mark.parametrize(
    "step",
    [
        (Place("ledger.kv", "no_such"), None),
        (Place("no.such", "put"), None),
        (Place("host.egress.url", "parse"), None),
        (Place("ledger.kv", "put"), Place("wire", "encode")),
    ],
    ids=str,
)
def test_missing_or_unconnected_step_is_a_fault(step):
    assert len(faults([(Place("broker.gate", "Gate.call_raw"), None), step])) == 1
