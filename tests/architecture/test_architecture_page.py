"""docs/internals/architecture.md has the layers of setup.cfg, and each package in the words of its docstring.

`python3 tests/architecture/test_architecture_page.py` writes both anew.
"""

from __future__ import annotations

import ast
import configparser
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/internals/architecture.md"
HEADER = "| package | what it is for | what it must not do |\n|---|---|---|\n"
FORBIDS = re.compile(r"\b(never|nothing|must not)\b", re.IGNORECASE)


def layers() -> list[str]:
    """The lines of the contract, top to bottom; parentheses (optional in import-linter) are left out."""
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / "setup.cfg")
    lines = contracts["importlinter:contract:layers"]["layers"].split("\n")
    return [line.replace("(", "").replace(")", "").strip() for line in lines if line.strip()]


def docstring(name: str) -> str:
    """The docstring of a package or module directly below latticed; empty when there is none of that name yet."""
    for path in (ROOT / "latticed" / name / "__init__.py", ROOT / "latticed" / f"{name}.py"):
        if path.is_file():
            return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return ""


def rows() -> Iterator[str]:
    for line in layers():
        for name in line.split(" | "):
            first, _, rest = docstring(name).partition("\n")
            if not first:
                continue
            sentences = re.split(r"(?<=\.)\s+(?=[A-Z`])", " ".join(rest.partition("\n    ")[0].split()))
            forbidden = " ".join(one for one in sentences if FORBIDS.search(one))
            yield f"| `{name}` | {first} | {forbidden or '-'} |\n"


def renewed(page: str) -> str:
    """`page` with the layers and the table of packages as they are in setup.cfg and the docstrings."""
    block = "```text layers\n" + "".join(f"{line}\n" for line in layers()) + "```\n"
    page = re.sub(r"```text layers\n.*?```\n", lambda _: block, page, count=1, flags=re.DOTALL)
    start = page.index(HEADER) + len(HEADER)
    return page[:start] + "".join(rows()) + page[page.index("\n\n", start - 1) + 1 :]


def test_layers_and_packages_on_the_page_equal_the_code():
    page = PAGE.read_text(encoding="utf-8")
    assert page == renewed(page), f"run: python3 {Path(__file__).relative_to(ROOT)}"


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
