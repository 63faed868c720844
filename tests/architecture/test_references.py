"""Every reference in code, tests and docs leads to a page, section or decision of this repository.

Sections of docs/internals are cited in short: "contracts §5", "architecture, decision 3", "architecture, Lifecycle",
"system-plugins.md, Host services". Paths below docs and decisions (docs/adr/0012) are cited as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FOLDERS = (DOCS, *(path for path in DOCS.rglob("*") if path.is_dir()))
SOURCES = ("latticed", "tests", "benchmarks", "plugins-sample", "systemd", "docs", ".ci")
FILES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "setup.cfg", "pyproject.toml")
HERE = Path(__file__).resolve()

CONTRACTS = re.compile(r"\bcontracts((?:(?:,| and| or)?\s+§\d+)+)", re.IGNORECASE)
DECISION = re.compile(r"\barchitecture,?\s+decision\s+(\d+)", re.IGNORECASE)
HEADING = re.compile(r"\b(architecture|[a-z][a-z-]*\.md),\s+(?=[A-Z]|worker:)([^\n]{1,60})")
PATH = re.compile(r"(?<![\w/])docs/(?:adr/\d{4}(?![\w-])|[\w/-]+\.md\b)")
RECORD = re.compile(r"\bADR[\s-]+(\d+)")
PAGE = re.compile(r"(?<![\w/.*-])([a-z][a-z-]*\.md)\b(?!,\s+(?:[A-Z]|worker:))")

FILE = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.[a-z]+)`")


def headings(page: str) -> set[str]:
    """The headings of a page of docs/internals, without their marks, and the first cells of its tables."""
    path = DOCS / "internals" / page
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return set(re.findall(r"^#+ (.+?)\s*$", text, re.MULTILINE)) | set(re.findall(r"^\| (\S+) \|", text, re.MULTILINE))


def is_record(number: str) -> bool:
    return any(path.name.startswith(f"{int(number):04}-") for path in (DOCS / "adr").glob("*.md"))


def is_path(path: str) -> bool:
    if found := re.fullmatch(r"docs/adr/(\d{4})", path):
        return is_record(found[1])
    return (ROOT / path).exists()


def references(text: str, beside: Path = ROOT) -> Iterator[tuple[str, bool]]:
    """(reference, whether it leads somewhere) of each in `text`, which stands in a file of the directory `beside`."""
    text = re.sub(r"\n[ \t]*(?:#+ )?", "\n", text)
    sections = {found.partition(".")[0] for found in headings("contracts.md")}
    for found in CONTRACTS.finditer(text):
        for number in re.findall(r"\d+", found[1]):
            yield f"contracts §{number}", number in sections
    for found in DECISION.finditer(text):
        known = any(one.startswith(f"Decision {found[1]}:") for one in headings("architecture.md"))
        yield f"architecture, decision {found[1]}", known
    for found in HEADING.finditer(text):
        page = found[1] if found[1].endswith(".md") else f"{found[1]}.md"
        yield f"{page}, {found[2]}", any(re.match(rf"{re.escape(one)}(?!\w)", found[2]) for one in headings(page))
    for found in PATH.finditer(text):
        yield found[0], is_path(found[0])
    for found in RECORD.finditer(text):
        yield f"ADR {found[1]}", is_record(found[1])
    for found in PAGE.finditer(text):
        yield found[1], any((place / found[1]).is_file() for place in (ROOT, *FOLDERS, beside))


def files() -> Iterator[Path]:
    for name in SOURCES:
        for path in sorted((ROOT / name).rglob("*")):
            is_source = path.suffix in {".py", ".md", ".c", ".cfg", ".txt", ".service", ".socket", ".toml", ".sh", ""}
            if path.is_file() and is_source and "__pycache__" not in path.parts and path != HERE:
                yield path
    yield from (ROOT / name for name in FILES if (ROOT / name).is_file())


def in_the_tree() -> Iterator[tuple[str, str, bool]]:
    """(file, reference, whether it leads somewhere)."""
    for path in files():
        text = path.read_text(encoding="utf-8", errors="replace")
        for reference, resolves in references(text, path.parent):
            yield str(path.relative_to(ROOT)), reference, resolves


def test_every_reference_resolves():
    found = list(in_the_tree())
    assert len(found) > 150, "the patterns of this test no longer find what they are for"
    broken = [f"{file}: {reference}" for file, reference, resolves in found if not resolves]
    assert not broken, "\n".join(["write the section below docs/, or mend the reference:", *broken])


def test_files_that_pages_for_developers_name_exist():
    """They are looked for below the checkout and below latticed."""
    pages = [ROOT / "CONTRIBUTING.md", *(DOCS / "internals").glob("*.md"), *(DOCS / "adr").glob("*.md")]
    named = {(page.name, found) for page in pages for found in FILE.findall(page.read_text(encoding="utf-8"))}
    assert len(named) > 60
    missing = [
        one for one in sorted(named) if not any((place / one[1]).exists() for place in (ROOT, ROOT / "latticed"))
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(contracts §2)", [("contracts §2", True)]),
        ("Contracts §2 and §99", [("contracts §2", True), ("contracts §99", False)]),
        ("architecture\n    # decision 3", [("architecture, decision 3", True)]),
        ("architecture, decision 99", [("architecture, decision 99", False)]),
        ("(architecture, Lifecycle)", [("architecture.md, Lifecycle)", True)]),
        ("(architecture, Nothing)", [("architecture.md, Nothing)", False)]),
        ("docs/adr/0001, docs/adr/9999", [("docs/adr/0001", True), ("docs/adr/9999", False)]),
        ("ADR 1 and ADR 9999", [("ADR 1", True), ("ADR 9999", False)]),
        ("see plugins.md", [("plugins.md", True)]),
        ("see nothing.md", [("nothing.md", False)]),
    ],
)
def test_broken_references_are_found(text, expected):
    assert list(references(text)) == expected


@pytest.mark.parametrize(
    ("text", "resolves"),
    [
        ("system-plugins.md, Host services.", True),
        ("system-plugins.md, worker:route)", True),
        ("system-plugins.md, Guest services", False),
        ("performance.md, Where the time goes)", True),
        ("performance.md, P99", False),
    ],
)
def test_reference_resolves_only_if_page_has_the_heading(text, resolves):
    assert next(iter(references(text)))[1] is resolves
