"""Command lines: the options every verb takes, and usage errors that read like all other errors."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any, Final, NoReturn

from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FORMATS: Final = ("text", "json")
"""Values of --format and LATTICECTL_FORMAT."""

_COLUMNS: Final = 80
"""Width where stdout is no terminal."""


class _Help(argparse.RawDescriptionHelpFormatter):
    """Finds the terminal's width without shutil, which argparse would import, with all compressors, at every start."""

    def __init__(self, prog: str, **how: Any) -> None:
        super().__init__(prog, **{"width": _columns() - 2, **how})


def _columns() -> int:
    """The width for help in columns: COLUMNS, the terminal's, or 80."""
    try:
        return int(os.environ.get("COLUMNS", "")) or _COLUMNS
    except ValueError:
        pass
    try:
        return os.get_terminal_size(1).columns or _COLUMNS
    except OSError:
        return _COLUMNS


class _Actions(argparse._SubParsersAction):  # type: ignore[type-arg]  # noqa: SLF001 - what add_subparsers makes
    """The actions of a verb: the line that its help has of one describes it in the action's own help, too."""

    def add_parser(self, name: str, **how: Any) -> Any:
        if said := how.get("help"):
            how.setdefault("description", f"{said[0].upper()}{said[1:]}.")
        return super().add_parser(name, **how)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that knows the common options and raises Problem("usage") instead of exiting.

    Sub-parsers are of the same class, so the common options may stand before or after any verb. An argument without a
    `type` must be valid UTF-8; paths, which may be any bytes, have `type=str`.
    """

    def __init__(self, **how: Any) -> None:
        how.setdefault("formatter_class", _Help)
        # An abbreviation in a script would become ambiguous with the next option that is added.
        how.setdefault("allow_abbrev", False)
        super().__init__(**how)
        self.register("action", "parsers", _Actions)
        # The type of arguments that name none: argparse looks it up under None.
        self.register("type", None, _text)
        # SUPPRESS: the default of a verb's parser must not overwrite what stood before the verb.
        common = self.add_argument_group("common options")
        common.add_argument(
            "--format", choices=FORMATS, default=argparse.SUPPRESS, help="how to print (LATTICECTL_FORMAT)"
        )
        common.add_argument("--abs-time", action="store_true", default=argparse.SUPPRESS, help="print times as dates")
        common.add_argument(
            "--socket", metavar="PATH", type=str, default=argparse.SUPPRESS, help="control socket (LATTICED_SOCKET)"
        )
        common.add_argument(
            "--config", metavar="FILE", type=str, default=argparse.SUPPRESS, help="settings file of the daemon"
        )

    def add_subparsers(self, **how: Any) -> Any:
        """As argparse's; what follows the action is checked by the action's own parser."""
        actions = super().add_subparsers(**how)
        actions.type = str  # each sub-parser checks its own arguments
        return actions

    def verbs(self) -> Iterator[tuple[str, Parser]]:
        """(name, parser) of each verb or action directly below."""
        for one in self._actions:
            if isinstance(one, _Actions):
                yield from one.choices.items()

    def error(self, message: str) -> NoReturn:
        """Raise Problem usage, where argparse would print and exit with 2."""
        raise Problem("usage", message, f"{self.prog} --help shows how")


def _text(given: str) -> str:
    """An argument that must be UTF-8; ArgumentTypeError otherwise."""
    try:
        given.encode()
    except UnicodeEncodeError as error:  # invalid UTF-8 in argv is decoded to lone surrogates (PEP 383)
        raise argparse.ArgumentTypeError(f"expected UTF-8, found {os.fsencode(given)[:80]!r}") from error
    return given


def descriptor(text: str) -> int:
    """An argument's type: a number of a file descriptor."""
    if not (text.isascii() and text.isdigit() and len(text) <= 6):
        raise argparse.ArgumentTypeError(f"expected the number of a descriptor, found {text[:40]!r}")
    return int(text)


def count(text: str) -> int:
    """An argument's type: a whole number of at most 15 digits."""
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise argparse.ArgumentTypeError(f"expected a whole number, found {text[:40]!r}")
    return int(text)


def newest(most: int) -> Callable[[str], int]:
    """An argument's type: how many rows, at most as many as one request answers."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or len(text) > 15 or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"expected a whole number of 1 to {most}, found {text[:40]!r}")
        return int(text)

    return parse


def cursor(text: str) -> str:
    """An argument's type: a cursor of the audit chains, which is a seq of the decisions or `<decisions>.<calls>`."""
    from latticed.model import chain

    if chain.cursor(text) is None:
        raise argparse.ArgumentTypeError(f"expected a number, or two with a dot between, found {text[:40]!r}")
    return text


def examples(*lines: str) -> str:
    """The epilog of a verb's help: `lines`, each indented, below the word "examples:"."""
    return "examples:\n" + "\n".join(f"  {line}" for line in lines)
