"""Writes latticed's man pages: python packaging/manual.py DIRECTORY

Of the same facts as docs/reference, in the macros of man(7): see docs/generate.
"""

# ruff: noqa: INP001, SLF001 - a program of the build, no package; argparse has no public list of a parser's options
from __future__ import annotations

import datetime as dt
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import argparse

DOCS: Final = Path(__file__).resolve().parents[1] / "docs"
sys.path.insert(0, str(DOCS))
# Help is wrapped to this width, whatever terminal the build runs on.
os.environ["COLUMNS"] = "80"

from generate import cli, settings, source  # noqa: E402
from generate import manifest as manifests  # noqa: E402
from generate.markdown import plain, sentence  # noqa: E402

import latticed  # noqa: E402
from latticed import apply, daemon, journal  # noqa: E402
from latticed.ctl import completion  # noqa: E402
from latticed.ctl import main as ctl  # noqa: E402
from latticed.fleet import agent_settings  # noqa: E402
from latticed.fleet.controller import settings as controller_settings  # noqa: E402
from latticed.model import capability  # noqa: E402

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
    for term, meaning in cli.options(parser, common=common):
        page.item(term, meaning)


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
    for verb, parser in cli.verbs(whole):
        page.subheading(f"latticectl {verb}")
        page.text(f"{parser.description}")
        page.verbatim(cli.usage(f"latticectl {verb}", parser))
        _options(page, parser, common=False)
        for name, below in cli.verbs(parser):
            page.item(f"{verb} {name}", below.description or "")
            page.verbatim(cli.usage(f"latticectl {verb} {name}", below))
            _options(page, below, common=False)
        page.text("Examples:")
        page.verbatim(ctl.load(verb).EXAMPLES.partition("\n")[2])
    _exit_codes(page, "latticectl")
    page.heading("ENVIRONMENT")
    for name, meaning in cli.ENVIRONMENT:
        page.item(name, _plain(meaning))
    _ending(page, "latticed(8)", "latticed.toml(5)", "latticed-manifest(5)")
    return page


def latticed_8() -> Page:
    page = Page("latticed", 8, "run signed plugins without trusting them blindly")
    page.heading("SYNOPSIS")
    page.verbatim(cli.usage("latticed", daemon._parser()))
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
    _exit_codes(page, "latticed")
    page.heading("ENVIRONMENT")
    for name, key in settings.variables():
        page.item(name, f"Sets {key}.")
    _ending(page, "latticectl(1)", "latticed.toml(5)", "latticed-apply(8)", "latticed-journal(8)")
    return page


def latticed_apply() -> Page:
    parser = apply._parser(Path)
    page = Page("latticed-apply", 8, "apply approved plans of latticed, as root")
    page.heading("SYNOPSIS")
    page.verbatim(cli.usage("latticed-apply", parser))
    page.heading("DESCRIPTION")
    page.text(
        "The root helper. It renders plans of plugins again, applies what an operator approved to it, and undoes what"
        " nobody confirms in time. Its settings are the section apply of latticed.toml(5), which root alone may be able"
        " to change. latticed-apply.socket starts it; latticed-apply-boot.service puts back what was confirmed."
    )
    page.heading("OPTIONS")
    _options(page, parser, common=True)
    _exit_codes(page, "latticed-apply")
    _ending(page, "latticed(8)", "latticectl(1)", "latticed.toml(5)")
    return page


def latticed_journal() -> Page:
    page = Page("latticed-journal", 8, "show latticed what it may of the journal")
    page.heading("SYNOPSIS")
    parser = cli.parser_of(journal.main)
    page.verbatim(cli.usage("latticed-journal", parser))
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


def latticed_fleet() -> Page:
    programs = cli.programs()
    page = Page("latticed-fleet", 8, "have this host run what the operator of its fleet signs")
    page.heading("SYNOPSIS")
    page.verbatim(cli.usage("latticed-fleet", programs["latticed-fleet"]))
    page.verbatim(cli.usage("latticed-fleet join", programs["latticed-fleet join"]))
    page.heading("DESCRIPTION")
    page.text(
        "The agent of a host that is of a fleet. It takes documents that the fleet's operator signed, and asks latticed"
        " for what they want, as any operator of the host would: its user is latticed-fleet, and [access] of"
        " latticed.toml(5) says what it may. latticed-fleet.service runs it once the host has joined.",
        "latticed-fleet join, run as root, has the host join by an invitation that latticectl fleet enroll made. It may"
        " be run again at any moment, and gives a host new credentials that was off for longer than they last.",
    )
    page.heading("OPTIONS")
    _options(page, programs["latticed-fleet"], common=True)
    page.text("Of join:")
    _options(page, programs["latticed-fleet join"], common=False)
    _exit_codes(page, "latticed-fleet")
    page.heading("SETTINGS")
    page.text("/etc/latticed/fleet.toml, root's alone to change; each has a default.")
    for name, meaning in source.below(agent_settings.AgentSettings).items():
        page.item(name, meaning)
    _ending(page, "latticed(8)", "latticectl(1)", "latticed.toml(5)")
    return page


def latticed_controller() -> Page:
    parser = cli.programs()["latticed-controller"]
    page = Page("latticed-controller", 8, "give the hosts of a fleet what their operator signed")
    page.heading("SYNOPSIS")
    page.verbatim(cli.usage("latticed-controller", parser))
    page.heading("DESCRIPTION")
    page.text(
        "The controller of a fleet. It keeps documents that operators signed, gives hosts the signed intents in waves,"
        " goes back by itself when a release is bad, and keeps what hosts report. It has no right on any host: what no"
        " operator signed no host takes.",
        "Of two controllers one acts, by a lease in the message system. It is asked with latticectl fleet, on"
        " /run/latticed-controller/control.sock, where GET /metrics is answered too.",
        "latticectl fleet init makes its files, which belong into /etc/latticed-controller, root's alone.",
    )
    page.heading("OPTIONS")
    _options(page, parser, common=True)
    _exit_codes(page, "latticed-controller")
    page.heading("SETTINGS")
    page.text("/etc/latticed/controller.toml, or /etc/latticed-controller/controller.toml without it.")
    for name, meaning in source.below(controller_settings.ControllerSettings).items():
        page.item(name, meaning)
    for section, kind in (
        ("engine", controller_settings.EngineSettings),
        ("rollout", controller_settings.GateSettings),
        ("access", controller_settings.ApiAccess),
        ("enrolment", controller_settings.EnrolmentSettings),
    ):
        for name, meaning in source.below(kind).items():
            page.item(f"{section}.{name}", meaning)
    _ending(page, "latticed-fleet(8)", "latticectl(1)")
    return page


def latticed_toml() -> Page:
    page = Page("latticed.toml", 5, "settings of latticed")
    page.heading("DESCRIPTION")
    page.text(
        "TOML. latticed --check-config prints each effective value and where it came from. An unknown key or bad value"
        " is an error that names the key and what was expected."
    )
    for section in settings.sections():
        page.heading(f"[{section.name}]" if section.name else "KEYS ABOVE ALL TABLES")
        page.text(_plain(section.about))
        for row in section.rows:
            unit = row.unit and f" Unit: {row.unit}."
            default = "" if row.default == "see meaning" else f" Default: {row.default}."
            bounds = row.bounds and f" Allowed: {row.bounds}."
            page.item(row.key, f"{_plain(row.meaning)}{unit}{default}{bounds} Takes effect at: {row.since}.")
    page.heading("EXAMPLE")
    page.verbatim((DOCS.parent / "packaging/latticed.toml").read_text(encoding="utf-8"))
    _ending(page, "latticed(8)", "latticed-apply(8)")
    return page


def latticed_manifest() -> Page:
    page = Page("latticed-manifest", 5, "manifest of a plugin of latticed")
    page.heading("DESCRIPTION")
    page.text(
        "A bundle is a directory with the files manifest.json and artifact. The manifest is one strict JSON object in"
        " UTF-8: no unknown fields, no duplicate keys. Without the field schema it is of version 1. latticectl sign"
        " writes publisher, digest and signature."
    )
    page.heading("FIELDS")
    for row in manifests.top():
        _field(page, row)
    for path, part, rows in manifests.parts():
        page.subheading(path)
        page.text(_plain(plain(part.__doc__)))
        for row in rows:
            _field(page, row)
    page.heading("CAPABILITIES")
    for name, risk in capability.RISKS.items():
        page.item(name, f"Risk: {risk}.")
    _ending(page, "latticectl(1)", "latticed(8)")
    return page


def _field(page: Page, row: manifests.Row) -> None:
    which = "" if "1" in row.versions or "." in row.path else "Version 2. "
    needed = {"yes": "Required. ", "no": ""}.get(row.required, "Required in version 2. ")
    default = row.default and f" Default: {row.default}."
    page.item(row.path, _plain(f"{which}{needed}{sentence(row.kind)} {row.meaning}{default}"))


def _plain(text: str) -> str:
    """Text without marks of Markdown."""
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).replace("`", "")


def _exit_codes(page: Page, program: str) -> None:
    page.heading("EXIT STATUS")
    for code, meaning in cli.exit_statuses(program):
        page.item(code, sentence(_plain(meaning)))


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


PAGES: Final = (
    latticectl,
    latticed_8,
    latticed_apply,
    latticed_journal,
    latticed_fleet,
    latticed_controller,
    latticed_toml,
    latticed_manifest,
)

if __name__ == "__main__":
    for make in PAGES:
        make().write(Path(sys.argv[1]))
