"""latticectl completion: a script for bash, zsh or fish that completes verbs and options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl completion bash > /etc/bash_completion.d/latticectl",
    "latticectl completion zsh > ~/.zfunc/_latticectl",
    "latticectl completion fish > ~/.config/fish/completions/latticectl.fish",
)


def arguments(parser: Parser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell that the script is for")


def run(session: CtlSession) -> int:
    """Print the completion script."""
    # Imported here, as no other verb needs it.
    import shtab

    session.screen.out.write(shtab.complete(whole_parser(), shell=session.args.shell) + "\n")
    return ExitCode.OK


def whole_parser() -> Parser:
    """One parser with all verbs, from which completions and the documented list of verbs are made."""
    from latticed.ctl import main

    parser = Parser(prog=main.PROG)
    parser.add_argument("--version", action="store_true", help="print latticectl's version")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for verb in main.VERBS:
        main.verb_parser(verb, main.load(verb), verbs)
    return parser
