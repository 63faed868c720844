"""docs/reference/cli.md: verbs, options and exit codes of all programs, from their parsers."""

from __future__ import annotations

import argparse
import contextlib
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

from generate import codes, source
from generate.markdown import Page, code, or_dash, sentence, slug
from latticed import apply, daemon, journal
from latticed.ctl import completion, exit_codes, main
from latticed.fleet import agent
from latticed.fleet.controller import process as controller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COMMON: Final = frozenset({"--format", "--abs-time", "--socket", "--config"})
ENVIRONMENT: Final = (
    ("LATTICED_SOCKET", "The control socket; as `--socket`."),
    ("LATTICECTL_FORMAT", "`text` or `json`; as `--format`."),
    ("NO_COLOR", "Set to anything: no colours."),
    ("COLUMNS", "Width of help and tables, where the terminal does not say it."),
)


def verbs(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """(name, parser) of the verbs directly below."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def options(parser: argparse.ArgumentParser, *, common: bool) -> Iterator[tuple[str, str]]:
    """(as it is typed, what it is) of options and arguments; those that all verbs have only with `common`."""
    for action in parser._actions:
        shared = bool(action.option_strings) and action.option_strings[-1] in COMMON
        if isinstance(action, argparse._SubParsersAction) or action.help == argparse.SUPPRESS:
            continue
        if isinstance(action, argparse._HelpAction) or (shared and not common):
            continue
        yield term(action), described(action, parser.prog)


def described(action: argparse.Action, prog: str) -> str:
    """Its help as a sentence, with the choices there are."""
    choices = f"One of {', '.join(map(str, action.choices))}." if action.choices else ""
    said = sentence((action.help or "") % {"default": action.default, "prog": prog})
    if choices and all(str(one) in said for one in action.choices or ()):
        choices = ""
    return " ".join(filter(None, (said, choices)))


def term(action: argparse.Action) -> str:
    """As it is typed: `--scope SCOPE`, `ID`."""
    value = action.metavar or action.dest.upper()
    shown = " ".join(value) if isinstance(value, tuple) else str(value)
    if not action.option_strings:
        return shown
    names = ", ".join(action.option_strings)
    return names if action.nargs == 0 else f"{names} {shown}"


def usage(prog: str, parser: argparse.ArgumentParser) -> str:
    """How a command is typed: `latticectl kv set BUCKET KEY VALUE`. argparse's own differs between Pythons."""
    words = [prog]
    apart = {id(one): group for group in parser._mutually_exclusive_groups for one in group._group_actions}
    told: set[int] = set()
    for action in parser._actions:
        shared = bool(action.option_strings) and action.option_strings[-1] in COMMON
        if shared or action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction) or id(action) in told:
            continue
        group = apart.get(id(action))
        those = [action] if group is None else [one for one in group._group_actions if one.help != argparse.SUPPRESS]
        told |= {id(one) for one in those}
        shown = " | ".join(map(_typed, those))
        needed = group.required if group is not None else action.required
        if needed:
            words.append(f"({shown})" if len(those) > 1 else shown)
        else:
            words.append(f"[{shown}]")
    # A space that does not break keeps an option on one line with its value.
    whole = [words[0], *(one.replace(" ", "\N{NO-BREAK SPACE}") for one in words[1:])]
    wrapped = textwrap.fill(" ".join(whole), 78, subsequent_indent="    ", break_on_hyphens=False)
    return wrapped.replace("\N{NO-BREAK SPACE}", " ")


def _typed(action: argparse.Action) -> str:
    if isinstance(action, argparse._SubParsersAction):
        return f"{action.metavar or 'VERB'} …"
    last = term(action) if not action.option_strings else term(action).rpartition(", ")[2]
    if action.nargs in {"*", "+"} or (action.nargs is None and isinstance(action, argparse._AppendAction)):
        return f"{last} …" if not action.option_strings or action.nargs else last
    return last


def parser_of(start: Callable[[list[str]], int]) -> argparse.ArgumentParser:
    """The parser that a program's `main` makes for itself."""
    found: list[argparse.ArgumentParser] = []

    class Found(Exception):
        """Ends `main` where it would parse."""

    def stop(self: argparse.ArgumentParser, _: Any = None) -> None:
        found.append(self)
        raise Found

    with mock.patch.object(argparse.ArgumentParser, "parse_args", stop), contextlib.suppress(Found):
        start([])
    return found[0]


def programs() -> dict[str, argparse.ArgumentParser]:
    """The parsers of the programs beside latticectl, by name."""
    return {
        "latticed": daemon._parser(),
        "latticed-apply": apply._parser(Path),
        "latticed-journal": parser_of(journal.main),
        "latticed-fleet": (of_agent := agent._parser()),
        "latticed-fleet join": dict(verbs(of_agent))["join"],
        "latticed-controller": controller.parser(),
    }


def exit_statuses(program: str) -> list[tuple[str, str]]:
    """(number, meaning) of the exit codes of a program."""
    if program == "latticectl":
        said = source.below(exit_codes.ExitCode)
        return [(str(int(one)), said[one.name]) for one in exit_codes.ExitCode]
    all_codes = {
        "latticed": daemon.EXIT_CODES,
        "latticed-apply": apply.EXIT_CODES,
        "latticed-fleet": agent.EXIT_CODES,
        "latticed-controller": controller.EXIT_CODES,
    }
    by_code: dict[str, int] = all_codes.get(program, {})
    found = {0: "Ended by a signal, in good order.", 1: "Any other error, named on stderr.", 2: "Wrong usage."}
    if program == "latticed":
        found[1] = "Any other error at the start, named on stderr; or it was ended at once by a second signal."
    for name, number in by_code.items():
        said = f"[`{name}`](codes.md#{codes.anchor(name)}): {codes.text_of(name).means}"
        found[number] = f"{found[number]}; {said}" if number in found else said
    return [(str(number), meaning) for number, meaning in sorted(found.items())]


def page() -> str:
    """The page."""
    whole = completion.whole_parser()
    found = Page(
        "Commands",
        "`latticectl` asks the daemon on its control socket, or works offline on bundles, keys and indexes:",
    )
    found.block("text", "latticectl [options] VERB …\n\n" + main.load("list").EXAMPLES.partition("\n")[2])
    found.text(
        "Data goes to stdout, everything else to stderr. A verb whose outcome holds already succeeds and says so. Ids"
        " are those of `latticectl list`. With `--format json` reading verbs print JSON."
    )
    found.heading("Options of all verbs", anchor="common-options")
    found.text("Before or behind the verb:")
    found.table(("option", "meaning"), [(code(one), said) for one, said in options(whole, common=True)])
    for group in dict.fromkeys(verb.group for verb in main.VERBS.values()):
        found.heading(group, level=3)
        found.items(
            f"[`{name}`](#{slug('latticectl', name)}): {verb.summary}"
            for name, verb in main.VERBS.items()
            if verb.group == group
        )
    for verb, parser in verbs(whole):
        found.heading(f"latticectl {verb}", anchor=slug("latticectl", verb))
        found.text(sentence(parser.description))
        found.block("text", usage(f"latticectl {verb}", parser))
        _table(found, parser)
        for name, below in verbs(parser):
            found.heading(f"latticectl {verb} {name}", level=3, anchor=slug("latticectl", verb, name))
            found.text(sentence(below.description))
            found.block("text", usage(f"latticectl {verb} {name}", below))
            _table(found, below)
        found.text("Examples:")
        found.block("text", main.load(verb).EXAMPLES.partition("\n")[2])
    for name, parser in programs().items():
        found.heading(name, anchor=slug(name))
        found.text(sentence(parser.description))
        found.block("text", usage(name, parser))
        _table(found, parser)
    for name in ("latticectl", *programs()):
        found.heading(f"Exit codes of {name}", anchor=slug("exit-codes-of", name))
        found.table(("exit code", "meaning"), exit_statuses(name))
    found.heading("Environment", anchor="environment")
    found.text("Of latticectl; [the daemon's](settings.md#environment-variables) are with its settings.")
    found.table(("variable", "meaning"), [(code(name), meaning) for name, meaning in ENVIRONMENT])
    return str(found)


def _table(found: Page, parser: argparse.ArgumentParser) -> None:
    rows = [(code(one), or_dash(said)) for one, said in options(parser, common=False)]
    if rows:
        found.table(("argument", "meaning"), rows)
