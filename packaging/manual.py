"""Writes latticed's man pages: python packaging/manual.py DIRECTORY

Options come from the parsers, settings from their dataclasses, fields of a manifest from its structs. What a setting or
a field means is in one place, the tables of docs/operate/settings.md and docs/write/plugins.md.
"""

# ruff: noqa: INP001, SLF001 - a program of the build, no package; argparse has no public list of a parser's options
from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import inspect
import json
import os
import re
import sys
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DOCS: Final = Path(__file__).resolve().parents[1] / "docs"
# Help is wrapped to this width, whatever terminal the build runs on.
os.environ["COLUMNS"] = "80"

import msgspec  # noqa: E402

import latticed  # noqa: E402
from latticed import apply, daemon, journal, settings  # noqa: E402
from latticed.ctl import completion  # noqa: E402
from latticed.ctl import main as ctl  # noqa: E402
from latticed.model import capability, manifest  # noqa: E402

FILES: Final = (
    ("/etc/latticed/latticed.toml", "Settings, see latticed.toml(5)."),
    ("/etc/latticed/trust.json", "The trust policy; latticectl trust edits it."),
    ("/etc/credstore/latticed-secrets.key", "The key that secrets are sealed with. Keep a copy."),
    ("/var/lib/latticed-plugins", "The plugin directory, root's."),
    ("/var/lib/latticed", "State: the ledger, the host key, the store of verified bundles."),
    ("/run/latticed/control.sock", "The control socket."),
)


class Page:
    """The source of one page, in the macros of man(7)."""

    def __init__(self, name: str, section: int, summary: str) -> None:
        self.name, self.section = name, section
        # The date of the source, so that the same source gives the same page.
        made = dt.datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), dt.UTC)
        title = f'.TH {_quoted(name.upper())} {section} {made:%Y-%m-%d} "latticed {latticed.__version__}"'
        self._lines = [title]
        self.heading("NAME")
        self._lines.append(f"{_text(name)} \\- {_text(summary)}")

    def heading(self, title: str) -> None:
        self._lines.append(f".SH {_quoted(title)}")

    def subheading(self, title: str) -> None:
        self._lines.append(f".SS {_quoted(title)}")

    def text(self, *paragraphs: str) -> None:
        for one in paragraphs:
            self._lines += [".PP", _text(" ".join(one.split()))]

    def verbatim(self, text: str) -> None:
        self._lines += [".PP", ".nf", *(_text(line) for line in text.strip("\n").splitlines()), ".fi"]

    def item(self, term: str, meaning: str) -> None:
        self._lines += [".TP", f".B {_text(term)}", _text(" ".join(meaning.split()) or "-")]

    def write(self, directory: Path) -> None:
        place = directory / f"man{self.section}" / f"{self.name}.{self.section}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("\n".join(self._lines) + "\n", encoding="utf-8")


def _text(text: str) -> str:
    """Text that troff prints as it is (groff(7), Escape sequences); a line may not begin like a request."""
    shown = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return f"\\&{shown}" if shown.startswith(".") else shown


def _quoted(text: str) -> str:
    return '"' + _text(text).replace('"', "\\(dq") + '"'


def _options(page: Page, parser: argparse.ArgumentParser, *, common: bool) -> None:
    """The options and arguments of `parser`; those that all verbs have only with `common`."""
    for action in parser._actions:
        shared = action.option_strings and action.option_strings[-1] in _common_options()
        if isinstance(action, argparse._SubParsersAction) or action.help == argparse.SUPPRESS:
            continue
        if isinstance(action, argparse._HelpAction) or (shared and not common):
            continue
        choices = f"One of {', '.join(map(str, action.choices))}." if action.choices else ""
        said = " ".join(((action.help or "") % {"default": action.default, "prog": parser.prog}).split())
        page.item(_term(action), " ".join(filter(None, (said and f"{said[0].upper()}{said[1:]}.", choices))))


def _term(action: argparse.Action) -> str:
    """As it is typed: `--scope SCOPE`, `ID`."""
    value = action.metavar or action.dest.upper()
    shown = " ".join(value) if isinstance(value, tuple) else str(value)
    if not action.option_strings:
        return shown
    names = ", ".join(action.option_strings)
    return names if action.nargs == 0 else f"{names} {shown}"


def _common_options() -> frozenset[str]:
    return frozenset({"--format", "--abs-time", "--socket", "--config"})


def _verbs(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """(name, parser) of the verbs directly below."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _usage(parser: argparse.ArgumentParser) -> str:
    return parser.format_usage().removeprefix("usage: ")


def latticectl() -> Page:
    page = Page("latticectl", 1, "drive latticed, which runs signed plugins on this host")
    page.heading("SYNOPSIS")
    page.verbatim("latticectl [options] VERB …")
    page.heading("DESCRIPTION")
    page.text(
        "latticectl asks the daemon on its control socket, or works offline on bundles, keys and indexes. Data goes to"
        " stdout, everything else to stderr. What is so already succeeds."
    )
    page.heading("OPTIONS")
    whole = completion.whole_parser()
    page.text("Before or after the verb:")
    _options(page, whole, common=True)
    page.heading("VERBS")
    for verb, parser in _verbs(whole):
        page.subheading(f"latticectl {verb}")
        page.text(f"{parser.description}")
        page.verbatim(_usage(parser))
        _options(page, parser, common=False)
        for name, below in _verbs(parser):
            page.item(f"{verb} {name}", below.description or "")
            page.verbatim(_usage(below))
            _options(page, below, common=False)
        page.text("Examples:")
        page.verbatim(ctl.load(verb).EXAMPLES.partition("\n")[2])
    _exit_codes(page, "exit code of latticectl")
    page.heading("ENVIRONMENT")
    page.item("LATTICED_SOCKET", "The control socket.")
    page.item("LATTICECTL_FORMAT", "text or json.")
    page.item("NO_COLOR", "No colours.")
    _ending(page, "latticed(8)", "latticed.toml(5)", "latticed-manifest(5)")
    return page


def latticed_8() -> Page:
    page = Page("latticed", 8, "run signed plugins without trusting them blindly")
    page.heading("SYNOPSIS")
    page.verbatim(_usage(daemon._parser()))
    page.heading("DESCRIPTION")
    page.text(
        "latticed verifies signed bundles in a directory, records what the operator decided about each, runs them in"
        " sandboxes, and checks every call they make to the host. As a package it runs as latticed.service, started by"
        " latticed.socket; latticectl(1) drives it."
    )
    page.heading("OPTIONS")
    _options(page, daemon._parser(), common=True)
    page.heading("SIGNALS")
    for name, meaning in _table("operate/settings.md", "signal"):
        page.item(name, meaning)
    _exit_codes(page, "exit code of latticed")
    page.heading("ENVIRONMENT")
    for name, key in _table("operate/settings.md", "variable"):
        page.item(name, f"Sets {key}.")
    _ending(page, "latticectl(1)", "latticed.toml(5)", "latticed-apply(8)", "latticed-journal(8)")
    return page


def latticed_apply() -> Page:
    parser = apply._parser(Path)
    page = Page("latticed-apply", 8, "apply approved plans of latticed, as root")
    page.heading("SYNOPSIS")
    page.verbatim(_usage(parser))
    page.heading("DESCRIPTION")
    page.text(
        "The root helper. It renders plans of plugins again, applies what an operator approved to it, and undoes what"
        " nobody confirms in time. Its settings are the section apply of latticed.toml(5), which root alone may be able"
        " to change. latticed-apply.socket starts it; latticed-apply-boot.service puts back what was confirmed."
    )
    page.heading("OPTIONS")
    _options(page, parser, common=True)
    page.heading("EXIT STATUS")
    page.item("0", "Ended in good order.")
    for code, number in apply.EXIT_CODES.items():
        page.item(str(number), f"{code}.")
    page.item("1", "Any other error.")
    _ending(page, "latticed(8)", "latticectl(1)", "latticed.toml(5)")
    return page


def latticed_journal() -> Page:
    page = Page("latticed-journal", 8, "show latticed what it may of the journal")
    page.heading("SYNOPSIS")
    parser = _parser_of(journal.main)
    page.verbatim(_usage(parser))
    page.heading("DESCRIPTION")
    page.text(
        "Reads the journal for a daemon that may not, and answers it alone: entries of units that node.journal_units"
        " names in latticed.toml(5), SSH logins, and the signed heads of the audit record. latticed-journal.socket"
        " starts it."
    )
    page.heading("OPTIONS")
    _options(page, parser, common=True)
    _ending(page, "latticed(8)", "latticed.toml(5)")
    return page


def _parser_of(main: Callable[[list[str]], int]) -> argparse.ArgumentParser:
    """The parser that a program's `main` makes for itself."""
    found: list[argparse.ArgumentParser] = []

    class Found(Exception):
        """Ends `main` where it would parse."""

    def stop(self: argparse.ArgumentParser, _: Any = None) -> None:
        found.append(self)
        raise Found

    with mock.patch.object(argparse.ArgumentParser, "parse_args", stop), contextlib.suppress(Found):
        main([])
    return found[0]


def latticed_toml() -> Page:
    page = Page("latticed.toml", 5, "settings of latticed")
    page.heading("DESCRIPTION")
    page.text(
        "TOML. latticed --check-config prints each effective value and where it came from. An unknown key or bad value"
        " is an error that names the key and what was expected."
    )
    page.heading("KEYS")
    meanings = {key: meaning for key, _, _, meaning in _table("operate/settings.md", "key")}
    for key, default, bounds in setting_rows():
        page.item(key, f"{meanings[key]}. Default: {default}. {bounds and f'Allowed: {bounds}.'}")
    page.heading("EXAMPLE")
    page.verbatim((DOCS.parent / "packaging/latticed.toml").read_text(encoding="utf-8"))
    _ending(page, "latticed(8)", "latticed-apply(8)")
    return page


def setting_rows() -> Iterator[tuple[str, str, str]]:
    """(key, default, bounds) of every setting."""
    for section in fields(settings.Settings):
        if is_dataclass(section.default):
            yield from _section_rows(section.name, section.default)
        elif section.name in {"plugin_dir", "state_dir", "runtime_dir", "trust"}:
            yield section.name, "see latticed(8), FILES", "an absolute path"


def _section_rows(name: str, part: Any) -> Iterator[tuple[str, str, str]]:
    for key in fields(part):
        value, rules = getattr(part, key.name), key.metadata
        if is_dataclass(value):
            yield from _section_rows(f"{name}.{key.name}", value)
            continue
        bounds = ", ".join(rules["one_of"]) if rules["low"] is None else f"{rules['low']:g} to {rules['high']:g}"
        yield f"{name}.{key.name}", json.dumps(value), bounds


def latticed_manifest() -> Page:
    page = Page("latticed-manifest", 5, "manifest of a plugin of latticed")
    page.heading("DESCRIPTION")
    page.text(
        "A bundle is a directory with the files manifest.json and artifact. The manifest is one strict JSON object in"
        " UTF-8: no unknown fields, no duplicate keys. Without the field schema it is of version 1. latticectl sign"
        " writes publisher, digest and signature."
    )
    described = {row[0]: row[-1] for row in _table("write/plugins.md", "field of v1")}
    described |= {row[0]: row[-1] for row in _table("write/plugins.md", "field of v2")}
    described["schema"] = f"absent in version 1; {manifest.SCHEMA_V2} in version 2"
    page.heading("FIELDS")
    for name, kind, required in manifest_rows(manifest.Manifest):
        which = "" if name in manifest.V1_FIELDS else "Version 2. "
        needed = "Required. " if required else "Required in version 2. " if name in manifest.V2_REQUIRED else ""
        page.item(name, f"{which}{needed}{kind}. {described[name][:1].upper()}{described[name][1:]}.")
    for path, part in _parts("", manifest.Manifest):
        page.subheading(path)
        page.text(inspect.getdoc(part) or "")
        for name, kind, required in manifest_rows(part):
            page.item(f"{path}.{name}", f"{'Required. ' if required else ''}{kind}.")
    page.heading("CAPABILITIES")
    for name, risk in capability.RISKS.items():
        page.item(name, f"Risk: {risk}.")
    _ending(page, "latticectl(1)", "latticed(8)")
    return page


def manifest_rows(part: type[msgspec.Struct]) -> Iterator[tuple[str, str, bool]]:
    """(name, type in words, required) of each field of a part of a manifest."""
    hints = typing.get_type_hints(part)
    for field in msgspec.structs.fields(part):
        yield field.encode_name, _kind(hints[field.name]), field.required


def _parts(path: str, part: type[msgspec.Struct]) -> Iterator[tuple[str, type[msgspec.Struct]]]:
    """(path, struct) of all objects within `part`."""
    for name, hint in typing.get_type_hints(part).items():
        for one in (hint, *typing.get_args(hint)):
            if isinstance(one, type) and issubclass(one, msgspec.Struct):
                where = f"{path}.{name}".lstrip(".") + ("[]" if one is not hint else "")
                yield where, one
                yield from _parts(where, one)


def _kind(hint: Any) -> str:
    """The JSON that a type stands for, in words."""
    words = {str: "Text", int: "Integer", bool: "true or false", Any: "Any JSON", dict: "Object"}
    if typing.get_origin(hint) is typing.Literal:
        return "One of " + ", ".join(map(str, typing.get_args(hint)))
    inner = [one for one in typing.get_args(hint) if one not in {type(None), Ellipsis}]
    if typing.get_origin(hint) is tuple:
        return f"List: {_kind(inner[0])}"
    if typing.get_origin(hint) is dict:
        return words[dict]
    if inner:
        return _kind(inner[0])
    return words.get(hint, "Object")


def _exit_codes(page: Page, column: str) -> None:
    page.heading("EXIT STATUS")
    for code, meaning in _table("operate/settings.md", column):
        page.item(code, f"{meaning}.")


def _ending(page: Page, *others: str) -> None:
    if page.section != 1:
        page.heading("FILES")
        for path, meaning in FILES:
            page.item(path, meaning)
    page.heading("SEE ALSO")
    page.text(", ".join(others), "All of the documentation is in /usr/share/doc/latticed.")


def _table(name: str, first: str) -> list[tuple[str, ...]]:
    """The rows of the table of a page whose first column is called `first`, without marks of Markdown."""
    lines = (DOCS / name).read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line).replace("`", "")
        rows.append(tuple(cell.strip() for cell in plain.strip("|").split("|")))
    return rows


PAGES: Final = (latticectl, latticed_8, latticed_apply, latticed_journal, latticed_toml, latticed_manifest)

if __name__ == "__main__":
    for make in PAGES:
        make().write(Path(sys.argv[1]))
