"""latticectl key: make and show signing keys, offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl key generate acme.key",
    'latticectl trust add acme "$(latticectl key show acme.key)"',
)


def arguments(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, summary in (
        ("generate", "make a private key in a new file (mode 0600) and print its public half"),
        ("show", "print the public half of a private key, as trust.json wants it"),
    ):
        actions.add_parser(name, help=summary, description=summary).add_argument("file", metavar="FILE", type=str)


def run(session: CtlSession) -> int:
    """Make a key, or show the public half of one."""
    from latticed.trust import key_files

    path = Path(session.args.file)
    if session.args.action == "generate":
        key = key_files.generate()
        key_files.create(path, key)
        session.screen.note(f"wrote the private key to {path}: keep it secret; below is its public half")
    else:
        key = key_files.read(path)
    public = key_files.public_text(key)
    if session.screen.json_wanted:
        session.screen.json({"path": str(path), "public_key": public})
    else:
        session.screen.line(public)
    return ExitCode.OK
