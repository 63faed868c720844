"""latticectl's entry point: imports only the verb's module, runs it, turns problems into messages and exit codes."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import importlib
import os
import sys
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, Protocol, cast

import latticed
from latticed.ctl import render
from latticed.ctl.arguments import FORMATS, Parser
from latticed.ctl.exit_codes import ExitCode, of
from latticed.ctl.session import CtlSession
from latticed.kit import process_start
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROG: Final = "latticectl"


class Verb(NamedTuple):
    """The heading of the overview that a verb is under, and its help in one line."""

    group: str
    summary: str


class VerbModule(Protocol):
    """The interface of a verb's module.

    `EXAMPLES` ends its help. `arguments` adds its options to `parser`. `run` carries it out and returns an ExitCode; it
    raises Problem for what is to be printed as `error:` and `hint:`.
    """

    EXAMPLES: str

    def arguments(self, parser: Parser) -> None: ...

    def run(self, session: CtlSession) -> int: ...


_LOOK: Final = "Look"
_WATCH: Final = "Watch and ask why"
_DECIDE: Final = "Decide about a plugin"
_DATA: Final = "Data and permissions"
_RECORD: Final = "Trust and record"
_FLEET: Final = "Many hosts"
_AUTHOR: Final = "Make bundles (offline)"
_SELF: Final = "latticectl itself"

VERBS: Final[Mapping[str, Verb]] = MappingProxyType(
    {
        "status": Verb(_LOOK, "the daemon at a glance"),
        "list": Verb(_LOOK, "all plugins, one a line"),
        "info": Verb(_LOOK, "everything about one plugin"),
        "rejected": Verb(_LOOK, "bundles that were refused, and why"),
        "health": Verb(_LOOK, "whether the daemon is well"),
        "doctor": Verb(_LOOK, "whether everything around the daemon is as it should be, and what helps"),
        "ui": Verb(_LOOK, "the console: pages in a browser, on loopback alone"),
        "logs": Verb(_WATCH, "what a plugin says"),
        "explain": Verb(_WATCH, "why a plugin is as it is, and what to do"),
        "events": Verb(_WATCH, "what happens, as it happens"),
        "top": Verb(_WATCH, "what plugins are doing, live"),
        "wait": Verb(_WATCH, "wait until a plugin is available, active, healthy or stopped"),
        "install": Verb(_DECIDE, "accept a verified plugin"),
        "activate": Verb(_DECIDE, "start an installed or disabled plugin"),
        "disable": Verb(_DECIDE, "stop a plugin and keep it stopped"),
        "upgrade": Verb(_DECIDE, "swap an installed plugin for its candidate"),
        "rollback": Verb(_DECIDE, "return a plugin to a version that it had before"),
        "invoke": Verb(_DECIDE, "have an armed plugin carry out an action"),
        "restart": Verb(_DECIDE, "stop and start an active plugin, closing its breaker"),
        "forget": Verb(_DECIDE, "drop the record of a plugin that is not active"),
        "caps": Verb(_DATA, "capabilities: list, grant, trim"),
        "config": Verb(_DATA, "configurations of plugins: get, set, check"),
        "kv": Verb(_DATA, "stored values: get, set, list, delete"),
        "secret": Verb(_DATA, "secrets: set, bind, list, delete"),
        "task": Verb(_DATA, "tasks: list, show, approve, cancel"),
        "plan": Verb(_DATA, "changes of this host: list, show, approve, refuse, apply, confirm, rollback"),
        "apply": Verb(_DATA, "plan, review, approve, apply and confirm what a plugin wants, in one sitting"),
        "ddns": Verb(_DATA, "DNS records that plugins keep: list, retry"),
        "monitor": Verb(_DATA, "targets that plugins watch: list"),
        "service": Verb(_DATA, "programs that plugins have running: list"),
        "route": Verb(_DATA, "HTTP routes of plugins: list"),
        "notify": Verb(_DATA, "notifications: list, retry, prune"),
        "trust": Verb(_RECORD, "who may sign plugins: show, add, remove, revoke, lift"),
        "market": Verb(_RECORD, "signed indexes: search, show, install, fetch, outdated, hold"),
        "audit": Verb(_RECORD, "the record of every decision: query, verify, export"),
        "backup": Verb(_RECORD, "write the whole state to a file, for latticed --restore"),
        "fleet": Verb(_FLEET, "many hosts that take what their operator signs: init, enroll, sign, plan, roll, nodes"),
        "verify": Verb(_AUTHOR, "judge bundles as the daemon would"),
        "sign": Verb(_AUTHOR, "sign bundles with a private key"),
        "key": Verb(_AUTHOR, "make and show signing keys"),
        "pack": Verb(_AUTHOR, "make a bundle's artifact of a directory of Python modules"),
        "index": Verb(_AUTHOR, "the signed index of a marketplace: add, sign, validate"),
        "new": Verb(_AUTHOR, "write a new bundle to start from"),
        "dev": Verb(_AUTHOR, "run a bundle while it is being written, and take each change at once"),
        "run": Verb(_AUTHOR, "one invocation of a bundle in the real sandbox, without the daemon"),
        "version": Verb(_SELF, "the versions of latticectl and of the daemon"),
        "completion": Verb(_SELF, "completion for bash, zsh or fish"),
    }
)

_LATER: Final = frozenset[str]()
"""Verbs that are announced and not built yet (contracts §8)."""

_MEANT: Final[Mapping[str, str]] = MappingProxyType(
    {
        said: verb
        for verb, words in {
            "activate": "enable start resume up load",
            "disable": "stop deactivate kill pause down unload",
            "forget": "rm remove uninstall delete del purge unregister",
            "top": "ps stats",
            "list": "ls plugins",
            "info": "show inspect describe get",
            "install": "add accept register",
            "upgrade": "update",
            "rollback": "downgrade revert",
            "invoke": "call exec",
            "explain": "why",
            "logs": "log journal tail",
            "events": "watch",
            "verify": "check validate",
            "audit": "history",
            "caps grant": "grant allow permit",
            "caps trim": "trim ungrant",
            "caps list": "capabilities permissions grants",
            "trust revoke": "revoke",
            "trust show": "publishers policy",
            "task approve": "approve",
            "plan confirm": "confirm",
            "key generate": "keygen genkey",
            "new": "init create scaffold",
            "notify list": "notifications",
            "--help": "help",
        }.items()
        for said in words.split()
    }
)
"""What people type who come from other tools, and the verb that does it here."""


def program() -> NoReturn:
    """Run `main` as a process of its own, and end it with its exit code.

    The interpreter is not taken apart first, as `sys.exit` does: that was a seventh of the time of `latticectl status`.
    """
    code = main()
    atexit._run_exitfuncs()  # noqa: SLF001 - what `sys.exit` would do first (CPython 3.11 to 3.14)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # `main` has seen to what it wrote itself
            stream.flush()
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run latticectl with `argv` (default: the process's own); returns its exit code."""
    # Only as a process of its own: a caller that gives arguments keeps its signal handlers and limits.
    if argv is None:
        process_start.reset_for_command()
    screen = render.screen(sys.stdout, sys.stderr, os.environ)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # escape characters that the locale cannot encode
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _guarded(sys.argv[1:] if argv is None else list(argv), screen)
        # Here, not at the interpreter's exit, where a failure could no longer become an exit code.
        screen.flush()
    except BrokenPipeError:
        _drop_stdout()
        return ExitCode.PIPE_CLOSED
    # Of the output, such as a full disk: those of files have a name (`_guarded`).
    except OSError as error:
        _drop_stdout()
        screen.err.write(f"error: cannot write the output: {error.strerror or error}\n")
        return ExitCode.FAILED
    return code


def _guarded(argv: list[str], screen: render.Screen) -> int:
    """Run the verb; turn a Problem, an interrupt and argparse's exit into an exit code."""
    try:
        return _run(argv)
    except Problem as problem:
        # First what was printed before, so that the error comes last on a terminal.
        screen.flush()
        screen.error(problem)
        return of(problem)
    # Of a file, where a verb has made no Problem of it: an error of the output names none.
    except OSError as error:
        if error.filename is None:
            raise
        screen.flush()
        screen.error(Problem("io_error", f"{error.filename}: {error.strerror}"))
        return ExitCode.FAILED
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except SystemExit as done:  # argparse, after printing help or the version
        return done.code if isinstance(done.code, int) else ExitCode.OK


def _run(argv: list[str]) -> int:
    """Parse twice: what stands before the verb, then the rest by the verb's own parser."""
    top = top_parser()
    args = top.parse_args(argv)
    if args.version:
        sys.stdout.write(f"{PROG} {latticed.__version__}\n")
        return ExitCode.OK
    if args.help or args.verb is None:
        sys.stdout.write(overview())
        return ExitCode.OK
    # Only now is a verb's module imported: the others and their imports would slow down every start.
    module = load(args.verb)
    parser = verb_parser(args.verb, module)
    args = parser.parse_args(args.rest, args)
    return module.run(_session(args))


def _session(args: argparse.Namespace) -> CtlSession:
    """The session of a run; Problem usage for an unknown format."""
    wanted = getattr(args, "format", None) or os.environ.get("LATTICECTL_FORMAT") or "text"
    if wanted not in FORMATS:
        raise Problem("usage", f"LATTICECTL_FORMAT: expected text or json, found {wanted[:80]!r}")
    absolute = getattr(args, "abs_time", False)
    screen = render.screen(sys.stdout, sys.stderr, os.environ, json_wanted=wanted == "json", absolute_times=absolute)
    return CtlSession(args=args, screen=screen, environ=os.environ)


def top_parser() -> Parser:
    """The parser for the options before the verb and the verb itself; the rest is left to the verb's parser."""
    # Its help is `overview`; -h behind a verb is the verb's, like every option there (REMAINDER).
    parser = Parser(prog=PROG, add_help=False, usage=f"{PROG} [options] VERB …")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("verb", nargs="?", type=str)
    parser.add_argument("rest", nargs=argparse.REMAINDER, type=str)
    return parser


def load(verb: str) -> VerbModule:
    """Import the module of `verb`; Problem("usage") for an unknown verb."""
    if verb in VERBS:
        return cast("VerbModule", importlib.import_module(f"latticed.ctl.{verb}"))
    if verb in _LATER:
        raise Problem("usage", f"unknown verb {verb!r}", f"{verb} is not in this version; see {PROG} --help")
    if verb in _MEANT:
        raise Problem("usage", f"unknown verb {verb!r}", f"did you mean {PROG} {_MEANT[verb]}?")
    from difflib import get_close_matches

    near = get_close_matches(verb, VERBS, n=1)
    raise Problem("usage", f"unknown verb {verb[:80]!r}", f"did you mean {near[0]}?" if near else f"see {PROG} --help")


def verb_parser(verb: str, module: VerbModule, parent: Any = None) -> Parser:
    """The parser of one verb: on its own, or as one of the sub-parsers `parent`."""
    summary = VERBS[verb].summary
    how = {"description": summary[0].upper() + summary[1:] + ".", "epilog": module.EXAMPLES}
    parser = Parser(prog=f"{PROG} {verb}", **how) if parent is None else parent.add_parser(verb, help=summary, **how)
    module.arguments(parser)
    _exemplify(verb, parser, module.EXAMPLES)
    return cast("Parser", parser)


def _exemplify(verb: str, parser: Parser, lines: str) -> None:
    """Have the help of each action of a verb end in those of the verb's examples that show it."""
    for action, below in parser.verbs():
        shown = [line for line in lines.splitlines() if f"{PROG} {verb} {action} " in f"{line} "]
        below.epilog = "\n".join(["examples:", *shown]) if shown else None


def overview() -> str:
    """The verbs by group: what `latticectl` alone and `latticectl --help` print."""
    lines = [f"usage: {PROG} [options] VERB …", "", "Drives latticed, which runs signed plugins on this host."]
    for group in dict.fromkeys(verb.group for verb in VERBS.values()):
        lines += ["", f"{group}:"]
        lines += [f"  {name:<12}{verb.summary}" for name, verb in VERBS.items() if verb.group == group]
    lines += [
        "",
        "Options, before or after the verb:",
        "  --format text|json   how to print (LATTICECTL_FORMAT)",
        "  --abs-time           print times as dates",
        "  --socket PATH        control socket (LATTICED_SOCKET; default: from the settings)",
        "  --config FILE        settings file of the daemon",
        "  --version            print latticectl's version",
        "",
        "Exit codes: 0 ok, 1 failed, 2 usage, 3 unhealthy, 4 not found, 5 denied, 6 verification failed, 7 no daemon",
        f"More about a verb: {PROG} VERB --help",
    ]
    return "\n".join(lines) + "\n"


def _drop_stdout() -> None:
    """Redirect stdout to /dev/null after EPIPE; otherwise the interpreter's flush at exit would fail, too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


if __name__ == "__main__":
    program()
