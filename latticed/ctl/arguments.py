"""Command lines: the options every verb takes, and usage errors that read like all other errors."""

from __future__ import annotations

import argparse
import os
from typing import Any, Final, NoReturn

from latticed.model.errors import Problem

FORMATS: Final = ("text", "json")

_COLUMNS: Final = 80


class _Help(argparse.RawDescriptionHelpFormatter):
    """Finds the terminal's width without shutil, which argparse would import, with all compressors, at every start."""

    def __init__(self, prog: str, **how: Any) -> None:
        super().__init__(prog, **{"width": _columns() - 2, **how})


def _columns() -> int:
    try:
        return int(os.environ.get("COLUMNS", "")) or _COLUMNS
    except ValueError:
        pass
    try:
        return os.get_terminal_size(1).columns or _COLUMNS
    except OSError:
        return _COLUMNS


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that knows the common options and raises Problem("usage") instead of exiting.

    Sub-parsers are of the same class, so the common options may stand before or after any verb. An argument without a
    `type` must be valid UTF-8; paths, which may be any bytes, have `type=str`.
    """

    def __init__(self, **how: Any) -> None:
        how.setdefault("formatter_class", _Help)
        how.setdefault("allow_abbrev", False)
        super().__init__(**how)
        self.register("type", None, _text)
        common = self.add_argument_group("common options")
        common.add_argument("--format", choices=FORMATS, default=argparse.SUPPRESS, help="LATTICECTL_FORMAT")
        common.add_argument("--abs-time", action="store_true", default=argparse.SUPPRESS, help="print times as dates")
        common.add_argument("--socket", metavar="PATH", type=str, default=argparse.SUPPRESS, help="LATTICED_SOCKET")
        common.add_argument(
            "--config", metavar="FILE", type=str, default=argparse.SUPPRESS, help="settings file of the daemon"
        )

    def add_subparsers(self, **how: Any) -> Any:
        actions = super().add_subparsers(**how)
        actions.type = str  # each sub-parser checks its own arguments
        return actions

    def error(self, message: str) -> NoReturn:
        raise Problem("usage", message, f"{self.prog} --help shows how")


def _text(given: str) -> str:
    try:
        given.encode()
    except UnicodeEncodeError as error:  # invalid UTF-8 in argv is decoded to lone surrogates (PEP 383)
        raise argparse.ArgumentTypeError(f"expected UTF-8, found {os.fsencode(given)[:80]!r}") from error
    return given


def cursor(text: str) -> str:
    """An argument's type: a cursor of the audit chains, which is a seq of the decisions or `<decisions>.<calls>`."""
    from latticed.model import chain

    if chain.cursor(text) is None:
        raise argparse.ArgumentTypeError(f"expected a number, or two with a dot between, found {text[:40]!r}")
    return text


def examples(*lines: str) -> str:
    """An epilog that shows how a verb is used."""
    return "examples:\n" + "\n".join(f"  {line}" for line in lines)
