"""latticectl new: write a project to start from: source, tests, Makefile, README, and the bundle that hosts run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import scaffold
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.model import ids
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl new system ./acme.demo                     # in Python, on the SDK",
    "latticectl new wasm ./acme.count --lang zig",
    "latticectl new worker ./hello --id acme.hello --name 'Hello' --publisher acme",
)


def arguments(parser: Parser) -> None:
    parser.add_argument("type", choices=scaffold.TYPES, help="system: a process; wasm: a module; worker: a template")
    parser.add_argument("directory", metavar="DIR", type=str, help="a directory that does not exist yet")
    parser.add_argument(
        "--lang", choices=scaffold.LANGUAGES, help="its language (default: python for system, c for wasm)"
    )
    parser.add_argument("--id", metavar="ID", help="the plugin's id (default: the directory's name)")
    parser.add_argument("--name", metavar="NAME", help="its name for people (default: the id)")
    parser.add_argument("--publisher", metavar="NAME", help="its publisher; latticectl sign can set it too")


def run(session: CtlSession) -> int:
    """Write the new project, all of it or nothing; nothing that exists is changed."""
    from latticed.bundle import write
    from latticed.bundle.refusal import ARTIFACT, MANIFEST

    args = session.args
    # Absolute and normal: `.` and `x/` then have a last component, which is the default for the id.
    directory = Path(os.path.abspath(args.directory))
    plugin_id = args.id if args.id is not None else directory.name
    _check(plugin_id, args.publisher)
    lang = scaffold.language(args.type, args.lang)
    name = plugin_id if args.name is None else args.name
    plain = scaffold.manifest(args.type, lang, plugin_id=plugin_id, name=name, publisher=args.publisher)
    _check_manifest(plain)
    files = scaffold.project(args.type, lang, plain)
    try:
        write.write_tree(directory, {**files, MANIFEST: write.render(plain)})
    except FileExistsError as error:
        raise Problem("exists", f"expected nothing at {directory}, found something", "choose another name") from error
    except OSError as error:
        raise Problem("io_error", f"cannot write {directory}: {error.strerror}") from error
    if session.screen.json_wanted:
        session.screen.json({"path": str(directory), "manifest": plain, "language": lang or None})
    else:
        session.screen.line(f"{args.directory}: new {args.type} plugin {plugin_id}")
        _tell_next(session, plugin_id, lang, built=ARTIFACT in files)
    return ExitCode.OK


def _tell_next(session: CtlSession, plugin_id: str, lang: str, *, built: bool) -> None:
    """Print what comes next: to test it, try it, write on it, sign it."""
    where = session.args.directory
    template = scaffold.TEMPLATES[session.args.type, lang]
    example = template.example.replace("@id@", plugin_id)
    build = " --build 'make -s artifact'" if template.watch else ""
    steps = (
        ("make test", "" if built else "builds the artifact, too: there is none yet"),
        (f"latticectl run . {example}", "one invocation in the sandbox, without a daemon"),
        (f"latticectl dev .{build}", "runs it while you write"),
    )
    session.screen.note(f"next, in {where} (its README says more):")
    for command, why in steps:
        session.screen.note(f"  {command}" + (f"   # {why}" if why else ""))
    publisher = "" if session.args.publisher else "--publisher NAME "
    session.screen.hint(f"then sign it: latticectl sign --key FILE {publisher}{where}")


def _check(plugin_id: str, publisher: str | None) -> None:
    """Problem usage for an id or publisher that no bundle may have."""
    if not ids.is_valid(plugin_id) or ids.is_reserved_plugin(plugin_id):
        found = f"expected an id of 3 to 128 of a-z 0-9 . -, not latticed.*, found {plugin_id[:150]!r}"
        raise Problem("usage", found, "name one with --id")
    if publisher is not None and (not ids.is_valid(publisher) or publisher == ids.RESERVED_PUBLISHER):
        raise Problem("usage", f"--publisher: expected 3 to 128 of a-z 0-9 . -, found {publisher[:150]!r}")


def _check_manifest(plain: Mapping[str, Any]) -> None:
    """Problem usage for what else no host would take, such as a name with line ends: before anything is written."""
    from latticed.bundle import decode, write
    from latticed.bundle.refusal import BundleRefused

    whole = {"publisher": "publisher", **plain, "digest_sha256": "0" * 64, "signature_ed25519": ""}
    try:
        decode.decode(write.render(whole))
    except (BundleRefused, UnicodeEncodeError) as error:
        reason = error.reason if isinstance(error, BundleRefused) else "expected UTF-8"
        raise Problem("usage", f"no host takes this plugin: {reason}", "another --name or --id helps") from error
