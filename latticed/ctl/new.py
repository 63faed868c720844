"""latticectl new: write a bundle to start from, ready to be signed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latticed.ctl import scaffold
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.model import ids
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl new system ./acme.demo",
    "latticectl new worker ./hello --id acme.hello --name 'Hello' --publisher acme",
    "latticectl sign --key acme.key --publisher acme ./acme.demo",
)


def arguments(parser: Parser) -> None:
    parser.add_argument("type", choices=scaffold.TYPES, help="system: a process; wasm: a module; worker: a template")
    parser.add_argument("directory", metavar="DIR", type=str, help="a directory that does not exist yet")
    parser.add_argument("--id", metavar="ID", help="the plugin's id (default: the directory's name)")
    parser.add_argument("--name", metavar="NAME", help="its name for people (default: the id)")
    parser.add_argument("--publisher", metavar="NAME", help="its publisher; latticectl sign can set it too")


def run(session: CtlSession) -> int:
    """Write the new bundle; nothing that exists is changed."""
    from latticed.bundle import write

    args = session.args
    # Absolute and normal: `.` and `x/` then have a last component, which is the default for the id.
    directory = Path(os.path.abspath(args.directory))
    plugin_id = args.id if args.id is not None else directory.name
    _check(plugin_id, args.publisher)
    plain = scaffold.manifest(args.type, plugin_id=plugin_id, name=args.name or plugin_id, publisher=args.publisher)
    try:
        write.write_bundle(directory, write.render(plain), scaffold.artifact(args.type))
    except FileExistsError as error:
        raise Problem("exists", f"expected nothing at {directory}, found something", "choose another name") from error
    except OSError as error:
        raise Problem("io_error", f"cannot write {directory}: {error.strerror}") from error
    if session.screen.json_wanted:
        session.screen.json({"path": str(directory), "manifest": plain})
    else:
        session.screen.line(f"{args.directory}: new {args.type} plugin {plugin_id}")
        publisher = "" if args.publisher else "--publisher NAME "
        session.screen.hint(f"edit it, then: latticectl sign --key FILE {publisher}{args.directory}")
    return ExitCode.OK


def _check(plugin_id: str, publisher: str | None) -> None:
    """Problem usage for an id or publisher that no bundle may have."""
    if not ids.is_valid(plugin_id) or ids.is_reserved_plugin(plugin_id):
        found = f"expected an id of 3 to 128 of a-z 0-9 . -, not latticed.*, found {plugin_id[:150]!r}"
        raise Problem("usage", found, "name one with --id")
    if publisher is not None and (not ids.is_valid(publisher) or publisher == ids.RESERVED_PUBLISHER):
        raise Problem("usage", f"--publisher: expected 3 to 128 of a-z 0-9 . -, found {publisher[:150]!r}")
